use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;

use super::*;
use crate::model::{BackendId, HealthCheck, HealthState, Probe};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LONG: Duration = Duration::from_secs(20);

fn check(probe: Probe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(50),
        rise: 2,
        fall: 3,
        dead_after: Duration::from_secs(30),
    }
}

/// Returns the state after each second's result, `+` being a success.
fn run(machine: &mut Machine, start: Instant, results: &str) -> Vec<HealthState> {
    (1..)
        .zip(results.chars())
        .map(|(second, result)| {
            machine.probed(result == '+', start + Duration::from_secs(second));
            machine.state()
        })
        .collect()
}

#[test]
fn failures_in_a_row_make_suspect_and_successes_bring_it_up() {
    use HealthState::{Suspect, Unknown, Up};
    let start = Instant::now();
    let mut machine = Machine::new(&check(Probe::Icmp), Unknown, start);
    let states = run(&mut machine, start, "+--+---+-++");
    let expected = [
        Up, Up, Up, Up, Up, Up, Suspect, Suspect, Suspect, Suspect, Up,
    ];
    assert_eq!(states, expected);
    let mut machine = Machine::new(&check(Probe::Icmp), Unknown, start);
    assert_eq!(run(&mut machine, start, "---"), [Unknown, Unknown, Suspect]);
}

#[test]
fn suspect_becomes_dead_only_after_its_time_or_by_proof() {
    let start = Instant::now();
    let mut machine = Machine::new(&check(Probe::Icmp), HealthState::Unknown, start);
    run(&mut machine, start, "+---");
    let suspect_since = start + Duration::from_secs(4);
    let deadline = suspect_since + Duration::from_secs(30);
    assert_eq!(machine.deadline(), Some(deadline));
    assert_eq!(machine.tick(deadline - Duration::from_nanos(1)), None);
    assert_eq!(machine.tick(deadline), Some(HealthState::Dead));
    assert_eq!(machine.deadline(), None);
    assert_eq!(machine.probed(true, deadline), None);
    assert_eq!(machine.probed(true, deadline), Some(HealthState::Up));
    assert_eq!(machine.proof_of_death(deadline), Some(HealthState::Dead));
    assert_eq!(machine.proof_of_death(deadline), None);
}

#[test]
fn what_an_earlier_daemon_thought_holds_until_probes_say_otherwise() {
    let start = Instant::now();
    let mut dead = Machine::new(&check(Probe::Icmp), HealthState::Dead, start);
    assert_eq!(
        run(&mut dead, start, "--+-++"),
        [[HealthState::Dead; 5].as_slice(), &[HealthState::Up]].concat()
    );
    let mut suspect = Machine::new(&check(Probe::Icmp), HealthState::Suspect, start);
    assert_eq!(suspect.deadline(), None, "no failure was seen yet");
    run(&mut suspect, start, "--+--");
    assert_eq!(suspect.deadline(), None, "nor three in a row");
    run(&mut suspect, start, "-");
    assert_eq!(suspect.deadline(), Some(start + Duration::from_secs(30)));
}

#[test]
fn without_patience_an_earlier_suspicion_still_needs_failures() {
    use HealthState::{Dead, Suspect};
    let start = Instant::now();
    let impatient = HealthCheck {
        dead_after: Duration::ZERO,
        ..check(Probe::Icmp)
    };
    let mut machine = Machine::new(&impatient, Suspect, start);
    assert_eq!(machine.tick(start + LONG), None);
    assert_eq!(run(&mut machine, start, "---"), [Suspect, Suspect, Dead]);
}

#[test]
fn who_flaps_must_show_more_and_more_successes() {
    let start = Instant::now();
    let mut machine = Machine::new(&check(Probe::Icmp), HealthState::Unknown, start);
    let mut needed = Vec::new();
    for _ in 0..12 {
        while machine.state() != HealthState::Up {
            machine.probed(true, start);
        }
        while machine.state() == HealthState::Up {
            machine.probed(false, start);
        }
        needed.push(machine.needed(start));
    }
    assert_eq!(needed, [2, 4, 6, 8, 10, 12, 14, 16, 16, 16, 16, 16]);
    assert_eq!(machine.needed(start + Duration::from_secs(60)), 12);
    assert_eq!(machine.needed(start + Duration::from_secs(3600)), 2);
}

proptest! {
    /// Whatever the results: a backend is up only after a success, falls only after `fall`
    /// failures in a row, and dies only after it was suspect for its time.
    #[test]
    fn no_state_comes_without_its_reason(
        results in prop::collection::vec((any::<bool>(), 0_u64..20), 1..200),
    ) {
        let start = Instant::now();
        let mut machine = Machine::new(&check(Probe::Icmp), HealthState::Unknown, start);
        let (mut now, mut failures, mut suspect) = (start, 0, None);
        for (ok, pause) in results {
            now += Duration::from_secs(pause);
            let before = machine.state();
            failures = if ok { 0 } else { failures + 1 };
            match machine.probed(ok, now) {
                Some(HealthState::Up) => prop_assert!(ok),
                Some(HealthState::Suspect) => {
                    prop_assert!(failures >= 3);
                    suspect = Some(now);
                }
                Some(HealthState::Dead) => {
                    prop_assert_eq!(before, HealthState::Suspect);
                    prop_assert!(now >= suspect.unwrap() + Duration::from_secs(30));
                }
                Some(HealthState::Unknown) => prop_assert!(false, "nobody becomes unknown"),
                None => prop_assert_eq!(machine.state(), before),
            }
        }
    }
}

/// Serves one canned answer to every connection.
async fn serve(answer: &'static str) -> NonZeroU16 {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    port.try_into().unwrap()
}

fn http(port: NonZeroU16, status: (u16, u16), body: Option<&str>) -> Probe {
    Probe::Http {
        port,
        path: "/health".to_owned(),
        host: None,
        status,
        body: body.map(str::to_owned),
    }
}

async fn failure(kind: &Probe) -> String {
    probe(kind, HOST, LONG).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_tcp_probe_connects() {
    let port = serve("").await;
    probe(&Probe::Tcp { port }, HOST, LONG).await.unwrap();
    let gone = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = gone.local_addr().unwrap().port().try_into().unwrap();
    drop(gone);
    assert!(failure(&Probe::Tcp { port }).await.contains("refused"));
}

#[tokio::test]
async fn an_http_probe_judges_status_and_body() {
    let good = serve("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nVM is ready\n").await;
    probe(&http(good, (200, 299), None), HOST, LONG)
        .await
        .unwrap();
    probe(&http(good, (200, 299), Some("ready")), HOST, LONG)
        .await
        .unwrap();
    let error = failure(&http(good, (200, 299), Some("gone"))).await;
    assert!(error.contains("do not contain \"gone\""), "{error}");
    let error = failure(&http(good, (300, 399), None)).await;
    assert_eq!(error, "status 200, allowed is 300 to 399");
    let sick = serve("HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
    assert_eq!(
        failure(&http(sick, (200, 299), None)).await,
        "status 503, allowed is 200 to 299"
    );
    let strange = serve("SSH-2.0-something\r\n").await;
    assert!(
        failure(&http(strange, (200, 299), None))
            .await
            .starts_with("HTTP: ")
    );
}

#[tokio::test]
async fn a_silent_server_is_given_up_in_time() {
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port().try_into().unwrap();
    let error = probe(
        &http(port, (200, 299), None),
        HOST,
        Duration::from_millis(20),
    )
    .await;
    assert!(matches!(error, Err(ProbeError::TimedOut(_))), "{error:?}");
}

#[tokio::test]
async fn a_udp_probe_judges_the_answer() {
    let server = UdpSocket::bind((HOST, 0)).await.unwrap();
    let port = server.local_addr().unwrap().port().try_into().unwrap();
    tokio::spawn(async move {
        let mut packet = [0; 64];
        loop {
            let (len, from) = server.recv_from(&mut packet).await.unwrap();
            assert_eq!(&packet[..len], b"ping");
            server.send_to(b"pong 1", from).await.unwrap();
        }
    });
    let udp = |expect: Option<&str>| Probe::Udp {
        port,
        send: b"ping".to_vec(),
        expect: expect.map(|text| text.as_bytes().to_vec()),
    };
    probe(&udp(None), HOST, LONG).await.unwrap();
    probe(&udp(Some("pong")), HOST, LONG).await.unwrap();
    assert!(failure(&udp(Some("pung"))).await.contains("otherwise"));
    let gone = UdpSocket::bind((HOST, 0)).await.unwrap();
    let port = gone.local_addr().unwrap().port().try_into().unwrap();
    drop(gone);
    let closed = Probe::Udp {
        port,
        send: Vec::new(),
        expect: None,
    };
    assert!(
        failure(&closed).await.contains("refused"),
        "the kernel says so by ICMP"
    );
}

fn id(name: &str) -> BackendId {
    BackendId {
        service: "web".parse().unwrap(),
        backend: name.parse().unwrap(),
    }
}

#[tokio::test]
async fn a_checker_reports_changes_and_keeps_the_state_of_the_unchanged() {
    let port = serve("").await;
    let target = |address: IpAddr| Target {
        address,
        check: check(Probe::Tcp { port }),
    };
    let (sender, mut reports) = mpsc::channel(16);
    let mut checker = Checker::new(sender);
    let none = "127.0.0.9".parse().unwrap();
    let both = BTreeMap::from([(id("a"), target(HOST)), (id("b"), target(none))]);
    assert_eq!(
        checker.set_targets(both.clone(), |_| HealthState::Unknown),
        BTreeSet::new()
    );
    let mut first = [reports.recv().await.unwrap(), reports.recv().await.unwrap()];
    first.sort_by_key(|report| report.id.backend.clone());
    assert_eq!((&first[0].id, first[0].state), (&id("a"), HealthState::Up));
    assert_eq!(
        (&first[1].id, first[1].state),
        (&id("b"), HealthState::Suspect)
    );
    assert!(first[1].why.as_deref().unwrap().contains("refused"));

    assert_eq!(
        checker.set_targets(both, |_| HealthState::Dead),
        BTreeSet::new()
    );
    checker.proof_of_death(&id("a"));
    let next = reports.recv().await.unwrap();
    assert_eq!(
        (next.id, next.state),
        (id("a"), HealthState::Dead),
        "not unknown again"
    );
    let up = reports.recv().await.unwrap();
    assert_eq!(
        (up.id, up.state),
        (id("a"), HealthState::Up),
        "it still answers"
    );
    assert_eq!(
        checker.set_targets(BTreeMap::new(), |_| HealthState::Unknown),
        BTreeSet::from([id("a"), id("b")])
    );
    assert!(!checker.probes(&id("a")));
    drop(checker);
    assert_eq!(reports.recv().await, None, "all tasks have ended");
}

#[tokio::test]
async fn proof_of_death_does_not_wait_for_the_probe_under_way() {
    // It takes connections, and never answers.
    let listener = TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port().try_into().unwrap();
    let mut slow = check(http(port, (200, 299), None));
    slow.timeout = LONG;
    let (sender, mut reports) = mpsc::channel(16);
    let mut checker = Checker::new(sender);
    let target = Target {
        address: HOST,
        check: slow,
    };
    checker.set_targets(BTreeMap::from([(id("a"), target)]), |_| HealthState::Up);
    let _probe = listener.accept().await.unwrap();
    checker.proof_of_death(&id("a"));
    let report = tokio::time::timeout(LONG / 10, reports.recv()).await;
    let report = report.unwrap().unwrap();
    assert_eq!(report.state, HealthState::Dead);
    assert_eq!(report.why.as_deref(), Some("proof of death"));
}

#[test]
fn what_this_host_lacks_is_no_failure_of_the_backend() {
    let error = |errno| ProbeError::Io(std::io::Error::from_raw_os_error(errno));
    assert!(error(libc::EMFILE).is_local());
    assert!(error(libc::EADDRNOTAVAIL).is_local());
    assert!(!error(libc::ECONNREFUSED).is_local());
    assert!(!error(libc::EHOSTUNREACH).is_local());
    assert!(!ProbeError::TimedOut(LONG).is_local());
}
