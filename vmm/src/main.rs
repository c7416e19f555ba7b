//! `peapod`: parses, calls, and ends with the status that tells what happened.

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use peapod::cli::{self, Cli, Command, complain, status, vms};
use peapod::plan::Outcome;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::start_log(&cli);
    ExitCode::from(match &cli.command {
        Command::Run(args) => run(args),
        Command::BootEntries(args) => boot_entries(args),
        Command::Doctor(args) => doctor(args),
        Command::Ps { json } => about(vms::ps(*json)),
        Command::Status(vm) => about(vms::status(vm)),
        Command::Stop(args) => about(vms::stop(args)),
        Command::Kill(vm) => about(vms::kill(vm)),
        Command::Pause(vm) => about(vms::pause(vm)),
        Command::Resume(vm) => about(vms::resume(vm)),
        Command::Console(vm) => about(vms::console(vm)),
        Command::Logs(args) => about(vms::logs(args)),
        Command::Port(port) => about(vms::port(port)),
        Command::Flows(args) => about(vms::flows(args)),
        Command::Capture(capture) => about(vms::capture(capture)),
        Command::Metrics(asked) => about(vms::metrics(asked)),
    })
}

fn run(args: &cli::run::Args) -> u8 {
    let plan = match cli::run::prepare(args) {
        Ok(plan) => plan,
        Err(e) => {
            complain(&e);
            return status::BAD_INPUT;
        }
    };
    if args.dry_run {
        return status::OK;
    }
    match peapod::launch::launch(plan) {
        Ok(outcome) => {
            match &outcome {
                Outcome::Crashed(why) => complain(&format!("the guest crashed: {why}")),
                Outcome::Panicked(last) => {
                    complain(&format!(
                        "the guest's kernel panicked; last on its console:\n{last}"
                    ));
                }
                Outcome::PoweredOff | Outcome::Rebooted | Outcome::Forced => {}
            }
            cli::exit_status(&outcome)
        }
        Err(e) => {
            complain(&e);
            if e.is_bad_input() {
                status::BAD_INPUT
            } else {
                status::FAILURE
            }
        }
    }
}

/// Of a command about VMs that run.
fn about(result: Result<(), vms::Error>) -> u8 {
    match result {
        Ok(()) => status::OK,
        Err(error) => {
            complain(&error);
            match error {
                vms::Error::Find(_) => status::BAD_INPUT,
                _ => status::FAILURE,
            }
        }
    }
}

fn boot_entries(args: &cli::boot_entries::Args) -> u8 {
    match cli::boot_entries::find(args) {
        Ok(disk) => printed(cli::boot_entries::print(&disk)),
        Err(e) => {
            complain(&e);
            status::BAD_INPUT
        }
    }
}

/// The status once something was printed.
fn printed(result: std::io::Result<()>) -> u8 {
    match result {
        Ok(()) => status::OK,
        // Whoever closed the pipe has read enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => status::FAILURE,
        Err(e) => {
            complain(&e);
            status::FAILURE
        }
    }
}

fn doctor(args: &cli::doctor::Args) -> u8 {
    let report = match cli::doctor::report(args) {
        Ok(report) => report,
        Err(e) => {
            complain(&e);
            return status::BAD_INPUT;
        }
    };
    match printed(cli::doctor::print(&report, args.json)) {
        status::OK if !report.ok => status::FAILURE,
        status => status,
    }
}
