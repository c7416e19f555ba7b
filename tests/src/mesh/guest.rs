//! A guest behind a pod: a VM where `PEAPOD_GUEST` is `vm`, else a network namespace of its own,
//! which needs no KVM. A test asks of it only what both can do: to run a script.

use std::fmt::Debug;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Pod;
use super::machine::Machine;
use super::namespace::Namespace;

/// What has the guest's own kernel.
pub(super) trait Kernel: Debug + Send + Sync {
    /// Starts what connects it to a pod, and waits until it has its addresses.
    fn connect(&mut self, pod: &Pod);
    /// Kills that, as if it had crashed; whether the guest's programs go on.
    fn crash(&mut self) -> bool;
    /// What a script of bash prints.
    fn run(&self, script: &str) -> String;
    /// Its network's counters, as Prometheus reads them.
    fn metrics(&self) -> String;
    /// The number of the process that connects it.
    fn network(&self) -> u32;
}

/// A guest with its network in a pod; ends with this.
#[derive(Debug)]
pub struct Guest {
    kernel: Box<dyn Kernel>,
    /// What it serves, until it ends.
    served: Vec<String>,
    /// Where in it they write what they say.
    log: String,
    /// Whether it was started anew since, and serves nothing.
    anew: bool,
}

/// Guests that are namespaces share their /run.
static COUNT: AtomicU32 = AtomicU32::new(0);

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
            log: format!("/run/served.{}", COUNT.fetch_add(1, Ordering::Relaxed)),
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

    /// What has been counted of a published port, by that name and that label's value.
    #[track_caller]
    pub fn forwarded(&self, name: &str, port: u16, label: &str) -> u64 {
        let port = format!("\"0.0.0.0:{port}\"");
        self.metric(&format!("net_forward_{name}"), &[&port, label])
    }

    /// Connections, datagrams' conversations and echoes that its network has open.
    #[track_caller]
    pub fn flows(&self) -> u64 {
        self.metric("net_flows", &[])
    }

    /// The value of the sample of that name that has these in its labels.
    #[track_caller]
    fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let metrics = self.kernel.metrics();
        let value = |line: &str| {
            let (sample, value) = line.rsplit_once(' ')?;
            let sample = sample.strip_prefix("peapod_")?.strip_prefix(name)?;
            let same = sample.is_empty() || sample.starts_with('{');
            let has = labels.iter().all(|label| sample.contains(label));
            (same && has).then(|| value.parse().ok())?
        };
        let found = metrics.lines().find_map(value);
        found.unwrap_or_else(|| panic!("the network has no {name} of {labels:?}: {metrics}"))
    }

    /// Descriptors that what connects it has open.
    pub fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.kernel.network());
        fs::read_dir(path).unwrap().count()
    }

    /// How many requests its programs have answered, as WEBrick logs them.
    #[track_caller]
    pub fn answered(&self) -> u64 {
        let said = self.run(&format!("grep -c '\" 200 ' {}", self.log));
        let count = said.trim().parse();
        count.unwrap_or_else(|_| panic!("the guest does not tell what it has answered: {said}"))
    }

    /// Starts a program that is given as Ruby's text, and goes on with the guest.
    pub fn serve(&mut self, ruby: &str, arguments: &str) {
        let log = &self.log;
        let script = format!(
            "setsid ruby - {arguments} >>{log} 2>&1 <<'end-of-program' &\n{ruby}\nend-of-program"
        );
        self.kernel.run(&script);
        self.served.push(script);
    }
}

/// Whether guests are VMs.
pub fn is_vm() -> bool {
    std::env::var_os("PEAPOD_GUEST").is_some_and(|kind| kind == "vm")
}
