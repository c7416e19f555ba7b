//! `peapod`: parses, calls, and ends with the status that tells what happened.

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use peapod::cli::{self, Cli, Command, complain, status};
use peapod::plan::Outcome;

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli::start_log(&cli);
    ExitCode::from(match &cli.command {
        Command::Run(args) => run(args),
        Command::Doctor(args) => doctor(args),
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
        return match plan.discard() {
            Ok(()) => status::OK,
            Err(e) => {
                complain(&e);
                status::FAILURE
            }
        };
    }
    match peapod::launch::launch(plan) {
        Ok(outcome) => {
            if let Outcome::Crashed(why) = &outcome {
                complain(&format!("the guest crashed: {why}"));
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

fn doctor(args: &cli::doctor::Args) -> u8 {
    let report = match cli::doctor::report(args) {
        Ok(report) => report,
        Err(e) => {
            complain(&e);
            return status::BAD_INPUT;
        }
    };
    match cli::doctor::print(&report, args.json) {
        Ok(()) if report.ok => status::OK,
        Ok(()) => status::FAILURE,
        // Whoever closed the pipe has read enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => status::FAILURE,
        Err(e) => {
            complain(&e);
            status::FAILURE
        }
    }
}
