#![expect(clippy::print_stdout, reason = "the command's answer")]

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::arguments::DecapCommand;
use crate::decap::{self, Options};
use crate::spec::InterfaceSpec;

/// Carries out a command of `weir decap`.
pub fn run(command: DecapCommand, json: bool) -> Result<ExitCode> {
    match command {
        DecapCommand::Attach {
            interface,
            mode,
            address,
            gue_port,
            pins,
        } => {
            let spec = InterfaceSpec {
                name: interface,
                mode: Some(mode),
            };
            let (interface, checked) = match spec.to_model() {
                Ok(checked) => checked,
                Err(errors) => {
                    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    bail!("{}", errors.join("\n"));
                }
            };
            let options = Options {
                mode: checked.mode,
                addresses: address,
                gue_port,
            };
            let (attached, addresses) = decap::attach(&pins, &interface, &options)?;
            let mode = attached.mode.as_str();
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            println!(
                "{interface}: unwraps IPIP and GUE (port {gue_port}) for {}, in {mode} mode",
                addresses.join(", ")
            );
        }
        DecapCommand::Detach { interface, pins } => {
            if !decap::detach(&pins, &interface)? {
                bail!("interface \"{interface}\": nothing was attached");
            }
            println!("{interface}: unwraps no more");
        }
        DecapCommand::Status { pins } => {
            let mut all = BTreeMap::new();
            for interface in decap::interfaces(&pins)? {
                let counters = decap::counters(&pins, &interface)?;
                let counters: BTreeMap<&str, u64> = counters
                    .iter()
                    .map(|(outcome, count)| (outcome.as_str(), *count))
                    .collect();
                all.insert(interface, counters);
            }
            if json {
                println!("{}", serde_json::to_string_pretty(&all)?);
            } else if all.is_empty() {
                println!("nothing is attached");
            } else {
                for (interface, counters) in all {
                    println!("{interface}");
                    for (outcome, count) in counters.into_iter().filter(|(_, count)| *count > 0) {
                        println!("  {outcome:<16} {count}");
                    }
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
