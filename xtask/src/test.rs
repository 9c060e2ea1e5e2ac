//! Running all layers of tests, and counting them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::run::{is_root, workspace};
use crate::setup::{self, Purpose};
use crate::tools;

/// Runs the tests. The last line of the output is `N passed, N failed`.
pub fn run(unprivileged: bool, filter: Option<&str>) -> Result<()> {
    if !unprivileged && !is_root() {
        bail!(
            "the tests load BPF programs and make network namespaces, which needs root: run \
             `sudo -E cargo xtask test`, or `cargo xtask test --unprivileged` for the others"
        );
    }
    let purpose = if unprivileged {
        Purpose::Build
    } else {
        Purpose::Test
    };
    setup::run(false, purpose)?;

    let mut counts = Counts::default();
    let mut broken = Vec::new();
    let mut layer = |name: &'static str, command: &mut Command| -> Result<()> {
        command.args(filter);
        if !count(command, &mut counts)? {
            broken.push(name);
        }
        Ok(())
    };
    let mut host = Command::new("cargo");
    // The default members: everything that needs no kernel.
    host.args(["test", "--no-fail-fast"]);
    layer("cargo test", &mut host)?;
    if !unprivileged {
        let weir = tools::weir(false)?;
        let mut kernel = Command::new("cargo");
        kernel.args(["test", "--no-fail-fast", "--package", "lb-tests"]);
        layer(
            "cargo test --package lb-tests",
            kernel.env("WEIR_BIN", weir),
        )?;
    }

    println!("\n{} passed, {} failed", counts.passed, counts.failed);
    if !broken.is_empty() {
        bail!("failed: {}", broken.join(", "));
    }
    if counts.ignored > 0 {
        bail!("{} tests were ignored: none may be", counts.ignored);
    }
    if counts.passed == 0 {
        bail!("no test ran: no name contains \"{}\"", filter.unwrap_or(""));
    }
    Ok(())
}

/// What `cargo test` reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    /// Adds what a line of the output says: `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some((_, result)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in result.split(';') {
            let mut words = part.split_whitespace();
            let number = words.next().and_then(|word| word.parse::<u64>().ok());
            match (number, words.next()) {
                (Some(number), Some("passed")) => self.passed += number,
                (Some(number), Some("failed")) => self.failed += number,
                (Some(number), Some("ignored")) => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs a command, showing and counting what it prints. Returns whether it succeeded.
fn count(command: &mut Command, counts: &mut Counts) -> Result<bool> {
    let mut child = command
        .current_dir(workspace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("running cargo")?;
    let output = child.stdout.take().context("cargo's output")?;
    for line in BufReader::new(output).lines() {
        let line = line.context("reading cargo's output")?;
        counts.add(&line);
        writeln!(std::io::stdout(), "{line}")?;
    }
    Ok(child.wait()?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_suites_are_summed() {
        let output = "\
running 2 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out; finished in 0.00s
test result: FAILED. 1 passed; 3 failed; 4 ignored; 0 measured; 0 filtered out; finished in 1.2s
test result: nonsense";
        let mut counts = Counts::default();
        output.lines().for_each(|line| counts.add(line));
        let expected = Counts {
            passed: 3,
            failed: 3,
            ignored: 4,
        };
        assert_eq!(counts, expected);
    }
}
