//! A guest behind a pod: a VM where `PEAPOD_GUEST` is `vm`, else a network namespace of its own,
//! which needs no KVM. A test asks of it only what both can do: to run a script.

use std::fmt::Debug;

use super::Pod;
use super::machine::Machine;
use super::namespace::Namespace;

/// What has the guest's own kernel.
pub(super) trait Kernel: Debug + Send {
    /// Starts what connects it to a pod, and waits until it has its addresses.
    fn connect(&mut self, pod: &Pod);
    /// Kills that, as if it had crashed; whether the guest's programs go on.
    fn crash(&mut self) -> bool;
    /// What a script of bash prints.
    fn run(&self, script: &str) -> String;
    /// Its network's counters, as Prometheus reads them.
    fn metrics(&self) -> String;
}

/// A guest with its network in a pod; ends with this.
#[derive(Debug)]
pub struct Guest {
    kernel: Box<dyn Kernel>,
    /// What it serves, until it ends.
    served: Vec<String>,
    /// Whether it was started anew since, and serves nothing.
    anew: bool,
}

impl Guest {
    /// Starts one that asks by DHCP, with these ports of its published, in that pod.
    pub fn start(pod: &Pod, ports: &[u16]) -> Self {
        let kernel: Box<dyn Kernel> = if is_vm() {
            Box::new(Machine::new(ports))
        } else {
            Box::new(Namespace::new(ports))
        };
        let mut guest = Self {
            kernel,
            served: Vec::new(),
            anew: false,
        };
        guest.connect(pod);
        guest
    }

    /// Starts the network, where it is not there, and with it what the guest served.
    pub fn connect(&mut self, pod: &Pod) {
        self.kernel.connect(pod);
        if std::mem::take(&mut self.anew) {
            for script in &self.served {
                self.kernel.run(script);
            }
        }
    }

    /// Kills what connects it, as if that had crashed. Of a namespace the programs go on.
    pub fn crash(&mut self) {
        self.anew = !self.kernel.crash();
    }

    /// What a script of bash prints.
    pub fn run(&self, script: &str) -> String {
        self.kernel.run(script)
    }

    /// How many bytes of payload it has sent from a published port.
    pub fn sent(&self, port: u16) -> u64 {
        let port = format!("\"0.0.0.0:{port}\"");
        let metrics = self.kernel.metrics();
        let sample = metrics.lines().find(|line| {
            line.contains("net_forward_bytes_total{")
                && line.contains(&port)
                && line.contains("direction=\"out\"")
        });
        let value = sample.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_default()
    }

    /// Starts a program that is given as Ruby's text, and goes on with the guest.
    pub fn serve(&mut self, ruby: &str, arguments: &str) {
        let script = format!(
            "setsid ruby - {arguments} >/dev/null 2>&1 <<'end-of-program' &\n{ruby}\nend-of-program"
        );
        self.kernel.run(&script);
        self.served.push(script);
    }
}

/// Whether guests are VMs.
pub fn is_vm() -> bool {
    std::env::var_os("PEAPOD_GUEST").is_some_and(|kind| kind == "vm")
}
