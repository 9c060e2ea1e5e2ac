//! The fuzzer: the loaded program against the oracle, for as long as one likes. Run by
//! `cargo xtask fuzz`. What fails becomes a regression that the suite replays for ever.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is what it is for"
)]

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use lb_tests::oracle::fuzz::Fuzz;
use lb_tests::oracle::install;
use lb_tests::oracle::regressions;
use nix::sys::signal::{SigSet, Signal};

const USAGE: &str = "\
cargo xtask fuzz [--seconds N] [--seed S]

  --seconds N  how long, 1 or more [default: 60]; it ends earlier on an interrupt
  --seed S     a number below 2^64: the same one tries the same cases in the same order
               [default: the time]

What the program and the model of it do not agree on is made as small as it can be and kept in
tests/regressions, which `cargo xtask test` replays.";

/// How many sorts of failures end a run.
const FAILURES: usize = 5;
/// How often it says how far it is.
const REPORT: Duration = Duration::from_secs(5);

struct Options {
    seconds: u64,
    seed: u64,
}

fn options() -> Result<Option<Options>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let mut options = Options {
        seconds: 60,
        seed: now.as_nanos() as u64,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || -> Result<u64> {
            let value = arguments
                .next()
                .with_context(|| format!("{argument}: a value is missing"))?;
            value
                .parse()
                .with_context(|| format!("{argument} {value}: not a number below 2^64"))
        };
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--seconds" => options.seconds = value()?,
            "--seed" => options.seed = value()?,
            _ => bail!("{argument}: no such option\n\n{USAGE}"),
        }
    }
    if options.seconds == 0 {
        bail!("--seconds 0: at least 1");
    }
    Ok(Some(options))
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Lets interrupts end the loop instead of the process, so that nothing stays behind.
fn watch_interrupts() -> Result<()> {
    let mut interrupts = SigSet::empty();
    interrupts.add(Signal::SIGINT);
    interrupts.add(Signal::SIGTERM);
    interrupts.thread_block()?;
    std::thread::spawn(move || {
        if interrupts.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

fn main() -> ExitCode {
    let failures = match options() {
        Ok(Some(options)) => watch_interrupts().and_then(|()| run(&options)),
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(error),
    };
    match failures {
        Ok(0) => ExitCode::SUCCESS,
        Ok(count) => {
            println!("{count} sorts of differences found");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("weir-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many differences were found.
fn run(options: &Options) -> Result<usize> {
    println!("seed {}", options.seed);
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    install::with_program(|installed| {
        let mut fuzz = Fuzz::new(options.seed);
        let mut failures = BTreeSet::new();
        let mut next_report = start + REPORT;
        loop {
            let now = Instant::now();
            let over =
                now >= end || INTERRUPTED.load(Ordering::Relaxed) || failures.len() >= FAILURES;
            if over || now >= next_report {
                report(&fuzz, now - start);
                next_report = now + REPORT;
            }
            if over {
                return Ok(failures.len());
            }
            if let Some(failure) = fuzz.step(installed)
                && failures.insert(failure.difference.sort())
            {
                println!("{}", failure.difference);
                let name = format!("found-{}-{}", options.seed, fuzz.cases);
                let path = regressions::keep(&name, &failure)?;
                println!("kept as {}", path.display());
            }
        }
    })
}

fn report(fuzz: &Fuzz, elapsed: Duration) {
    let rate = fuzz.frames as f64 / elapsed.as_secs_f64().max(0.001);
    println!(
        "{:>5} s: {} frames in {} cases ({rate:.0} frames/s), {} paths through the model over {} \
         edges, {} cases kept to mutate",
        elapsed.as_secs(),
        fuzz.frames,
        fuzz.cases,
        fuzz.paths(),
        fuzz.edges(),
        fuzz.corpus(),
    );
}
