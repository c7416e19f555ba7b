//! A VM's network in a pod: ours, and what QEMU has for it. Every VM starts from the same [`Boot`].

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::space::{Process, Space, run};
use crate::{Boot, PATIENCE, peapod_net};

/// A VM's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// `peapod run`.
    Peapod,
    /// QEMU with our network for its backend.
    PeapodNet,
    /// In QEMU.
    Slirp,
    /// passt by a stream of frames.
    PasstStream,
    /// passt in the guest's memory.
    PasstVhostUser,
    /// tap, vhost-net, bridge and NAT as KubeVirt's masquerade has them.
    TapVhostNet,
}

/// What KubeVirt's masquerade makes in a pod.
fn masquerade(pod: &Space, boot: &Boot, ports: &[u16]) -> Process {
    run(Command::new("modprobe").args(["-a", "tun", "vhost_net"])).unwrap();
    let ports = separated(ports);
    pod.shell(&format!(
        "ip link add k6t-eth0 type bridge; ip address add 10.0.2.1/24 dev k6t-eth0
         ip tuntap add tap0 mode tap; ip link set tap0 master k6t-eth0
         ip link set tap0 up; ip link set k6t-eth0 up
         echo 1 >/proc/sys/net/ipv4/ip_forward
         echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
         iptables -t nat -A POSTROUTING -s 10.0.2.2 -j MASQUERADE
         iptables -t nat -A POSTROUTING -s 127.0.0.0/8 -o k6t-eth0 -j SNAT --to-source 10.0.2.1
         for from in 'PREROUTING -i eth0' 'OUTPUT -m addrtype --dst-type LOCAL'; do
            iptables -t nat -A $from -p tcp -m multiport --dports {ports} \\
                -j DNAT --to-destination 10.0.2.2
         done"
    ))
    .unwrap();
    start(pod, &mut dhcp_server(boot, "k6t-eth0"))
}

/// Who tells the guest behind an interface by DHCP that it is 10.0.2.2.
pub fn dhcp_server(boot: &Boot, interface: &str) -> Command {
    let (file, leases) = (boot.path("udhcpd.conf"), boot.path("leases"));
    let text = format!(
        "interface {interface}\nstart 10.0.2.2\nend 10.0.2.2\nmax_leases 1\n\
         option subnet 255.255.255.0\noption router 10.0.2.1\n\
         lease_file {0}\npidfile {0}.pid\n",
        leases.display()
    );
    fs::write(&file, text).unwrap();
    File::create(leases).unwrap();
    let mut server = Command::new("busybox");
    server
        .args(["udhcpd", "-f"])
        .arg(file)
        .stderr(Stdio::null());
    server
}

/// Starts a command in a pod.
fn start(pod: &Space, command: &mut Command) -> Process {
    let started = pod.inside(|| Process::start(command)).unwrap();
    started.unwrap()
}

/// Starts the backend of a VM's network, which makes a socket for the VM.
fn backend(pod: &Space, command: &mut Command, socket: &Path) -> Process {
    let (process, begin) = (start(pod, command), Instant::now());
    while !socket.exists() {
        assert!(begin.elapsed() < PATIENCE, "no {}", socket.display());
        thread::sleep(Duration::from_millis(20));
    }
    process
}

/// What the first line says of a program's version.
pub fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}")).stdout;
    let text = String::from_utf8_lossy(&output);
    text.lines().next().unwrap_or("?").to_owned()
}

/// The passt that `ci/pasta` unpacked.
pub fn passt() -> String {
    std::env::var("PEAPOD_PASST").expect("PEAPOD_PASST is not set: run it by `make`")
}

fn separated(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    ports.join(",")
}

/// Each port on all addresses of IPv4, as our programs want it.
fn published(ports: &[u16]) -> impl Iterator<Item = String> {
    ports.iter().map(|port| format!("-p0.0.0.0:{port}:{port}"))
}

impl Network {
    /// As a table has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Peapod => "peapod",
            Self::PeapodNet => "qemu, peapod-net",
            Self::Slirp => "qemu, slirp",
            Self::PasstStream => "qemu, passt stream",
            Self::PasstVhostUser => "qemu, passt vhost-user",
            Self::TapVhostNet => "qemu, tap vhost-net",
        }
    }

    /// The VM, and then what else it needs.
    pub fn start(self, pod: &Space, boot: &Boot, ports: &[u16]) -> Vec<Process> {
        let socket = boot.path(&format!("{self:?}.sock"));
        let at = socket.display();
        let passt = |more: &[&str]| {
            let mut command = Command::new(passt());
            // Root's, whose folder the socket is in.
            command.args("-q -f -1 --runas 0 -m 1500 -a 10.0.2.2 -n 24 -g 10.0.2.1".split(' '));
            command.args(["-t", &separated(ports), "-s"]).arg(&socket);
            backend(pod, command.args(more), &socket)
        };
        let qemu = |network: &str| start(pod, &mut boot.qemu(&["-netdev", network]));
        let vhost_user = || start(pod, &mut boot.qemu_by_vhost_user(&socket));
        match self {
            Self::Peapod => {
                let mut command = boot.peapod();
                vec![start(pod, command.args(published(ports)))]
            }
            Self::PeapodNet => {
                let mut command = Command::new(peapod_net());
                command.args(published(ports)).arg("--vhost-user");
                let network = backend(pod, command.arg(&socket), &socket);
                vec![vhost_user(), network]
            }
            Self::Slirp => {
                let forwards = ports
                    .iter()
                    .map(|port| format!(",hostfwd=tcp::{port}-:{port}"));
                vec![qemu(&format!("user,id=n{}", forwards.collect::<String>()))]
            }
            Self::PasstStream => {
                let network = passt(&[]);
                let stream = format!("stream,id=n,server=off,addr.type=unix,addr.path={at}");
                vec![qemu(&stream), network]
            }
            Self::PasstVhostUser => {
                let network = passt(&["--vhost-user"]);
                vec![vhost_user(), network]
            }
            Self::TapVhostNet => {
                let dhcp = masquerade(pod, boot, ports);
                let tap = "tap,id=n,ifname=tap0,script=no,downscript=no,vhost=on";
                vec![qemu(tap), dhcp]
            }
        }
    }
}
