use std::io::{IsTerminal as _, stderr};

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;

use super::arguments::LogFormat;

/// Starts logging to standard error.
pub fn start(format: LogFormat, level: &str) -> Result<()> {
    let filter = EnvFilter::builder().parse(level).with_context(|| {
        format!("--log-level \"{level}\": allowed is error, warn, info, debug, or a filter")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}
