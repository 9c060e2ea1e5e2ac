//! The developer commands: setup, test, demo, bench.
fn main() {}
