//! The demo: a client network, the balancer's host, three VMs with a real web server each, and the
//! real daemon in native XDP. Every step checks that it did what it says. Run by
//! `cargo xtask demo`.
#![expect(clippy::print_stdout, reason = "it is there to be seen")]

mod load;
mod site;
mod table;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use lb_tests::weir::Weir;
use nix::sys::signal::{SigSet, Signal};

use load::{Load, Results};
use site::{Site, VIP};
use table::Table;

/// Whether the operator wants it to end: it ends where it can clean up.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How long a step is looked at.
const LOOK: Duration = Duration::from_secs(4);

const CONFIG: &str = r#"
[[interface]]
name = "eth"
mode = "native"

[[service]]
name = "web"
address = "198.18.9.10"
port = 80
protocol = "tcp"

[service.health]
type = "http"
interval = "200ms"
timeout = "200ms"
fall = 2
dead_after = "2s"
"#;

fn main() -> ExitCode {
    // Blocked here, and so in all threads to come: the demo waits for them where it can stop.
    let mut interrupts = SigSet::empty();
    interrupts.add(Signal::SIGINT);
    interrupts.add(Signal::SIGTERM);
    interrupts.thread_block().expect("blocking signals");
    std::thread::spawn(move || {
        let _ = interrupts.wait();
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
    let keep = std::env::args().any(|argument| argument == "--keep");
    match demo(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(keep: bool) -> Result<()> {
    let site = Site::new()?;
    let backends: String = (1..)
        .zip(&site.vms)
        .map(|(number, vm)| {
            let address = vm.host.v4();
            format!("\n[[service.backend]]\nname = \"vm{number}\"\naddress = \"{address}\"\n")
        })
        .collect();
    let mut weir = Weir::start(&site.balancer, &format!("{CONFIG}{backends}"));
    weir.wait_serving("web");
    println!("A client network, a balancer and three VMs, each a network namespace of its own.");
    println!("$ weir status\n{}", weir.cli("status"));

    let mut load = Load::start(&site.client);
    equal(&weir, &load)?;
    weight(&weir, &load)?;
    failover(&site, &weir, &load)?;
    drain(&site, &weir, &load)?;
    restart(&mut weir, &load)?;
    load.stop();

    println!("\nAll five steps did what they say.\n");
    println!("What to try next:");
    println!("  cargo xtask demo --keep       leave this running, and play with the command line");
    println!("  cargo xtask bench --quick     what a packet costs");
    println!("  README.md                     the first real deployment");
    if keep {
        stay(&site, &weir);
    }
    Ok(())
}

/// Watches the load for a while; returns what came of it.
fn look(weir: &Weir<'_>, load: &Load) -> Result<Results> {
    let before = load.results();
    let mut table = Table::new(weir);
    let end = Instant::now() + LOOK;
    while Instant::now() < end {
        std::thread::sleep(LOOK / 8);
        ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        table.show(weir);
    }
    table.end();
    let results = load.results().since(&before);
    println!("{results}");
    Ok(results)
}

fn step(number: u32, what: &str) {
    println!("\n== {number}. {what}");
}

fn cli(weir: &Weir<'_>, command: &str) {
    println!("$ weir {command}\n{}", weir.cli(command).trim_end());
}

fn unharmed(results: &Results) -> Result<()> {
    ensure!(results.failed == 0, "{} requests failed", results.failed);
    ensure!(
        results.answered() > 100,
        "only {} requests were answered",
        results.answered()
    );
    Ok(())
}

fn shares(results: &Results, expected: [f64; 3]) -> Result<()> {
    for (number, expected) in (1..).zip(expected) {
        let share = results.share(&format!("vm{number}"));
        ensure!(
            (share - expected).abs() < 0.1,
            "vm{number} answered {:.0} % of the requests, expected about {:.0} %",
            100.0 * share,
            100.0 * expected
        );
    }
    Ok(())
}

fn equal(weir: &Weir<'_>, load: &Load) -> Result<()> {
    step(1, "Equal weights: each VM takes a third");
    let results = look(weir, load)?;
    unharmed(&results)?;
    shares(&results, [1.0 / 3.0; 3])
}

fn weight(weir: &Weir<'_>, load: &Load) -> Result<()> {
    step(2, "A weight is set, and the shares follow");
    cli(weir, "backend set-weight web vm1 300");
    let results = look(weir, load)?;
    unharmed(&results)?;
    shares(&results, [0.6, 0.2, 0.2])?;
    cli(weir, "backend set-weight web vm1 100");
    Ok(())
}

fn failover(site: &Site, weir: &Weir<'_>, load: &Load) -> Result<()> {
    step(
        3,
        "A VM is killed: suspect first, then dead, and the others take over",
    );
    let before = load.results();
    site.vms[2].kill();
    weir.wait_for("web", "vm3", "suspect");
    println!("vm3 is suspect: it gets no new flows");
    weir.wait_for("web", "vm3", "dead");
    let lost = load.results().since(&before).failed;
    println!("vm3 is dead: its flows are given up; {lost} requests failed until then");
    let results = look(weir, load)?;
    unharmed(&results)?;
    shares(&results, [0.5, 0.5, 0.0])?;
    site.vms[2].boot()?;
    weir.wait_for("web", "vm3", "up");
    println!("vm3 is up again");
    Ok(())
}

fn drain(site: &Site, weir: &Weir<'_>, load: &Load) -> Result<()> {
    step(4, "A VM is drained while a long download from it goes on");
    let download = load::Download::start(&site.client);
    let vm = download.vm().to_owned();
    println!(
        "a download of {} MiB has begun at {vm}",
        load::DOWNLOAD >> 20
    );
    cli(weir, &format!("backend drain web {vm}"));
    // A request that was under way may still end there.
    std::thread::sleep(Duration::from_millis(300));
    let results = look(weir, load)?;
    unharmed(&results)?;
    ensure!(
        results.share(&vm) == 0.0,
        "{vm} took new flows while it was drained"
    );
    ensure!(
        !download.ended(),
        "the download ended before it could be harmed"
    );
    let bytes = download.finish()?;
    println!("the download is complete: {bytes} bytes, none of them from elsewhere");
    cli(weir, &format!("backend undrain web {vm}"));
    Ok(())
}

fn restart(weir: &mut Weir<'_>, load: &Load) -> Result<()> {
    step(5, "The daemon is killed and started again under load");
    let before = load.results();
    weir.end(Signal::SIGKILL);
    println!("the daemon is gone; the kernel goes on alone");
    std::thread::sleep(Duration::from_secs(2));
    let alone = load.results().since(&before);
    println!("{alone}");
    unharmed(&alone)?;
    weir.run();
    println!("a new daemon has taken over");
    let results = look(weir, load)?;
    unharmed(&results)?;
    if !weir.cli("audit").contains("are as they should be") {
        bail!("the maps are not as they should be");
    }
    cli(weir, "audit");
    Ok(())
}

/// Leaves everything running until the operator has seen enough.
fn stay(site: &Site, weir: &Weir<'_>) {
    println!("\nStill running. In another terminal (as root):");
    println!("  {}", weir.shown());
    println!(
        "  nsenter --net={} curl -s http://{VIP}/",
        site.client.netns.path().display()
    );
    println!("Ctrl-C ends it and cleans up.");
    while !INTERRUPTED.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK / 8);
    }
}
