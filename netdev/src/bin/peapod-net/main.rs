//! `peapod-net`: the network without the VM, for another network namespace or another VMM.

mod args;
mod client;
mod passt;
mod run;
mod server;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Error, Parser};

/// The name under which it takes passt's options.
const PASST: &str = "passt";

/// Why it ends, where that is not because it was told to.
#[derive(Debug)]
pub enum Failure {
    /// The input is wrong, and nothing was started.
    Input(String),
    /// Something went wrong later.
    Runtime(String),
}

impl Failure {
    /// An input that is wrong, for that reason.
    pub fn input(reason: impl ToString) -> Self {
        Self::Input(reason.to_string())
    }

    /// Something that went wrong, for that reason.
    pub fn runtime(reason: impl ToString) -> Self {
        Self::Runtime(reason.to_string())
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    if called.is_some_and(|name| name == PASST) {
        return match passt::Args::try_parse_from(arguments) {
            // As passt does, it tells nothing apart.
            Ok(args) => end(PASST, passt::run(&args), 1, 1),
            Err(error) => usage(PASST, &error, 1),
        };
    }
    match args::Args::try_parse_from(arguments) {
        Ok(args) => match args.command {
            Some(args::Command::Control(control)) => end("peapod-net", client::run(&control), 2, 1),
            None => end("peapod-net", run::run(&args.network), 2, 1),
        },
        Err(error) => usage("peapod-net", &error, 2),
    }
}

fn end(name: &str, result: Result<(), Failure>, input: u8, runtime: u8) -> ExitCode {
    let (reason, status) = match result {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Input(reason)) => (reason, input),
        Err(Failure::Runtime(reason)) => (reason, runtime),
    };
    eprintln!("{name}: {reason}");
    ExitCode::from(status)
}

/// Says in one line what is wrong with the command line; or shows what was asked for.
fn usage(name: &str, error: &Error, status: u8) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Whoever closed the pipe has read enough.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("{name}: {}", one_line(&error.to_string()));
    ExitCode::from(status)
}

/// The first paragraph of a message of clap's, which says what is wrong.
fn one_line(text: &str) -> String {
    let first = text.trim_start_matches("error: ").lines();
    let words = first.take_while(|line| !line.trim().is_empty());
    words.map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_command_line_is_one_line() {
        for (line, wrong) in [
            ("", "<--netns <PATH|PID>|--vhost-user <SOCKET>>"),
            ("--netns 1 --vhost-user x", "cannot be used with"),
            ("--netns 1 --mtu 100", "'100' for '--mtu"),
            ("--netns 1 --publish 80", "HOSTPORT"),
            ("--vhost-user x --config-net", "cannot be used with"),
            ("--netns 1 -4 -6", "cannot be used with"),
            ("--netns 1 --deny 10.0.0.0/33", "is not a network"),
            ("--netns 1 --rate-in 5", "65536"),
            ("control", "requires a subcommand"),
            ("control x frobnicate", "frobnicate"),
            ("control x capture", "requires a subcommand"),
        ] {
            let words = ["peapod-net"].into_iter().chain(line.split_whitespace());
            let error = args::Args::try_parse_from(words).unwrap_err();
            let text = one_line(&error.to_string());
            assert!(
                text.contains(wrong) && !text.contains('\n'),
                "{line}: {text}"
            );
        }
    }

    #[test]
    fn the_command_lines_are_sound() {
        use clap::CommandFactory;
        args::Args::command().debug_assert();
        passt::Args::command().debug_assert();
    }
}
