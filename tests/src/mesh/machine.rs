//! A VM as a pod's guest.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::guest::Kernel;
use super::pod::attempt;
use super::{Pod, User};
use crate::{Manifest, PATIENCE, Vm, peapod};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// It ends with this.
#[derive(Debug)]
pub struct Machine {
    vm: Option<Vm>,
    ports: Vec<u16>,
    directory: TempDir,
}

impl Machine {
    /// One that is not started yet.
    pub fn new(ports: &[u16]) -> Self {
        Self {
            vm: None,
            ports: ports.to_owned(),
            directory: tempfile::tempdir().unwrap(),
        }
    }
}

impl Kernel for Machine {
    fn connect(&mut self, pod: &Pod) {
        let name = format!("guest-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let manifest = Manifest::new(&name, "true\n").write(self.directory.path());
        let mut command = pod.command(User::Root, peapod().to_str().unwrap());
        command.arg("run");
        for port in &self.ports {
            // A laptop's VM would only have them on its loopback.
            command.arg(format!("-p0.0.0.0:{port}:{port}"));
            command.arg(format!("-p[::]:{port}:{port}"));
        }
        command.arg("--state-dir").arg(self.directory.path());
        let vm = Vm::start(command.arg(manifest));
        // A second of a real machine is ten of the lab's, and its proxies start meanwhile.
        vm.wait_log("ready", 5 * PATIENCE);
        self.vm = Some(vm);
    }

    /// Nothing of it is left.
    fn crash(&mut self) -> bool {
        self.vm = None;
        false
    }

    fn run(&self, script: &str) -> String {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "300"]).arg(peapod());
        command
            .arg("exec")
            .arg(self.directory.path())
            .args(["--", "timeout"]);
        attempt(command, script).0
    }

    fn metrics(&self) -> String {
        let mut command = Command::new(peapod());
        let output = command.arg("metrics").arg(self.directory.path()).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }

    fn network(&self) -> u32 {
        self.vm.as_ref().unwrap().pid()
    }
}
