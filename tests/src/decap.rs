//! A VM's `weir decap`: unwraps tunnels on its interface until it is dropped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::lan::Host;
use crate::netns::{must, pins};
use crate::weir::binary;

/// `weir decap`, attached in a VM's namespace.
pub struct Decap<'a> {
    vm: &'a Host,
    /// Where it pins its link and counters.
    pub pins: PathBuf,
}

impl<'a> Decap<'a> {
    /// Attaches it.
    pub fn attach(vm: &'a Host) -> Self {
        let decap = Self {
            vm,
            pins: pins("decap"),
        };
        must(decap.command("attach").arg("eth"));
        decap
    }

    /// Returns `weir decap VERB`, to be run in the VM.
    pub fn command(&self, verb: &str) -> Command {
        let binary = binary();
        let mut command = self.vm.netns.command(binary.to_str().unwrap());
        command
            .args(["--json", "decap", verb, "--pins"])
            .arg(&self.pins);
        command
    }

    /// Returns what it counted, by reason.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let output = must(&mut self.command("status"));
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        serde_json::from_value(status["eth"].clone()).unwrap()
    }
}

impl Drop for Decap<'_> {
    fn drop(&mut self) {
        let _ = self.command("detach").arg("eth").output();
    }
}
