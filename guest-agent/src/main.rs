//! `peapod-agent`: what it is depends on who started it.

use std::path::Path;
use std::process::ExitCode;

use guest_agent::guest::guard;
use guest_agent::init::{self, ahead};
use guest_agent::{cli, heap, netconfig, service, userdata};

fn main() -> ExitCode {
    heap::share();
    let path = std::env::args_os().next().unwrap_or_default();
    let called = Path::new(&path).file_name().unwrap_or_default();
    if let Some(status) = cli::run(&called.to_string_lossy()) {
        return status;
    }
    let role = std::env::args().nth(1);
    match (std::process::id(), role.as_deref()) {
        (1, _) if path == ahead::PROGRAM => ahead::run(),
        (1, _) => init::run(),
        (_, Some(ahead::FOLLOW)) => ahead::follow(),
        (_, Some(guard::GUARD)) => guard::run(std::env::args_os().skip(2)),
        (_, Some("service")) => service::run(),
        (_, Some("network")) => netconfig::run(),
        (_, Some("apply")) => userdata::run_alone(),
        (_, Some("render")) => render(),
        (_, Some("--version")) => {
            println!("peapod-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!(
                "usage: peapod-agent service | network | apply | render FILE RENDERER FOLDER | --version\n\
                 network writes the seed's network-config for what brings up this root's network;\n\
                 render writes what it would for FILE and RENDERER (netplan, networkd,\n\
                 network-manager, eni) below FOLDER.\n\
                 apply does what else the seed asks for, and no more.\n\
                 As process 1 it is the /init of an initramfs and takes no arguments."
            );
            ExitCode::from(2)
        }
    }
}

fn render() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let [file, renderer, folder] = &words[..] else {
        eprintln!("usage: peapod-agent render FILE RENDERER FOLDER");
        return ExitCode::from(2);
    };
    match netconfig::render_into(file, renderer, Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("peapod-agent: {why}");
            ExitCode::FAILURE
        }
    }
}
