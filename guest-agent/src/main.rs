//! `peapod-agent`: what it is depends on who started it.

use std::path::Path;
use std::process::ExitCode;

use guest_agent::{cli, init, service, userdata};

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let called = Path::new(&called).file_name().unwrap_or_default();
    if let Some(status) = cli::run(&called.to_string_lossy()) {
        return status;
    }
    let role = std::env::args().nth(1);
    match (std::process::id(), role.as_deref()) {
        (1, _) => init::run(),
        (_, Some("service")) => service::run(),
        (_, Some("apply")) => userdata::run_alone(),
        (_, Some("--version")) => {
            println!("peapod-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "usage: peapod-agent service | apply | --version\n\
                 apply does what the seed of this root asks for, and no more.\n\
                 As process 1 it is the /init of an initramfs and takes no arguments."
            );
            ExitCode::from(2)
        }
    }
}
