//! The command line: `weir run` is the daemon, every other command is its client.

mod arguments;
mod commands;
mod decap;
mod detach;
mod guard;
mod log;
mod tables;
mod watch;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use arguments::{Arguments, Command};

/// Runs the command line. Exit codes: 0 done, 1 refused or failed, 2 not understood.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the command's answer")]
            {
                eprintln!("weir: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    // One thread: the event loop never waits for anything but events.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let command = arguments.command;
    if let Command::Run {
        config,
        log_format,
        log_level,
    } = command
    {
        log::start(log_format, &log_level)?;
        runtime.block_on(crate::daemon::run(&config))?;
        return Ok(ExitCode::SUCCESS);
    }
    end_with_the_reader();
    if let Command::Check { file } = command {
        return commands::check(&file);
    }
    if let Command::Decap(command) = command {
        return decap::run(command, arguments.json);
    }
    if let Command::Detach {
        interface: None,
        config,
        pins,
        ..
    } = command
    {
        return detach::all(&arguments.socket, config.as_deref(), pins);
    }
    let client = crate::api::Client::new(&arguments.socket);
    runtime.block_on(commands::run(&client, command, arguments.json))
}

/// Makes a command that writes into a pipe nobody reads any more, as in `weir stats --watch | head`,
/// end without a word, as others do. Rust starts programs with the signal ignored.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
