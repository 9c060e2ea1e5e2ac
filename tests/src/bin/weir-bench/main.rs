//! The benchmark: what a packet costs in the loaded program, net of the harness, and what a weight
//! change costs in the daemon. Run by `cargo xtask bench`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is what it is for"
)]

mod cases;
mod control;
mod measure;
mod moves;
mod world;

use anyhow::{Context as _, Result, bail};
use lb_tests::driver::Driver;
use serde::Serialize;

use cases::Case;
use measure::measure;
use world::World;

/// Flow counts to measure with.
const FLOWS: [u32; 5] = [1, 1 << 14, 1 << 17, 1 << 20, 1 << 22];

#[derive(Serialize)]
struct Report {
    /// Verified instructions by program.
    instructions: Vec<(String, u32)>,
    cases: Vec<Measured>,
    control: control::Measured,
    /// Bytes of the kernel's maps for 1,000 services and 10,000 backends, with empty flow tables.
    memory: u64,
}

/// One case with one flow count: nanoseconds a packet, net of the harness.
#[derive(Serialize)]
struct Measured {
    case: String,
    flows: u32,
    min_ns: f64,
    median_ns: f64,
}

struct Options {
    json: bool,
    runs: usize,
    filter: String,
    flows: Vec<u32>,
}

const USAGE: &str = "\
cargo xtask bench [--json] [--quick] [--runs N] [--case TEXT] [--flows N,N,...]

  --json         for machines
  --quick        three flow counts, five runs
  --runs N       runs of each case; the table shows their minimum and median [default: 10]
  --case TEXT    only cases whose name contains this
  --flows N,...  flow counts, powers of two up to 4194304 [default: 1,16384,131072,1048576,4194304]";

fn options() -> Result<Option<Options>> {
    let mut options = Options {
        json: false,
        runs: 10,
        filter: String::new(),
        flows: FLOWS.to_vec(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .with_context(|| format!("{argument}: a value is missing"))
        };
        match argument.as_str() {
            "--help" | "-h" => return Ok(None),
            "--json" => options.json = true,
            "--quick" => {
                options.runs = 5;
                options.flows = vec![1, 1 << 17, 1 << 20];
            }
            "--runs" => options.runs = value()?.parse().context("--runs")?,
            "--case" => options.filter = value()?,
            "--flows" => {
                let flows = value()?;
                let flows: Result<Vec<u32>, _> = flows.split(',').map(str::parse).collect();
                options.flows = flows.context("--flows")?;
            }
            other => bail!("{other} is not known\n\n{USAGE}"),
        }
    }
    if options.runs == 0
        || options
            .flows
            .iter()
            .any(|n| !n.is_power_of_two() || *n > 1 << 22)
    {
        bail!("--runs must be at least 1, and flow counts powers of two up to 4194304");
    }
    Ok(Some(options))
}

fn main() -> Result<()> {
    let Some(options) = options()? else {
        println!("{USAGE}");
        return Ok(());
    };
    pin_to_one_cpu()?;
    let mut measured = Vec::new();
    let mut instructions = Vec::new();
    for case in Case::all() {
        if !case.name.contains(options.filter.as_str()) {
            continue;
        }
        // Every case begins with maps of its own: nothing of another is in the way.
        let mut world = World::new(&case)?;
        let mut drivers = [
            Driver::new(world.program_fd()?)?,
            Driver::of_stub(case.grow(), case.verdict())?,
        ];
        if instructions.is_empty() {
            instructions = world.instructions()?;
        }
        for &flows in &options.flows {
            if !case.flows.contains(&flows) {
                continue;
            }
            let times = measure(&case, &mut world, &mut drivers, flows, options.runs)?;
            let (min_ns, median_ns) = times.net();
            let row = Measured {
                case: case.name.clone(),
                flows,
                min_ns,
                median_ns,
            };
            if !options.json {
                eprintln!("{:<28} {:>9} {:>8.1}", row.case, row.flows, row.min_ns);
            }
            measured.push(row);
        }
    }
    let report = Report {
        instructions,
        cases: measured,
        control: control::measure(options.runs)?,
        memory: world::memory()?,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

fn print(report: &Report) {
    println!("\nnanoseconds a packet, net of the harness: minimum / median of all runs\n");
    let mut flows: Vec<u32> = report.cases.iter().map(|row| row.flows).collect();
    flows.sort_unstable();
    flows.dedup();
    print!("{:<28}", "flows");
    flows.iter().for_each(|flows| print!("{flows:>16}"));
    println!();
    let mut names: Vec<&str> = report.cases.iter().map(|row| row.case.as_str()).collect();
    names.dedup();
    for name in names {
        print!("{name:<28}");
        for flows in &flows {
            let row = report
                .cases
                .iter()
                .find(|row| row.case == name && row.flows == *flows);
            let cell = row.map_or("-".to_owned(), |row| {
                format!("{:.1} / {:.1}", row.min_ns, row.median_ns)
            });
            print!("{cell:>16}");
        }
        println!();
    }
    println!();
    for (program, instructions) in &report.instructions {
        println!("{program}: {instructions} instructions verified");
    }
    print!("{}", report.control);
    println!(
        "maps for 1,000 services and 10,000 backends, with empty flow tables: {:.1} MiB",
        report.memory as f64 / f64::from(1 << 20)
    );
}

/// Timings of two CPUs are not comparable.
fn pin_to_one_cpu() -> Result<()> {
    let mut one = nix::sched::CpuSet::new();
    one.set(nix::sched::sched_getcpu()?)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).context("pinning to a CPU")
}
