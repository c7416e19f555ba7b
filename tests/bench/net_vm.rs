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

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use peapod_tests::bench::{Mark, Record, machine, report};
use peapod_tests::networks::{Network, passt, version};
use peapod_tests::space::{Process, Space, enclose, run};
use peapod_tests::{Boot, Guest};
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

fn shell(script: &str) {
    run(Command::new("sh").args(["-ec", script])).unwrap();
}

/// What a script in a pod's guest says.
fn guest(pod: &Space, script: &str) -> String {
    pod.inside(|| Guest::default().run(script, LIMIT)).unwrap()
}

/// The machine, and by which clock: it is no instructions that are counted.
fn clocked() -> String {
    format!("{}, alternating wall clock", machine())
}

/// What the throughput of ours is to be beside it.
fn mark(network: Network) -> Option<Mark> {
    match network {
        Network::Slirp => Some(Mark::AtLeast(5.0)),
        Network::PasstStream | Network::PasstVhostUser => Some(Mark::AtLeast(2.0)),
        Network::Peapod | Network::PeapodNet | Network::TapVhostNet => None,
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
            _processes: network.start(&pod, boot, &[Guest::PORT]),
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
    println!("{}", clocked());
    println!("{}\n{}", version("qemu-system-x86_64"), version(&passt()));

    let server = serve();
    let user_data = format!("#!/bin/bash\n{}", Guest::SERVE);
    let boot = Boot::new(&user_data, MEMORY_MIB, &[Guest::PORT]);
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
        let mark = mark(peer.network).filter(|_| index < 2);
        let theirs = (peer.network.name(), &peer.series[index][..]);
        let record = Record::new(name, unit, &ours.series[index], theirs, mark);
        Record {
            machine: clocked(),
            ..record
        }
    };
    let records = (0..FIGURES.len()).flat_map(|i| peers.iter().map(move |p| record(i, p)));
    report(
        Path::new(&directory),
        "net-vm",
        &records.collect::<Vec<_>>(),
    )
    .unwrap();
}
