use std::fmt;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::map_names;
use lb_common::row::Row;
use lb_tests::lan::Lan;
use lb_tests::netns;
use lb_tests::weir::Weir;
use lb_user::config::Config;
use lb_user::dataplane::{Pins, load};
use lb_user::engine::{Engine, Hop};
use lb_user::model::{BackendId, Mac, Name, NextHop, Weight};
use lb_user::ring::rows_for;
use lb_user::state::Slots;
use serde::Serialize;

use super::moves;
use super::world::{OWN, settings};

/// From 129 to 256 backends a ring has 65,536 rows: 256 a backend, rounded up to a power of two.
const BACKENDS: u16 = 200;
const ROWS: u32 = 65_536;
/// What a backend's weight changes to, from the usual 100.
const HEAVY: u16 = 400;

/// What a weight change costs the daemon.
#[derive(Serialize)]
pub struct Measured {
    backends: u16,
    rows: u32,
    moved: usize,
    /// From the request's first byte to the answer's last: all rows are stored by then, and the
    /// change is on the disk.
    request: Times,
    /// What of it is planning and storing the rows.
    rows_only: Times,
}

/// Minimum and median of all runs.
#[derive(Serialize)]
struct Times {
    min_ms: f64,
    median_ms: f64,
}

impl Times {
    fn of(times: Vec<Duration>) -> Self {
        let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        Self {
            min_ms: ms[0],
            median_ms: ms[ms.len() / 2],
        }
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "a backend's weight times four ({} backends, {} rows, {} moved, no fewer would do): minimum / median",
            self.backends, self.rows, self.moved
        )?;
        for (what, times) in [
            ("request to answer, synced to the disk", &self.request),
            ("planning and storing the rows", &self.rows_only),
        ] {
            writeln!(
                f,
                "  {what}: {:.2} / {:.2} ms",
                times.min_ms, times.median_ms
            )?;
        }
        Ok(())
    }
}

/// Measures weight changes, each of another backend.
pub fn measure(runs: usize) -> Result<Measured> {
    ensure!(
        rows_for(BACKENDS.into()) == ROWS,
        "{BACKENDS} backends have {} rows",
        rows_for(BACKENDS.into())
    );
    let runs = runs.min(BACKENDS.into());
    let (request, moved) = requests(runs)?;
    let directory = netns::pins("control");
    let rows_only = in_process(&directory, runs);
    netns::remove_pins(&directory);
    Ok(Measured {
        backends: BACKENDS,
        rows: ROWS,
        moved,
        request: Times::of(request),
        rows_only: Times::of(rows_only?),
    })
}

/// Declares the service. Its backends are on the host's network and need no neighbour to answer.
fn config() -> Result<String> {
    let mut text =
        "[[service]]\nname = \"web\"\naddress = \"198.18.9.10\"\nport = 80\nprotocol = \"tcp\"\n"
            .to_owned();
    for number in 1..=BACKENDS {
        write!(
            text,
            "[[service.backend]]\nname = \"{}\"\naddress = \"198.18.0.{}\"\nmac = \"02:00:00:00:01:{number:02x}\"\n",
            backend(number),
            number + 20,
        )?;
    }
    Ok(text)
}

fn backend(number: u16) -> String {
    format!("vm{number}")
}

/// Asks a real daemon for each change. Returns the times, and how many rows the last one moved.
fn requests(runs: usize) -> Result<(Vec<Duration>, usize)> {
    let lan = Lan::new();
    let host = lan.host("balancer", 2);
    let weir = Weir::start(&host, &config()?);
    weir.wait_serving("web");
    let mut before = stored_rows(weir.pins())?;
    moves::check_shares(&before, &[100; BACKENDS as usize])?;
    let mut weights = [100; BACKENDS as usize];
    let (mut times, mut moved) = (Vec::new(), 0);
    for (number, weight) in (1..).zip(&mut weights).take(runs) {
        *weight = HEAVY;
        times.push(patch(&weir.socket(), &backend(number))?);
        let after = stored_rows(weir.pins())?;
        moved = moves::check_least(&before, &after)?;
        before = after;
    }
    moves::check_shares(&before, &weights)?;
    weir.audit();
    Ok((times, moved))
}

/// Sends one request to the daemon.
fn patch(socket: &Path, backend: &str) -> Result<Duration> {
    let body = format!("{{\"weight\":{HEAVY}}}");
    let request = format!(
        "PATCH /v1/services/web/backends/{backend} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    let start = Instant::now();
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request.as_bytes())?;
    stream.read_to_string(&mut answer)?;
    let time = start.elapsed();
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(time)
}

/// Reads the rows that packets see.
fn stored_rows(pins: &Path) -> Result<Vec<Row>> {
    let data = MapData::from_pin(Pins::new(pins).map(map_names::RING))?;
    let ring = Array::<_, u64>::try_from(Map::Array(data))?;
    let rows = (0..ROWS).map(|index| Ok(Row::from_bits(ring.get(&index, 0)?)));
    rows.collect()
}

/// Does what the daemon does with each change, on maps of its own.
fn in_process(pins: &Path, runs: usize) -> Result<Vec<Duration>> {
    let text = format!("[limits]\nrows = {ROWS}\nbackends = 256\n{}", config()?);
    let mut desired = Config::parse(&text, "bench")?.desired;
    let kernel = load(&settings(PathBuf::from(pins), desired.limits))?;
    let store = Box::new(|_: &Slots| Ok(()));
    let mut engine = Engine::new(
        kernel,
        Slots::default(),
        desired.limits,
        store,
        Instant::now(),
    )?;
    let prepared = engine.prepare(desired.clone())?;
    engine.commit(prepared, Instant::now());
    let service: Name = "web".parse()?;
    for number in 1..=BACKENDS {
        let id = BackendId {
            service: service.clone(),
            backend: backend(number).parse()?,
        };
        let hop = NextHop {
            ifindex: 1,
            vlan: None,
            source_mac: Mac(OWN),
            destination_mac: Mac([2, 0, 0, 0, 1, number as u8]),
            source_address: None,
            mtu: 1500,
        };
        engine.observe_hop(&id, Hop::Found(hop), Instant::now());
    }
    engine.reconcile(Instant::now())?;
    let mut before = stored_rows(pins)?;
    let mut times = Vec::new();
    for number in (1..=BACKENDS).take(runs) {
        let declared = desired.services.get_mut(&service).context("no service")?;
        let declared = declared.backends.get_mut(&backend(number).parse()?);
        declared.context("no backend")?.weight = Weight::new(HEAVY);
        let start = Instant::now();
        let prepared = engine.prepare(desired.clone())?;
        engine.commit(prepared, start);
        engine.reconcile(start)?;
        times.push(start.elapsed());
        let after = stored_rows(pins)?;
        moves::check_least(&before, &after)?;
        before = after;
    }
    Ok(times)
}
