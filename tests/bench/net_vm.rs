//! `make bench-net-vm`: what the network gives a VM's streams, beside QEMU's with slirp, with passt
//! and with what KubeVirt's masquerade has, in turns, where KVM works.
//!
//! All VMs have the same kernel, initramfs, root, memory, vCPU and MTU. Each boots once, in a network
//! namespace of its own as in a pod, and is idle while another is measured. The server is on their
//! node, this namespace, behind a veth pair; its clock is what counts.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use peapod_tests::bench::{Mark, Record, machine, report};
use peapod_tests::space::{Process, Space, enclose, run};
use peapod_tests::{Boot, Guest, peapod_net};
use rustix::net::sockopt::{Timeout, set_socket_timeout};

const MEMORY_MIB: u64 = 512;
const MTU: &str = "1500\n";
/// The node's address.
const SERVER: (&str, u16) = ("198.51.100.1", 5201);
/// How long a stream is to last; the MiB of the first, which tells how many that is.
const SECONDS: f64 = 3.0;
const FIRST_MIB: u64 = 4;
const MOST_MIB: f64 = 8192.0;
const ASKS: usize = 300;
const LIMIT: Duration = Duration::from_secs(120);

/// What is measured, and in what.
const FIGURES: [(&str, &str); 3] = [
    ("TCP upload, guest to server", "Mbit/s"),
    ("TCP download, server to guest", "Mbit/s"),
    ("1 byte there and back, median", "us"),
];

#[derive(Parser)]
struct Options {
    /// How often each VM is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// The only VMs.
    #[arg(long, value_delimiter = ',')]
    with: Vec<Network>,
    /// Runs in namespaces of its own already.
    #[arg(long, hide = true)]
    enclosed: bool,
}

/// A VM's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    /// `peapod run`.
    Peapod,
    /// QEMU with our network for its backend.
    PeapodNet,
    Slirp,
    /// passt by a stream of frames.
    PasstStream,
    /// passt in the guest's memory.
    PasstVhostUser,
    /// tap, vhost-net, bridge and NAT as KubeVirt's masquerade has them.
    TapVhostNet,
}

/// The node's server.
fn serve() -> TcpListener {
    shell(&format!("ip address add {}/32 dev lo", SERVER.0));
    let listener = TcpListener::bind(SERVER).unwrap();
    // Its streams have it from their listener.
    set_socket_timeout(&listener, Timeout::Recv, Some(LIMIT)).unwrap();
    listener
}

/// A pod's namespace, joined to the node.
fn pod(number: usize) -> Space {
    let (pod, node) = (Space::new("pod").unwrap(), SERVER.0);
    let (name, address) = (&pod.name, format!("198.51.100.{}", 10 + number));
    shell(&format!(
        "ip link add {name} type veth peer name eth0 netns {name}
         ip link set {name} up; ip route add {address} dev {name} src {node}"
    ));
    pod.shell(&format!(
        "ip address add {address}/24 dev eth0; ip link set eth0 up
         ip route add default via {node}"
    ))
    .unwrap();
    pod
}

/// What KubeVirt's masquerade makes in a pod.
fn masquerade(pod: &Space, boot: &Boot) -> Process {
    shell("modprobe -a tun vhost_net");
    let port = Guest::PORT;
    pod.shell(&format!(
        "ip link add k6t-eth0 type bridge; ip address add 10.0.2.1/24 dev k6t-eth0
         ip tuntap add tap0 mode tap; ip link set tap0 master k6t-eth0
         ip link set tap0 up; ip link set k6t-eth0 up
         echo 1 >/proc/sys/net/ipv4/ip_forward
         echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
         iptables -t nat -A POSTROUTING -s 10.0.2.2 -j MASQUERADE
         iptables -t nat -A POSTROUTING -s 127.0.0.1 -o k6t-eth0 -j SNAT --to-source 10.0.2.1
         for from in 'PREROUTING -i eth0' 'OUTPUT -d 127.0.0.1'; do
            iptables -t nat -A $from -p tcp --dport {port} -j DNAT --to-destination 10.0.2.2
         done"
    ))
    .unwrap();
    let (file, leases) = (boot.path("udhcpd.conf"), boot.path("leases"));
    let text = format!(
        "interface k6t-eth0\nstart 10.0.2.2\nend 10.0.2.2\nmax_leases 1\n\
         option subnet 255.255.255.0\noption router 10.0.2.1\n\
         lease_file {0}\npidfile {0}.pid\n",
        leases.display()
    );
    fs::write(&file, text).unwrap();
    File::create(leases).unwrap();
    let mut server = Command::new("busybox");
    server.args(["udhcpd", "-f"]).arg(file);
    start(pod, server.stderr(Stdio::null()))
}

fn shell(script: &str) {
    run(Command::new("sh").args(["-ec", script])).unwrap();
}

/// What a script in a pod's guest says.
fn guest(pod: &Space, script: &str) -> String {
    pod.inside(|| Guest::default().run(script, LIMIT)).unwrap()
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
        assert!(begin.elapsed() < LIMIT, "no {}", socket.display());
        thread::sleep(Duration::from_millis(20));
    }
    process
}

/// What the first line says of a program's version.
fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}")).stdout;
    let text = String::from_utf8_lossy(&output);
    text.lines().next().unwrap_or("?").to_owned()
}

/// The passt that `ci/pasta` unpacked.
fn passt() -> String {
    std::env::var("PEAPOD_PASST").expect("PEAPOD_PASST is not set: run `make bench-net-vm`")
}

impl Network {
    fn name(self) -> &'static str {
        match self {
            Self::Peapod => "peapod",
            Self::PeapodNet => "qemu, peapod-net",
            Self::Slirp => "qemu, slirp",
            Self::PasstStream => "qemu, passt stream",
            Self::PasstVhostUser => "qemu, passt vhost-user",
            Self::TapVhostNet => "qemu, tap vhost-net",
        }
    }

    /// What the throughput of ours is to be beside it.
    fn mark(self) -> Option<Mark> {
        match self {
            Self::Slirp => Some(Mark::AtLeast(5.0)),
            Self::PasstStream | Self::PasstVhostUser => Some(Mark::AtLeast(2.0)),
            Self::Peapod | Self::PeapodNet | Self::TapVhostNet => None,
        }
    }

    /// The VM, and then what else it needs.
    fn start(self, pod: &Space, boot: &Boot) -> Vec<Process> {
        let (port, socket) = (Guest::PORT, boot.path(&format!("{self:?}.sock")));
        let at = socket.display();
        let passt = |more: &[&str]| {
            let mut command = Command::new(passt());
            // Root's, whose folder the socket is in.
            command.args("-q -f -1 --runas 0 -m 1500 -a 10.0.2.2 -n 24 -g 10.0.2.1".split(' '));
            command.args(["-t", &port.to_string(), "-s"]).arg(&socket);
            backend(pod, command.args(more), &socket)
        };
        let qemu = |network: &str| start(pod, &mut boot.qemu(&["-netdev", network]));
        let vhost_user = || {
            let socket = format!("socket,id=c,path={at}");
            let memory = format!("memory-backend-memfd,id=m,size={MEMORY_MIB}M,share=on");
            let network = [
                ["-chardev", &socket],
                ["-netdev", "vhost-user,id=n,chardev=c"],
                ["-object", &memory],
                ["-machine", "memory-backend=m"],
            ];
            start(pod, &mut boot.qemu(&network.concat()))
        };
        match self {
            Self::Peapod => vec![start(pod, &mut boot.peapod())],
            Self::PeapodNet => {
                let mut command = Command::new(peapod_net());
                command.args(["-p", &format!("{port}:{port}"), "--vhost-user"]);
                let network = backend(pod, command.arg(&socket), &socket);
                vec![vhost_user(), network]
            }
            Self::Slirp => vec![qemu(&format!("user,id=n,hostfwd=tcp::{port}-:{port}"))],
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
                let dhcp = masquerade(pod, boot);
                let tap = "tap,id=n,ifname=tap0,script=no,downscript=no,vhost=on";
                vec![qemu(tap), dhcp]
            }
        }
    }
}

/// A VM that waits to be measured.
struct Vm {
    network: Network,
    /// How many MiB to send each way.
    mib: [u64; 2],
    /// Of each figure a value a round.
    series: [Vec<f64>; 3],
    _processes: Vec<Process>,
    pod: Space,
}

impl Vm {
    /// Boots one and finds out how fast it is.
    fn new(network: Network, boot: &Boot, server: &TcpListener) -> Self {
        let (start, pod) = (Instant::now(), pod(network as usize));
        let mut vm = Self {
            network,
            mib: [FIRST_MIB; 2],
            series: Default::default(),
            _processes: network.start(&pod, boot),
            pod,
        };
        let (name, mtu) = (
            network.name(),
            guest(&vm.pod, "cat /sys/class/net/eth0/mtu"),
        );
        assert_eq!(mtu, MTU, "{name}: the MTU");
        eprintln!(
            "==> {name}: up after {:.1} s",
            start.elapsed().as_secs_f64()
        );
        // The first is slower than the next.
        for _ in 0..2 {
            let rates = [vm.upload(server), vm.download(server)];
            let mib = rates.map(|rate| rate * SECONDS * 1e6 / 8.0 / f64::from(1 << 20));
            vm.mib = mib.map(|mib| mib.clamp(1.0, MOST_MIB) as u64);
        }
        vm
    }

    /// What a script in the guest says, while its connection is served; what came of that too.
    fn call<T>(
        &self,
        server: &TcpListener,
        script: &str,
        serve: impl FnOnce(TcpStream) -> io::Result<T>,
    ) -> (T, String) {
        let pod = &self.pod;
        thread::scope(|scope| {
            let script = scope.spawn(|| guest(pod, script));
            let served = server.accept().and_then(|(stream, _)| serve(stream));
            let served = served.unwrap_or_else(|e| panic!("{}: {e}", self.network.name()));
            (served, script.join().unwrap())
        })
    }

    /// Mbit/s from the first byte's arrival to the last one's.
    fn upload(&self, server: &TcpListener) -> f64 {
        let ((address, port), mib) = (SERVER, self.mib[0]);
        let script = format!("dd if=/dev/zero bs=1M count={mib} >/dev/tcp/{address}/{port}");
        let ((bytes, seconds), _) = self.call(server, &script, |mut stream| {
            let mut buffer = vec![0; 1 << 18];
            let before = stream.read(&mut buffer)? as u64;
            let (start, mut end, mut bytes) = (Instant::now(), Instant::now(), 0);
            while let n @ 1.. = stream.read(&mut buffer)? as u64 {
                bytes += n;
                end = Instant::now();
            }
            assert_eq!(before + bytes, mib << 20, "{}", self.network.name());
            Ok((bytes, (end - start).as_secs_f64()))
        });
        bytes as f64 * 8.0 / 1e6 / seconds
    }

    /// Mbit/s from the first byte's departure to the guest's end of stream, which follows its last.
    fn download(&self, server: &TcpListener) -> f64 {
        let ((address, port), bytes) = (SERVER, self.mib[1] << 20);
        let script = format!("dd bs=1M of=/dev/null </dev/tcp/{address}/{port} 2>&1");
        let (seconds, output) = self.call(server, &script, |mut stream| {
            let start = Instant::now();
            io::copy(&mut io::repeat(0).take(bytes), &mut stream)?;
            stream.shutdown(Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new())?;
            Ok(start.elapsed().as_secs_f64())
        });
        assert!(output.contains(&format!("{bytes} bytes")), "{output}");
        bytes as f64 * 8.0 / 1e6 / seconds
    }

    /// Microseconds by the guest's clock.
    fn ask(&self, server: &TcpListener) -> f64 {
        let (address, port) = SERVER;
        let script = format!(
            "ruby -rsocket -e 's = TCPSocket.new({address:?}, {port})
             now = -> {{ Process.clock_gettime(Process::CLOCK_MONOTONIC, :float_microsecond) }}
             times = Array.new({ASKS}) {{ t = now.(); s.write(?x); s.readpartial(1); now.() - t }}
             puts times.sort[{ASKS} / 2]'"
        );
        let (_, output) = self.call(server, &script, |mut stream| {
            stream.set_nodelay(true)?;
            let mut byte = [0];
            while stream.read(&mut byte)? == 1 {
                stream.write_all(&byte)?;
            }
            Ok(())
        });
        output.trim().parse().unwrap_or_else(|_| panic!("{output}"))
    }
}

fn main() {
    let options = Options::parse();
    let directory = std::env::var_os("PEAPOD_BENCH");
    let directory = directory.expect("PEAPOD_BENCH is not set: run `make bench-net-vm`");
    enclose().unwrap();
    println!("{}", machine());
    println!("{}\n{}", version("qemu-system-x86_64"), version(&passt()));

    let server = serve();
    let user_data = format!("#!/bin/bash\n{}", Guest::SERVE);
    let boot = Boot::new(&user_data, MEMORY_MIB, Guest::PORT);
    let mut networks = Network::value_variants().to_vec();
    networks.retain(|n| options.with.is_empty() || options.with.contains(n));
    let vms = networks.iter().map(|n| Vm::new(*n, &boot, &server));
    let mut vms: Vec<Vm> = vms.collect();
    for round in 1..=options.rounds {
        eprintln!("==> round {round} of {}", options.rounds);
        for vm in &mut vms {
            let figures = [vm.upload(&server), vm.download(&server), vm.ask(&server)];
            let [up, down, ask] = figures;
            let name = vm.network.name();
            eprintln!("    {name:<22} {up:>8.1} {down:>8.1} Mbit/s {ask:>8.0} us");
            vm.series
                .iter_mut()
                .zip(figures)
                .for_each(|(s, f)| s.push(f));
        }
        // Nobody is always the first.
        vms.rotate_left(1);
    }
    vms.sort_by_key(|vm| vm.network as u8);
    let [ours, peers @ ..] = &vms[..] else { return };
    let record = &|index: usize, peer: &Vm| {
        let (name, unit) = FIGURES[index];
        let mark = peer.network.mark().filter(|_| index < 2);
        let theirs = (peer.network.name(), &peer.series[index][..]);
        Record::new(name, unit, &ours.series[index], theirs, mark)
    };
    let records = (0..FIGURES.len()).flat_map(|i| peers.iter().map(move |p| record(i, p)));
    report(
        Path::new(&directory),
        "net-vm",
        &records.collect::<Vec<_>>(),
    )
    .unwrap();
}
