//! The real Envoy, as a process of a pod.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::{Pod, User};
use crate::space::{Process, Space};
use crate::until;

/// The port of its administration, on the pod's loopback.
pub const ADMIN: u16 = 15000;

/// An Envoy; ends with this.
#[derive(Debug)]
pub struct Envoy {
    space: Arc<Space>,
    process: Process,
}

/// Where its program is: `PEAPOD_ENVOY`.
pub fn program() -> PathBuf {
    std::env::var_os("PEAPOD_ENVOY")
        .expect("PEAPOD_ENVOY is not set: PEAPOD_ENVOY=$(ci/envoy)")
        .into()
}

impl Envoy {
    /// Starts one and waits until it serves what `bootstrap` says. Its log is in /run.
    pub fn start(pod: &Pod, user: User, bootstrap: &Value) -> Self {
        let base = format!("/run/{}.envoy", pod.space.name);
        fs::write(format!("{base}.json"), bootstrap.to_string()).unwrap();
        let mut command = pod.command(user, program().to_str().unwrap());
        command.args(["-c", &format!("{base}.json"), "-l", "error"]);
        command.args("--disable-hot-restart --concurrency 1".split(' '));
        command.stderr(File::create(format!("{base}.log")).unwrap());
        let mut envoy = Self {
            space: Arc::clone(&pod.space),
            process: Process::start(&mut command).unwrap(),
        };
        until("Envoy does not come up", || {
            if envoy.process.ended() {
                panic!("{}", fs::read_to_string(format!("{base}.log")).unwrap());
            }
            (envoy.ask("ready").as_deref() == Some("LIVE\n")).then_some(())
        });
        envoy
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What its administration answers.
    fn ask(&self, path: &str) -> Option<String> {
        let url = format!("http://{}:{ADMIN}/{path}", Ipv4Addr::LOCALHOST);
        let ask = || ureq::get(url).call()?.body_mut().read_to_string();
        self.space.inside(ask).ok()?.ok()
    }

    /// What it has counted by that name.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let all = self.ask("stats").expect("Envoy does not answer");
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok();
        all.lines()
            .find_map(value)
            .unwrap_or_else(|| panic!("Envoy has no {name}"))
    }
}
