//! What cloud-init does with user-data: once an instance, or at every boot, in its order and under
//! its names below /var/lib/cloud.

mod ahead;
pub(crate) mod command;
pub(crate) mod config;
mod context;
pub(crate) mod files;
mod instance;
mod instance_data;
mod jinja;
mod merge;
mod modules;
mod parts;
pub(crate) mod report;
mod stages;
mod time;

use std::fs;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::thread;

use crate::seed::Seed;
use crate::signals::Signals;
use crate::voice::Voice;
use crate::yaml::Node;
use crate::{children, seed, yaml};
use parts::Kind;
use report::Report;

pub use instance_data::variables;
pub use report::STAGES;
pub use time::rfc2822;

/// cloud-init's state.
const STATE: &str = "/var/lib/cloud";
/// What of it is of this boot only.
const RUN: &str = "/run/cloud-init";

/// What went wrong at this boot before there was anybody to hear of it, a line each.
pub const EARLIER: &str = "/run/peapod/network.failures";

/// Does to the network what the disk's configuration and the seed ask for, and says what went wrong.
pub type Network = fn(&Node, &Seed) -> Vec<String>;

/// Does what the seed asks for; to the network too where nobody else does.
pub fn run(voice: &Voice, network: Option<Network>) {
    apply(&Report::to(voice.clone()), network);
}

/// The same without a VMM, in the root that this process is in: `peapod-agent apply`.
pub fn run_alone() -> ExitCode {
    let signals = Signals::block(&[libc::SIGCHLD]);
    let (done, outcome) = channel();
    thread::spawn(move || {
        let report = Report::default();
        apply(&report, None);
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

fn apply(report: &Report, network: Option<Network>) {
    let earlier = fs::read_to_string(EARLIER).unwrap_or_default();
    for why in earlier.lines() {
        report.failed("network-config", why);
    }
    let base = config::of_disk(report);
    match seed::find(&base) {
        Ok(Some(seed)) => {
            for why in network
                .into_iter()
                .flat_map(|network| network(&base, &seed))
            {
                report.failed("network-config", &why);
            }
            stages::run(&seed, &base, report);
        }
        Ok(None) => {}
        Err(why) => {
            report.failed("seed", &why);
            report.finish("None");
        }
    }
}

/// What is wrong with user-data, as far as that can be told without doing what they say.
pub fn check(file: &str, data: &[u8]) -> Vec<String> {
    let mut wrong = Vec::new();
    let nothing = |_: &str, _| Ok(Vec::new());
    for part in parts::unpack(file, data, &nothing, &mut wrong) {
        match part.kind {
            Kind::Config => {
                let text = String::from_utf8_lossy(&part.content);
                match yaml::read(&part.place, &text) {
                    Ok(node) if node.map().is_none() && node.is_something() => {
                        wrong.push(node.wrong("", format!("a mapping, not {}", node.kind())));
                    }
                    Ok(node) => wrong.extend(modules::odd_keys(&node).map(|odd| odd.why)),
                    Err(why) => wrong.push(why),
                }
            }
            Kind::PartHandler => {
                wrong.push(format!("{}: #part-handler is not supported", part.place))
            }
            Kind::Other(kind) => wrong.push(format!("{}: {kind} is no user-data", part.place)),
            _ => {}
        }
    }
    wrong
}
