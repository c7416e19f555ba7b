//! A node of the cluster: pods hang on it by veth pairs, it routes between them and to the world,
//! and kube-proxy's rules and the cluster's DNS are in it.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::Pod;
use super::pod::attempt;
use super::services::{Service, rules};
use crate::space::{Process, Space};
use crate::until;

/// What is neither a pod nor a service: a host of the world.
pub const WORLD: &str = "203.0.113.1";
/// Another host of the world, and what it is called.
pub const FORGE: &str = "203.0.113.2";
/// See [`FORGE`].
pub const FORGE_NAMES: &str = "github.com mirror.example";
/// The node's own address, from which kubelet and what is masqueraded comes.
pub const NODE: &str = "192.0.2.1";
/// What pods take for their router, on each of their links.
pub const ROUTER: &str = "169.254.1.1";
/// The cluster's DNS.
pub const DNS: &str = "172.30.0.10";
/// Where dnsmasq is for that.
const DNS_SERVER: &str = "192.0.2.53";
/// What the services of these tests' namespace have their names in.
pub const DOMAIN: &str = "default.svc.cluster.local";

/// A node; ends with this.
#[derive(Debug)]
pub struct Node {
    pub(super) space: Arc<Space>,
    dns: Mutex<Option<Process>>,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// One without pods, whose only service is DNS.
    pub fn new() -> Self {
        let space = Arc::new(Space::new("node").unwrap());
        space
            .shell(&format!(
                "echo 1 >/proc/sys/net/ipv4/ip_forward
                 for address in {NODE} {DNS_SERVER} {WORLD} {FORGE}; do ip address add $address/32 dev lo; done
                 ip address add {ROUTER}/32 dev lo scope link"
            ))
            .unwrap();
        let node = Self {
            space,
            dns: Mutex::default(),
        };
        node.publish(&[]);
        node
    }

    /// A pod with the tests' own number, which is its address' last one.
    pub fn pod(&self, name: &str, number: u8) -> Pod {
        Pod::new(self, name, Ipv4Addr::new(10, 1, 0, number))
    }

    /// Has exactly these services, under their names and virtual addresses.
    pub fn publish(&self, services: &[Service]) {
        let file = format!("/run/{}.services", self.space.name);
        let dns = Service::new("kube-dns", DNS, 53).of(DNS_SERVER, 53);
        fs::write(&file, rules(services.iter().chain([&dns]))).unwrap();
        self.space
            .shell(&format!("iptables-restore {file}"))
            .unwrap();
        let mut names = String::new();
        for service in services {
            writeln!(names, "{} {}", service.address, service.full_name()).unwrap();
        }
        writeln!(names, "{WORLD} world.example\n{FORGE} {FORGE_NAMES}").unwrap();
        let hosts = self.names();
        fs::write(&hosts, names).unwrap();
        *self.dns.lock().unwrap() = None;
        *self.dns.lock().unwrap() = Some(self.serve_names(&hosts));
    }

    /// The file of all names.
    pub fn names(&self) -> String {
        format!("/run/{}.hosts", self.space.name)
    }

    fn serve_names(&self, hosts: &str) -> Process {
        let mut command = self.space.command("dnsmasq").unwrap();
        command.args(["-k", "-C", "/dev/null", "-h", "-R", "--bind-interfaces"]);
        command.args(["--user=root", "--pid-file", "--local=/#/", "--local-ttl=5"]);
        command.args(["--listen-address", DNS_SERVER, "--addn-hosts", hosts]);
        let process = Process::start(&mut command).unwrap();
        until("the cluster's DNS does not come up", || {
            let open = || std::net::TcpStream::connect((DNS_SERVER, 53)).ok();
            self.space.inside(open).unwrap().map(drop)
        });
        process
    }

    pub(super) fn command(&self, program: &str) -> Command {
        self.space.command(program).unwrap()
    }

    /// Runs a script of the node's own, which has to succeed.
    #[track_caller]
    pub fn shell(&self, script: &str) {
        self.space.shell(script).unwrap();
    }

    /// What a script in the node's network prints.
    pub fn run(&self, script: &str) -> String {
        attempt(self.command("timeout"), script).0
    }

    /// Does `work` in the node's network.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.space.inside(work).unwrap()
    }
}
