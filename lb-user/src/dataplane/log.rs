//! Log lines of the program, one a packet. Only in builds with the feature `log`, for debugging.

use std::time::Duration;

use aya::Ebpf;
use aya_log::{EbpfLogger, Error};

/// Passes the program's log lines on to the daemon's log, at level debug.
pub fn start(ebpf: &mut Ebpf) -> Result<(), Error> {
    let mut logger = EbpfLogger::init(ebpf)?;
    std::thread::spawn(move || {
        loop {
            logger.flush();
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    Ok(())
}
