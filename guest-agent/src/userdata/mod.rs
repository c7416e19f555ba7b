//! What cloud-init does with user-data: once an instance, or at every boot, in its order and under
//! its names below /var/lib/cloud.

mod command;
mod config;
mod context;
mod files;
mod instance;
mod instance_data;
mod jinja;
mod merge;
mod modules;
mod parts;
mod report;
mod stages;

use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::thread;

use crate::signals::Signals;
use crate::voice::Voice;
use crate::{children, seed};
use report::Report;

/// cloud-init's state.
const STATE: &str = "/var/lib/cloud";
/// What of it is of this boot only.
const RUN: &str = "/run/cloud-init";

/// Does what the seed asks for, then says that the guest is ready.
pub fn run(voice: &Voice) {
    apply(&Report::to(voice.clone()));
    voice.ready();
}

/// The same without a VMM, in the root that this process is in: `peapod-agent apply`.
pub fn run_alone() -> ExitCode {
    let signals = Signals::block(&[libc::SIGCHLD]);
    let (done, outcome) = channel();
    thread::spawn(move || {
        let report = Report::default();
        apply(&report);
        let _ = done.send(report.failed_at_all());
        // Wakes the thread that waits for children, the last time.
        let _ = rustix::process::kill_process(
            rustix::process::getpid(),
            rustix::process::Signal::CHILD,
        );
    });
    loop {
        signals.wait();
        let _ = children::reap();
        if let Ok(failed) = outcome.try_recv() {
            return if failed {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    }
}

fn apply(report: &Report) {
    let base = config::of_disk(report);
    match seed::find(&base) {
        Ok(Some(seed)) => stages::run(&seed, &base, report),
        Ok(None) => {}
        Err(why) => {
            report.failed("seed", &why);
            report.finish("None");
        }
    }
}
