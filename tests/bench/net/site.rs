//! A guest's network namespace behind a host's, and the contender between them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use peapod_tests::sides::{Family, GATEWAY, GUEST, Way};
use peapod_tests::space::{Process, Space, about};

use crate::load::service;
use crate::measure::Scale;

/// What connects the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// peapod-net.
    Ours,
    Pasta,
    Slirp4netns,
    /// What a container has.
    Veth,
    /// A process behind a veth that does no more than read and write each stream.
    Relay,
    /// Nothing: both ends are in the host's namespace.
    Loopback,
}

/// The host's addresses, of one interface that leads on as a pod's does.
pub const HOST: [&str; 4] = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"];
const HOST6: &str = "2001:db8::1";
/// The first ports of the host's services, the guest's, and the relay's way to the host's. The
/// guest's are forwarded from the same ports.
const HOST_PORTS: u16 = 5200;
const GUEST_PORTS: u16 = 5300;
const RELAY_PORTS: u16 = 5400;
/// Envoy's for what leaves a pod.
const OUTBOUND: u16 = 15001;
/// A service of the cluster.
const CLUSTER_IP: &str = "10.96.0.10:80";
const LIMIT: Duration = Duration::from_secs(10);
/// Flows, and descriptors of each process, besides those that are idle.
pub const SPARE: usize = 1000;

/// What Istio's init container loads for a sidecar, by default. The contender is not uid 1337.
const SIDECAR: &str = "\
*nat
:ISTIO_INBOUND -
:ISTIO_IN_REDIRECT -
:ISTIO_OUTPUT -
:ISTIO_REDIRECT -
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
";

impl Contender {
    /// As the command line and the table name it.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Its program, of those that have one to be found.
    fn program(self) -> io::Result<Option<String>> {
        let found = |variable: &str| {
            std::env::var(variable).map(Some).map_err(|_| {
                io::Error::other(format!("{variable} is not set: run `make bench-net`"))
            })
        };
        match self {
            Self::Ours => found("PEAPOD_NET"),
            Self::Pasta => found("PEAPOD_PASTA"),
            Self::Slirp4netns => Ok(Some("slirp4netns".to_owned())),
            Self::Veth | Self::Relay | Self::Loopback => Ok(None),
        }
    }

    fn log(self) -> String {
        format!("/run/{}.log", self.name())
    }

    /// The last thing that it complained of.
    pub fn complaint(self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        log.lines().last().unwrap_or("nothing").to_owned()
    }

    /// What it says of its version, or an error if it can't be run.
    pub fn version(self) -> io::Result<Option<String>> {
        let Some(program) = self.program()? else {
            return Ok(None);
        };
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .map_err(|e| about(&program, e))?;
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(said.lines().next().map(str::to_owned))
    }
}

/// The namespaces with all that runs inside; ends with this.
pub struct Site {
    pub contender: Contender,
    /// Of the contender, if it is one.
    pub process: Option<Process>,
    /// The host's services, then the guest's.
    pub servers: [Process; 2],
    sidecar: bool,
    guest: Option<Space>,
    host: Space,
}

impl Site {
    /// Builds one for measurements of that scale, and waits until both sides answer.
    pub fn new(contender: Contender, mtu: u16, scale: Scale, sidecar: bool) -> io::Result<Self> {
        let host = Space::new("h")?;
        host.shell("ip link add pod type veth peer name node; ip link set node up")?;
        let [a, b, c, d] = HOST;
        host.shell(&format!(
            "ip link set pod up
             for address in {a}/24 {b}/24 {c}/24 {d}/24 {HOST6}/64; do
                ip address add $address dev pod
             done
             ip route add default via 192.0.2.254; ip route add default via 2001:db8::fe"
        ))?;
        if sidecar {
            host.shell(&format!("iptables-restore <<'E'\n{SIDECAR}E"))?;
        }
        let guest = match contender {
            Contender::Loopback => None,
            _ => Some(Space::new("g")?),
        };
        let process = match &guest {
            Some(guest) => connect(contender, &host, guest, mtu, scale.flows)?,
            None => None,
        };
        let serve = |space: &Space, first: u16| {
            let server = load(space, &format!("serve {first} {}", scale.seconds))?;
            server.line(LIMIT)?;
            Ok::<_, io::Error>(server)
        };
        let outside = if sidecar { OUTBOUND } else { HOST_PORTS };
        let inside = guest.as_ref().unwrap_or(&host);
        let site = Self {
            contender,
            process,
            servers: [serve(&host, outside)?, serve(inside, GUEST_PORTS)?],
            sidecar,
            guest,
            host,
        };
        // With a sidecar every call out comes to a port that keeps silent.
        for way in &[Way::Out, Way::In][usize::from(sidecar)..] {
            site.wait(*way, Family::V4)?;
            site.wait(*way, Family::V6)?;
        }
        Ok(site)
    }

    /// Until the other side can be asked, which an address or a route may be late for.
    fn wait(&self, way: Way, family: Family) -> io::Result<()> {
        let Some(to) = self.target(way, family, service::ECHO) else {
            return Ok(());
        };
        let start = Instant::now();
        while let Err(error) = self.load(way, &format!("ask {to} 1"))?.numbers::<2>(LIMIT) {
            if start.elapsed() > LIMIT {
                return Err(about(&format!("{way} {family}: no answer of {to}"), error));
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A part of the load, on the side that calls.
    pub fn load(&self, way: Way, words: &str) -> io::Result<Process> {
        match (way, &self.guest) {
            (Way::Out, Some(guest)) => load(guest, words),
            _ => load(&self.host, words),
        }
    }

    /// The side that is called.
    pub fn server(&mut self, way: Way) -> &mut Process {
        let [host, guest] = &mut self.servers;
        if way == Way::Out { host } else { guest }
    }

    /// Frames that its card gave the guest and took from it so far.
    pub fn frames(&self) -> io::Result<f64> {
        let Some(guest) = &self.guest else {
            return Ok(f64::NAN);
        };
        let mut ip = guest.command("ip")?;
        let output = ip.args(["-j", "-s", "link", "show", "eth0"]).output()?;
        let links: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let count = |way: &str| links[0]["stats64"][way]["packets"].as_f64();
        Ok(count("rx").unwrap_or(f64::NAN) + count("tx").unwrap_or(f64::NAN))
    }

    /// What to call to get to a service; nothing if the contender can't get there.
    pub fn target(&self, way: Way, family: Family, service: u16) -> Option<SocketAddr> {
        let host = [HOST[0], HOST6];
        let (addresses, ports) = match (way, self.contender) {
            (Way::Out, _) if self.sidecar => return CLUSTER_IP.parse().ok(),
            (Way::Out, Contender::Relay) => (GATEWAY, RELAY_PORTS),
            (Way::Out, _) => (host, HOST_PORTS),
            (Way::In, Contender::Veth) => (GUEST, GUEST_PORTS),
            // It forwards IPv4 only.
            (Way::In, Contender::Slirp4netns) if family == Family::V6 => return None,
            (Way::In, _) => (host, GUEST_PORTS),
        };
        Some(SocketAddr::new(family.of(addresses), ports + service))
    }

    /// Where the guest can call those of the host's services that keep what they get.
    pub fn holders(&self) -> Vec<String> {
        let ports = |address| service::HOLD.map(move |s| format!("{address}:{}", HOST_PORTS + s));
        HOST.iter().flat_map(ports).collect()
    }
}

/// This program as a part of the load. An error of its is a line too.
fn load(space: &Space, words: &str) -> io::Result<Process> {
    let mut command = space.command("/proc/self/exe")?;
    Process::start(command.arg(crate::LOAD).args(words.split(' ')))
}

/// The ports that are forwarded to the guest, and for which transport.
fn forwarded() -> impl Iterator<Item = (u16, &'static str)> {
    let streams = service::STREAMS.map(|s| (GUEST_PORTS + s, "tcp"));
    streams.chain([(GUEST_PORTS + service::DATAGRAMS, "udp")])
}

/// Puts the contender between the two, for so many idle flows; its process, if it has one.
fn connect(
    c: Contender,
    host: &Space,
    guest: &Space,
    mtu: u16,
    flows: usize,
) -> io::Result<Option<Process>> {
    if let Contender::Veth | Contender::Relay = c {
        veth(host, guest, mtu)?;
    }
    let mut command = host.command(&c.program()?.unwrap_or_default())?;
    command.stderr(File::create(c.log())?);
    let mtu = mtu.to_string();
    let process = match c {
        Contender::Ours => {
            command.args(["--config-net", "--interface", "eth0", "--mtu", &mtu]);
            command.args(["--netns", &guest.path()]);
            // A few more for what is asked beside them.
            command.args(["--max-flows", &(flows + SPARE).max(65_536).to_string()]);
            for (port, transport) in forwarded() {
                command.args(["-p", &format!("{port}:{port}/{transport}")]);
            }
            let process = Process::start(&mut command)?;
            process.line(LIMIT)?;
            process
        }
        Contender::Pasta => {
            // As root, for the namespace is root's: so does Podman.
            command.args("-f -q --runas 0 --config-net -T none -U none".split(' '));
            command.args(["--netns", &guest.path(), "--ns-ifname", "eth0"]);
            command.args(["-m", &mtu, "-n", "24"]);
            for (address, gateway) in GUEST.iter().zip(GATEWAY) {
                command.args(["-a", address, "-g", gateway]);
            }
            for (port, transport) in forwarded() {
                command.args([&format!("--{transport}-ports"), &port.to_string()]);
            }
            Process::start(&mut command)?
        }
        Contender::Slirp4netns => {
            let socket = format!("/run/slirp4netns.{}", guest.name);
            command.args("-c -6 --disable-host-loopback --netns-type path".split(' '));
            command.args(["-m", &mtu, "-a", &socket, &guest.path(), "eth0"]);
            let process = Process::start(&mut command)?;
            for (port, transport) in forwarded() {
                forward_by_slirp4netns(&socket, port, transport)?;
            }
            process
        }
        Contender::Relay => {
            let ([v4, _, _, _], v6, [guest4, guest6]) = (HOST, HOST6, GUEST);
            let out = format!("{RELAY_PORTS},{HOST_PORTS},{v4},{v6}");
            let into = format!("{GUEST_PORTS},{GUEST_PORTS},{guest4},{guest6}");
            let process = load(host, &format!("relay {out} {into}"))?;
            process.line(LIMIT)?;
            process
        }
        Contender::Veth | Contender::Loopback => return Ok(None),
    };
    Ok(Some(process))
}

fn veth(host: &Space, guest: &Space, mtu: u16) -> io::Result<()> {
    let (name, [v4, v6], [gateway4, gateway6]) = (&guest.name, GUEST, GATEWAY);
    host.shell(&format!(
        "ip link add guest mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}
         ip link set guest up
         ip address add {gateway4}/24 dev guest; ip address add {gateway6}/120 dev guest"
    ))?;
    guest.shell(&format!(
        "ip link set eth0 up
         ip address add {v4}/24 dev eth0; ip address add {v6}/120 dev eth0
         ip route add default via {gateway4}; ip route add default via {gateway6}"
    ))
}

fn forward_by_slirp4netns(socket: &str, port: u16, transport: &str) -> io::Result<()> {
    let start = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() > LIMIT => return Err(about(socket, error)),
            Err(_) => sleep(Duration::from_millis(20)),
        }
    };
    let request = serde_json::json!({"execute": "add_hostfwd", "arguments": {
        "proto": transport, "host_port": port, "guest_addr": "10.0.2.100", "guest_port": port,
    }});
    stream.write_all(request.to_string().as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.contains("error") {
        return Err(io::Error::other(format!("port {port}: {answer}")));
    }
    Ok(())
}
