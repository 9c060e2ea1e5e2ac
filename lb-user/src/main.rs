//! `weir`: a layer-4 load balancer for virtual machines.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_user::cli::main()
}
