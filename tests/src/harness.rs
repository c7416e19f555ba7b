//! A test binary that starts itself again in namespaces of its own, before there is any thread.

use std::io;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use crate::peapod_net;
use crate::space::{ENCLOSED, about, enclose};

/// A trial for each test of a module, under its name.
#[macro_export]
macro_rules! trials {
    ($($module:ident: $($test:ident)*),* $(,)?) => {
        vec![$($($crate::harness::trial(
            concat!(stringify!($module), "::", stringify!($test)), $module::$test
        ),)*)*]
    };
}

/// A trial that fails by panicking.
pub fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// Has all but the `quick` ones run only where slow ones are asked for.
pub fn slow_but(quick: &[&str], trials: Vec<Trial>) -> Vec<Trial> {
    let marked = trials.into_iter().map(|trial| {
        let slow = !quick.contains(&trial.name());
        trial.with_ignored_flag(slow)
    });
    marked.collect()
}

/// Runs them as root with peapod-net, as the command line says, which is libtest's.
pub fn run(name: &str, trials: Vec<Trial>) -> ExitCode {
    if let Err(error) = start() {
        eprintln!("{name}: {error}");
        return ExitCode::from(2);
    }
    let words = std::env::args().filter(|word| word != ENCLOSED);
    libtest_mimic::run(&Arguments::from_iter(words), trials).exit_code()
}

/// What every test needs.
fn start() -> io::Result<()> {
    enclose()?;
    let network = peapod_net();
    let what = format!("{}: cargo build -p netdev", network.display());
    std::fs::metadata(network)
        .map(drop)
        .map_err(|error| about(&what, error))
}
