//! A guest behind a pod. Here it is a network namespace of its own, whose kernel is the guest's; a
//! test asks of it only what a VM can do as well: to run a script.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};

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

/// A guest with its network in a pod; ends with this.
#[derive(Debug)]
pub struct Guest {
    network: Option<Process>,
    client: Option<Process>,
    arguments: String,
    space: Arc<Space>,
}

impl Guest {
    /// Starts one that asks by DHCP, with more arguments of its network, in that pod.
    pub fn start(pod: &Pod, arguments: &str) -> Self {
        let mut guest = Self {
            network: None,
            client: None,
            arguments: arguments.to_owned(),
            space: Arc::new(Space::new("guest").unwrap()),
        };
        guest.connect(pod);
        guest
    }

    /// Starts the network, where it is not there, and asks it.
    pub fn connect(&mut self, pod: &Pod) {
        let mut command = pod.command(User::Root, peapod_net().to_str().unwrap());
        command.args(["--netns", &self.space.path(), "--interface", "eth0"]);
        command.args(self.arguments.split_whitespace());
        let network = Process::start(&mut command).unwrap();
        assert_eq!(network.line(PATIENCE).unwrap(), "ready");
        self.network = Some(network);
        self.ask();
    }

    /// Kills what connects it, as if that had crashed. Its programs go on.
    pub fn crash(&mut self) {
        self.client = None;
        self.network = None;
    }

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

    fn command(&self, program: &str) -> Command {
        let mut command = with_names(&self.space);
        command.arg(program);
        command
    }

    /// What a script of bash prints.
    pub fn run(&self, script: &str) -> String {
        attempt(self.command("timeout"), script).0
    }

    /// Starts a program that is given as Ruby's text, and goes on with the guest.
    pub fn serve(&self, ruby: &str, arguments: &str) {
        self.run(&format!(
            "setsid ruby - {arguments} >/dev/null 2>&1 <<'end-of-program' &\n{ruby}\nend-of-program"
        ));
    }
}

impl Drop for Guest {
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
