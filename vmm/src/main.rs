//! `peapod`: parses, calls, and ends with the status that tells what happened.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use clap::Parser;
use peapod::api::door::Door;
use peapod::cli::{self, Cli, Command, complain, status, vms};
use peapod::plan::Plan;

fn main() -> ExitCode {
    let cli = Cli::parse_from(cli::called_as(std::env::args_os()));
    cli::start_log(&cli);
    ExitCode::from(match &cli.command {
        Command::Run(args) => run(args),
        Command::Launch(args) => launch(args),
        Command::Pod(args) => pod(args),
        Command::Validate(args) => cli::validate::validate(args),
        Command::Explain(args) => match cli::explain::page(args) {
            Ok(page) => printed(cli::explain::print(&page)),
            Err(error) => {
                complain(&error);
                status::BAD_INPUT
            }
        },
        Command::Schema => printed(cli::explain::schema()),
        Command::Completions(args) => printed(cli::manual::completions(args)),
        Command::Man(args) => done(cli::manual::man(args)),
        Command::BootEntries(args) => boot_entries(args),
        Command::Doctor(args) => doctor(args),
        Command::Ps { json } => about(vms::ps(*json)),
        Command::Status(vm) => about(vms::status(vm)),
        Command::Stop(args) => about(vms::stop(args)),
        Command::Kill(vm) => about(vms::kill(vm)),
        Command::Pause(vm) => about(vms::pause(vm)),
        Command::Resume(vm) => about(vms::resume(vm)),
        Command::Snapshot(args) => about(cli::snapshot::snapshot(args)),
        Command::Restore(args) => restore(args),
        Command::Balloon(args) => about(vms::balloon(args)),
        Command::Exec(args) => cli::exec::exec(args).unwrap_or_else(|error| {
            complain(&error);
            status::NOT_RUN
        }),
        Command::Cp(args) => about(cli::cp::cp(args)),
        Command::GuestInfo(asked) => about(cli::guest::info(asked)),
        Command::Freeze(args) => about(cli::guest::freeze(args)),
        Command::Thaw(vm) => about(cli::guest::thaw(vm)),
        Command::Credentials(what) => about(cli::guest::credentials(what)),
        Command::VirtProbe(args) => probe(args),
        Command::VirtTail(args) => done(cli::programs::tail::follow(args)),
        Command::ContainerDisk(args) => done(cli::programs::container_disk::stay(args)),
        Command::CopyFile(args) => done(cli::programs::copy::copy(args)),
        Command::Console(vm) => about(vms::console(vm)),
        Command::Logs(args) => about(vms::logs(args)),
        Command::Port(port) => about(vms::port(port)),
        Command::Flows(args) => about(vms::flows(args)),
        Command::Capture(capture) => about(vms::capture(capture)),
        Command::Metrics(asked) => about(vms::metrics(asked)),
    })
}

fn run(args: &cli::run::Args) -> u8 {
    match cli::run::prepare(args) {
        Ok(_) if args.dry_run => status::OK,
        Ok(plan) => carry_out(plan, None).0,
        Err(e) => {
            complain(&e);
            status::BAD_INPUT
        }
    }
}

fn restore(args: &cli::snapshot::Restore) -> u8 {
    match cli::snapshot::restore(args) {
        Ok(plan) => carry_out(plan, None).0,
        Err(e) => {
            complain(&e);
            status::BAD_INPUT
        }
    }
}

fn launch(args: &cli::launch::Args) -> u8 {
    cli::launch::reap_orphans();
    let last = cli::launch::LastWord::at(&args.termination_log);
    let (status, why) = match cli::launch::prepare(args) {
        Ok(Some((plan, door))) => carry_out(plan, door),
        Ok(None) => (status::OK, "stopped before there was a VMI".to_owned()),
        Err(e) => {
            complain(&e);
            (status::BAD_INPUT, e.to_string())
        }
    };
    last.say(&why);
    cli::launch::quit_sidecar();
    status
}

/// Runs a VM to its end: the status for that, and the reason in words.
fn carry_out(plan: Plan, door: Option<Door>) -> (u8, String) {
    match peapod::launch::launch(plan, door) {
        Ok(outcome) => {
            if outcome.is_failure() {
                complain(&outcome);
            }
            (cli::exit_status(&outcome), outcome.to_string())
        }
        Err(e) => {
            complain(&e);
            let bad = e.is_bad_input();
            let status = if bad {
                status::BAD_INPUT
            } else {
                status::FAILURE
            };
            (status, e.to_string())
        }
    }
}

/// Of a job that is done or not.
fn done(result: Result<(), String>) -> u8 {
    match result {
        Ok(()) => status::OK,
        Err(error) => {
            complain(&error);
            status::FAILURE
        }
    }
}

/// A probe's status is that of the guest's program.
fn probe(args: &cli::programs::probe::Args) -> u8 {
    match cli::programs::probe::ask(args) {
        Ok(ended) => {
            // Whoever closed the pipe has read enough.
            let _ = std::io::stdout().write_all(ended.output.as_bytes());
            u8::try_from(ended.status).unwrap_or(status::FAILURE)
        }
        Err(error) => {
            complain(&error);
            status::FAILURE
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
                vms::Error::Find(_) | vms::Error::Sides => status::BAD_INPUT,
                _ => status::FAILURE,
            }
        }
    }
}

fn pod(args: &cli::pod::Args) -> u8 {
    match cli::pod::objects(args) {
        Ok(objects) => printed(cli::pod::print(args, &objects)),
        Err(e) => {
            complain(&e);
            status::BAD_INPUT
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
