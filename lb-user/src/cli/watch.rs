#![expect(clippy::print_stdout, reason = "the command's answer")]

use std::io::{IsTerminal as _, stdout};
use std::time::{Duration, Instant};

use anyhow::Result;
use hyper::Method;

use super::tables::{self, Since};
use crate::api::{Client, Stats};

const PAUSE: Duration = Duration::from_secs(1);

/// Shows counters and rates every second, for good or `count` times.
pub async fn run(client: &Client, json: bool, count: Option<u64>) -> Result<()> {
    let mut before: Option<(Stats, Instant)> = None;
    let mut shown = 0;
    loop {
        let stats: Stats = client.send(Method::GET, "/v1/stats").await?;
        let now = Instant::now();
        if json {
            println!("{}", serde_json::to_string(&stats)?);
        } else {
            let since = before.as_ref().map(|(stats, at)| Since {
                stats,
                seconds: (now - *at).as_secs_f64(),
            });
            if stdout().is_terminal() {
                // Clear the screen, and begin at its top.
                print!("\x1b[2J\x1b[H");
            }
            println!("{}", tables::stats(&stats, since.as_ref()));
        }
        before = Some((stats, now));
        shown += 1;
        if Some(shown) == count {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
