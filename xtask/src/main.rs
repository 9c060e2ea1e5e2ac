//! The developer's commands. `cargo xtask --help` lists them.

mod lint;
mod run;
mod setup;
mod test;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use setup::Purpose;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The developer's commands of Weir")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing need; says what and why. A second run finds nothing to do
    Setup {
        /// Only report what is missing; fail if anything is
        #[arg(long)]
        check: bool,
        /// Only what a build needs, not what tests and the demo need
        #[arg(long)]
        build_only: bool,
    },
    /// Build the binary `weir`
    Build {
        /// Optimise
        #[arg(long)]
        release: bool,
    },
    /// Set up, then run every test; ends with `N passed, N failed`
    Test {
        /// Only the tests that need no root
        #[arg(long)]
        unprivileged: bool,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Check formatting, and all crates with clippy, warnings being errors
    Lint,
    /// Set up, then show the balancer at work on this machine, in namespaces of its own
    Demo {
        /// Leave it running to play with
        #[arg(long)]
        keep: bool,
    },
    /// Set up, then hold the XDP program against a model of it on random packets
    #[command(disable_help_flag = true)]
    Fuzz {
        /// Options of the fuzzer: `--seconds N`, `--seed S`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Set up, then measure the XDP program; `cargo xtask bench --help` shows the options
    #[command(disable_help_flag = true)]
    Bench {
        /// Options of the benchmark
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    run::find_installed_programs();
    match carry_out(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever RUST_BACKTRACE says.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(command: Command) -> Result<()> {
    match command {
        Command::Setup { check, build_only } => {
            let purpose = if build_only {
                Purpose::Build
            } else {
                Purpose::Test
            };
            setup::run(check, purpose)
        }
        Command::Build { release } => {
            setup::run(false, Purpose::Build)?;
            tools::weir(release).map(drop)
        }
        Command::Test {
            unprivileged,
            filter,
        } => test::run(unprivileged, filter.as_deref()),
        Command::Lint => lint::run(),
        Command::Demo { keep } => tools::demo(keep),
        Command::Fuzz { arguments } => tools::fuzz(&arguments),
        Command::Bench { arguments } => tools::bench(&arguments),
    }
}
