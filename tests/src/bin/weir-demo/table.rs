use std::io::{IsTerminal as _, stdout};

use lb_tests::weir::Weir;
use serde_json::Value;

/// A live table of the VMs' counters since it began.
pub struct Table {
    before: Value,
    /// The lines on the screen, to be written over.
    shown: String,
    live: bool,
}

impl Table {
    /// Begins a table.
    pub fn new(weir: &Weir<'_>) -> Self {
        Self {
            before: weir.service("web"),
            shown: String::new(),
            live: stdout().is_terminal(),
        }
    }

    /// Shows the counters as they are now; on a terminal over the last ones.
    pub fn show(&mut self, weir: &Weir<'_>) {
        let text = self.text(&weir.service("web"));
        if self.live {
            if !self.shown.is_empty() {
                print!("\x1b[{}A", self.shown.lines().count());
            }
            print!("{text}");
        }
        self.shown = text;
    }

    /// Ends the table: what was shown last stays.
    pub fn end(&self) {
        if !self.live {
            print!("{}", self.shown);
        }
    }

    fn text(&self, now: &Value) -> String {
        let mut text = format!(
            "{:<6} {:<9} {:>6} {:>9} {:>10} {:>9} {:>7}\n",
            "VM", "STATE", "WEIGHT", "PACKETS", "BYTES", "FLOWS", "SHARE"
        );
        let grown = |backend: &Value, field: &str| {
            let count = |service: &Value| -> Option<u64> {
                let backends = service["backends"].as_array()?;
                let found = backends
                    .iter()
                    .find(|other| other["name"] == backend["name"])?;
                found[field].as_u64()
            };
            count(now).unwrap_or(0) - count(&self.before).unwrap_or(0)
        };
        let backends: Vec<&Value> = now["backends"].as_array().into_iter().flatten().collect();
        let total: u64 = backends
            .iter()
            .map(|backend| grown(backend, "new_flows"))
            .sum();
        for backend in backends {
            let flows = grown(backend, "new_flows");
            text += &format!(
                "{:<6} {:<9} {:>6} {:>9} {:>10} {:>9} {:>5.1} %\n",
                backend["name"].as_str().unwrap_or("?"),
                backend["state"].as_str().unwrap_or("?"),
                backend["weight"],
                grown(backend, "packets"),
                grown(backend, "bytes"),
                flows,
                100.0 * flows as f64 / total.max(1) as f64,
            );
        }
        text
    }
}
