use std::fmt;
use std::time::Instant;

use anyhow::{Context as _, Result};
use lb_tests::netns;
use lb_user::config::Config;
use lb_user::dataplane::{Pins, load};
use lb_user::engine::{Engine, Hop};
use lb_user::model::{BackendId, Desired, Mac, Name, NextHop, Weight};
use lb_user::state::Slots;
use serde::Serialize;

use super::world::settings;

/// So many backends have a ring of 65,536 rows.
const BACKENDS: u32 = 200;

/// What a weight change costs the daemon, from the request to the last row.
#[derive(Serialize)]
pub struct Measured {
    backends: u32,
    rows: usize,
    moved: usize,
    min_ms: f64,
    median_ms: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "weight change ({} backends, {} rows, {} moved): {:.2} ms minimum, {:.2} ms median",
            self.backends, self.rows, self.moved, self.min_ms, self.median_ms
        )
    }
}

fn desired() -> Result<Desired> {
    let mut text = "[limits]\nrows = 131072\nbackends = 1024\n[[service]]\nname = \"web\"\naddress = \"198.18.9.10\"\nport = 80\nprotocol = \"tcp\"\n".to_owned();
    for number in 1..=BACKENDS {
        text += &format!(
            "[[service.backend]]\nname = \"vm{number}\"\naddress = \"198.18.1.{number}\"\n"
        );
    }
    Ok(Config::parse(&text, "bench")?.desired)
}

/// Changes weights on the real maps.
pub fn measure(runs: usize) -> Result<Measured> {
    let directory = netns::pins("control");
    let pins = Pins::new(&directory);
    let result = run(directory, runs);
    pins.remove_all()?;
    result
}

fn run(directory: std::path::PathBuf, runs: usize) -> Result<Measured> {
    let mut desired = desired()?;
    let kernel = load(&settings(directory, desired.limits))?;
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
            backend: format!("vm{number}").parse()?,
        };
        let hop = NextHop {
            ifindex: 1,
            vlan: None,
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            destination_mac: Mac([2, 0, 0, 0, 1, number as u8]),
            source_address: None,
            mtu: 1500,
        };
        engine.observe_hop(&id, Hop::Found(hop), Instant::now());
    }
    engine.reconcile(Instant::now())?;
    let rows = engine
        .installed(&service)
        .context("not installed")?
        .ring
        .rows()
        .len();
    let mut times = Vec::new();
    let mut moved = 0;
    for run in 0..runs {
        let declared = desired.services.get_mut(&service).context("no service")?;
        let weight = if run % 2 == 0 { 400 } else { 100 };
        for number in [1, 2, 3] {
            let backend = declared.backends.get_mut(&format!("vm{number}").parse()?);
            backend.context("no backend")?.weight = Weight::new(weight);
        }
        moved = engine.diff(&desired).first().map_or(0, |diff| diff.moved);
        let start = Instant::now();
        let prepared = engine.prepare(desired.clone())?;
        engine.commit(prepared, start);
        engine.reconcile(start)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let median_ms = times[times.len() / 2];
    Ok(Measured {
        backends: BACKENDS,
        rows,
        moved,
        min_ms: times[0],
        median_ms,
    })
}
