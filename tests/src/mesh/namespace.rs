//! A network namespace as a pod's guest: its kernel is the guest's, and its network peapod-net.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};

use super::guest::Kernel;
use super::pod::{attempt, resolver, with_names};
use super::{Pod, User};
use crate::space::{Process, Space};
use crate::{PATIENCE, peapod_net};

/// What dhclient runs with what it was told.
const LEASE: &str = r#"#!/bin/sh -e
case $reason in
PREINIT) ip link set "$interface" up ;;
BOUND | REBOOT)
    ip address add "$new_ip_address/$new_subnet_mask" dev "$interface"
    ip link set "$interface" mtu "$new_interface_mtu"
    ip route add default via "$new_routers"
    echo "search $new_domain_search"
    for server in $new_domain_name_servers; do echo "nameserver $server"; done
    echo leased
    ;;
esac
"#;

const CONFIGURATION: &str = "
request subnet-mask, routers, domain-name-servers, domain-search, interface-mtu;
";

/// It ends with this, with all its programs.
#[derive(Debug)]
pub struct Namespace {
    network: Option<Process>,
    client: Option<Process>,
    ports: Vec<u16>,
    space: Arc<Space>,
}

impl Namespace {
    /// One that nothing connects yet.
    pub fn new(ports: &[u16]) -> Self {
        Self {
            network: None,
            client: None,
            ports: ports.to_owned(),
            space: Arc::new(Space::new("guest").unwrap()),
        }
    }

    /// Where its network is asked.
    fn control(&self) -> String {
        format!("/run/{}.control", self.space.name)
    }

    /// Asks by DHCP.
    fn ask(&mut self) {
        let base = format!("/run/{}", self.space.name);
        fs::write(format!("{base}.conf"), CONFIGURATION).unwrap();
        fs::write(format!("{base}.lease"), LEASE).unwrap();
        let mut command = self.space.command("sh").unwrap();
        command.args(["-ec", "chmod +x $0.lease; exec dhclient -4 -d -q -cf $0.conf -sf $0.lease -lf $0.leases -pf $0.id eth0", &base]);
        let client = Process::start(command.stderr(Stdio::null())).unwrap();
        let mut names = String::new();
        loop {
            match client.line(PATIENCE).unwrap().as_str() {
                "leased" => break,
                line => names += &format!("{line}\n"),
            }
        }
        fs::write(resolver(&self.space), names).unwrap();
        self.client = Some(client);
    }
}

impl Kernel for Namespace {
    fn connect(&mut self, pod: &Pod) {
        let mut command = pod.command(User::Root, peapod_net().to_str().unwrap());
        command.args(["--netns", &self.space.path(), "--interface", "eth0"]);
        command.args(["--control", &self.control()]);
        command.args(self.ports.iter().map(|port| format!("-p{port}:{port}")));
        let network = Process::start(&mut command).unwrap();
        assert_eq!(network.line(PATIENCE).unwrap(), "ready");
        self.network = Some(network);
        self.ask();
    }

    /// Its programs go on.
    fn crash(&mut self) -> bool {
        self.client = None;
        self.network = None;
        true
    }

    fn run(&self, script: &str) -> String {
        let mut command = with_names(&self.space);
        command.arg("timeout");
        attempt(command, script).0
    }

    fn metrics(&self) -> String {
        let mut command = Command::new(peapod_net());
        command.args(["control", &self.control(), "metrics"]);
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    }

    fn network(&self) -> u32 {
        self.network.as_ref().unwrap().id()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.crash();
        let pids = Command::new("ip")
            .args(["netns", "pids", &self.space.name])
            .output();
        let pids = pids.map(|output| output.stdout).unwrap_or_default();
        for pid in String::from_utf8_lossy(&pids).lines() {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
