//! `make bench-mesh`: requests by wrk from a pod with a sidecar to one whose service is in a VM,
//! through both sidecars, beside QEMU with slirp, with passt and with what KubeVirt's masquerade
//! has, in turns, where KVM works.
//!
//! The guest serves Bookinfo's details by WEBrick, and a few bytes by nginx, so that the network is
//! measured too. All VMs have the same kernel, initramfs and root; each is idle while another is
//! measured. The same servers without a VM, as the pod's own processes, are the bar that no VM's network
//! gets over: what it leaves is the proxies' and the servers' own.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use peapod_tests::Boot;
use peapod_tests::bench::{Mark, Record, cpu_seconds, machine, report};
use peapod_tests::mesh::application::DETAILS;
use peapod_tests::mesh::{Envoy, Node, Pod, Redirect, Service, Sidecar, User};
use peapod_tests::networks::{Network, passt, version};
use peapod_tests::space::{Process, enclose};

const MEMORY_MIB: u64 = 512;
const LIMIT: Duration = Duration::from_secs(300);
/// Whose marks are told, ours first; the last is no VM.
const PLACES: [Place; 5] = [
    Place(Some(Network::Peapod)),
    Place(Some(Network::Slirp)),
    Place(Some(Network::PasstVhostUser)),
    Place(Some(Network::TapVhostNet)),
    Place(None),
];
/// What is served, and where.
const SERVERS: [(&str, u16, &str); 2] = [("details.rb", 9080, "/details/0"), ("static", 9081, "/")];
/// Where nginx has its configuration, in the guest or in this program's own /run.
const NGINX: &str = "cat >/run/nginx.conf <<'end'
user root;
pid /run/nginx.pid;
events {}
http {
    access_log off;
    keepalive_requests 1000000;
    server { listen 9081; location / { return 200 'a few bytes'; } }
}
end
";
/// What a guest does.
const SERVE: &str = "nginx -c /run/nginx.conf
cd /opt/details
ruby details.rb 9080 >/dev/null 2>&1 &
";

/// Where the servers are: in a VM with such a network, or in the pod itself.
#[derive(Clone, Copy, PartialEq)]
struct Place(Option<Network>);

impl Place {
    /// As a table has it.
    fn name(self) -> &'static str {
        self.0.map_or("no VM", Network::name)
    }

    /// Starts the servers, and what they are in.
    fn start(self, pod: &Pod, boot: &Boot) -> Vec<Process> {
        let space = pod.space();
        if let Some(network) = self.0 {
            return network.start(&space, boot, &[9080, 9081]);
        }
        let details = boot.path("details.rb");
        std::fs::write(&details, DETAILS).unwrap();
        let mut ruby = Command::new("ruby");
        ruby.arg(details).arg("9080").stderr(Stdio::null());
        let mut nginx = Command::new("bash");
        let script =
            format!("{NGINX}exec nginx -c /run/nginx.conf -g 'daemon off; master_process off;'");
        nginx.args(["-ec", &script]);
        let start = |command: &mut Command| {
            let started = space.inside(|| Process::start(command)).unwrap();
            started.unwrap()
        };
        vec![start(&mut ruby), start(&mut nginx)]
    }
}

#[derive(Parser)]
struct Options {
    /// How often each VM is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// How long each time, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// The only VMs; what has none is measured in any case.
    #[arg(long, value_delimiter = ',')]
    with: Vec<Network>,
    /// Runs in namespaces of its own already.
    #[arg(long, hide = true)]
    enclosed: bool,
}

/// What is measured, and in what.
const FIGURES: [(&str, &str); 4] = [
    ("requests", "1/s"),
    ("99th percentile", "ms"),
    ("sidecar's CPU a request", "CPU-us"),
    ("VM's or server's CPU a request", "CPU-us"),
];

/// What the ratio of a figure is to be, of a server's, beside a network.
fn mark(figure: usize, server: usize, place: Place) -> Option<Mark> {
    match (figure, place.0?) {
        (0, Network::Slirp) => Some(Mark::AtLeast([1.5, 2.0][server])),
        (0, Network::PasstVhostUser) => Some(Mark::AtLeast([1.2, 1.5][server])),
        (1, Network::TapVhostNet) => Some(Mark::AtMost(1.0)),
        (2, Network::TapVhostNet) => Some(Mark::AtMost(1.1)),
        _ => None,
    }
}

/// A VM that waits to be measured, behind its sidecar.
struct Vm<'a> {
    place: Place,
    service: &'a Service,
    /// Its sidecar's process.
    sidecar: u32,
    /// Of each server each figure's values.
    series: [[Vec<f64>; 4]; 2],
    _envoy: Envoy,
    processes: Vec<Process>,
}

/// The number before `unit` as wrk writes it, in its own unit.
fn number(text: &str, units: [(&str, f64); 3]) -> Option<f64> {
    let mut found = units
        .iter()
        .filter_map(|(unit, scale)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * scale));
    found.next()
}

/// Requests a second, the 99th percentile in milliseconds, and how many requests it were.
fn read(said: &str) -> Option<[f64; 3]> {
    let after = |words: &str| {
        let mut lines = said.lines();
        lines.find_map(|line| line.trim().strip_prefix(words).map(str::trim))
    };
    let rate = after("Requests/sec:")?.parse().ok()?;
    let latency = number(after("99%")?, [("us", 1e-3), ("ms", 1.0), ("s", 1e3)])?;
    let requests = said.lines().find_map(|line| {
        let (number, _) = line.split_once(" requests in ")?;
        number.trim().parse().ok()
    })?;
    let bad = said.contains("Non-2xx") || said.contains("Socket errors");
    (!bad).then_some([rate, latency, requests])
}

impl<'a> Vm<'a> {
    fn start(place: Place, boot: &Boot, pod: &'a Pod, services: &'a [Service]) -> Self {
        let start = Instant::now();
        let address = pod.address.to_string();
        let mut own = services.iter().filter(|s| s.endpoints[0].0 == address);
        let service = own.next().unwrap();
        Redirect::ISTIO.load(pod);
        let (name, processes) = (place.name(), place.start(pod, boot));
        let envoy = sidecar(name, pod, &[9080, 9081], services);
        let vm = Self {
            place,
            service,
            sidecar: envoy.id(),
            series: Default::default(),
            _envoy: envoy,
            processes,
        };
        for (_, port, path) in SERVERS {
            let url = format!("http://{}:{port}{path}", pod.address);
            let ask = format!("curl -sSf --max-time 20 -o /dev/null --interface 127.0.0.6 {url}");
            loop {
                let (said, answered) = pod.attempt(&ask);
                if answered {
                    break;
                }
                assert!(start.elapsed() < LIMIT, "{name}: {url}: {said}");
            }
        }
        eprintln!(
            "==> {name}: up after {:.1} s",
            start.elapsed().as_secs_f64()
        );
        vm
    }

    /// The seconds of a CPU that the sidecar has had so far, and what serves, but for the kernel's
    /// threads.
    fn used(&self) -> [f64; 2] {
        let seconds = |process| cpu_seconds(process).unwrap();
        let serving = self.processes.iter().map(|process| seconds(process.id()));
        [seconds(self.sidecar), serving.sum()]
    }

    fn measure(&self, client: &Pod, (_, port, path): (&str, u16, &str), seconds: u32) -> [f64; 4] {
        let host = &self.service.address;
        let before = self.used();
        let script =
            format!("wrk -t1 -c8 -d{seconds}s --timeout 20s --latency http://{host}:{port}{path}");
        let said = client.run(&script);
        let after = self.used();
        let [rate, latency, requests] =
            read(&said).unwrap_or_else(|| panic!("{}: {said}", self.place.name()));
        let each = |i: usize| (after[i] - before[i]) * 1e6 / requests;
        [rate, latency, each(0), each(1)]
    }
}

/// The sidecar of a pod, which knows all services.
fn sidecar(name: &str, pod: &Pod, inbound: &[u16], services: &[Service]) -> Envoy {
    let sidecar = Sidecar {
        name,
        redirect: &Redirect::ISTIO,
        inbound,
        services,
        registry_only: true,
        identity: None,
        tracing: None,
    };
    Envoy::start(pod, User::Istio, &sidecar.bootstrap())
}

fn main() {
    let options = Options::parse();
    let directory = std::env::var_os("PEAPOD_BENCH");
    let directory = directory.expect("PEAPOD_BENCH is not set: run `make bench-mesh`");
    enclose().unwrap();
    println!("{}", machine());
    println!("{}\n{}", version("qemu-system-x86_64"), version(&passt()));

    let node = Node::new();
    let client = node.pod("client", 10);
    let pods: Vec<Pod> = (0u8..)
        .zip(PLACES)
        .map(|(number, place)| node.pod(place.name(), 20 + number))
        .collect();
    let services: Vec<Service> = pods
        .iter()
        .enumerate()
        .flat_map(|(number, pod)| {
            SERVERS.map(|(name, port, _)| {
                let name = format!("{}-{number}", name.trim_end_matches(".rb"));
                Service::new(&name, &format!("172.30.0.{}", 20 + number), port)
                    .of(pod.address, port)
            })
        })
        .collect();
    node.publish(&services);
    Redirect::ISTIO.load(&client);
    let _client = sidecar("client", &client, &[], &services);
    let user_data = format!("#!/bin/bash\n{NGINX}{SERVE}");
    let boot = Boot::of("peapod/nginx:latest", &user_data, MEMORY_MIB, &[9080, 9081]);
    let wanted = |place: Place| {
        let network = place.0.filter(|_| !options.with.is_empty());
        network.is_none_or(|network| options.with.contains(&network))
    };
    let mut vms: Vec<Vm> = (PLACES.iter().zip(&pods))
        .filter(|(place, _)| wanted(**place))
        .map(|(place, pod)| Vm::start(*place, &boot, pod, &services))
        .collect();
    for round in 0..=options.rounds {
        eprintln!("==> round {round} of {}", options.rounds);
        for vm in &mut vms {
            for (index, server) in SERVERS.into_iter().enumerate() {
                let figures = vm.measure(&client, server, options.seconds);
                let [rate, latency, cpu, own] = figures;
                let (name, what) = (vm.place.name(), server.0);
                eprintln!(
                    "    {name:<22} {what:<10} {rate:>8.1}/s {latency:>8.1} ms {cpu:>8.0} us {own:>8.0} us"
                );
                // The first round is slower than the next.
                if round > 0 {
                    let series = vm.series[index].iter_mut();
                    series.zip(figures).for_each(|(s, f)| s.push(f));
                }
            }
        }
        // Nobody is always the first.
        vms.rotate_left(1);
    }
    vms.sort_by_key(|vm| PLACES.iter().position(|place| *place == vm.place));
    // Without ours there is nothing to hold against anybody.
    let [ours, peers @ ..] = &vms[..] else { return };
    if ours.place != PLACES[0] {
        return;
    }
    let mut records = Vec::new();
    for (server, (what, _, _)) in SERVERS.iter().enumerate() {
        for (figure, (name, unit)) in FIGURES.iter().enumerate() {
            records.extend(peers.iter().map(|peer| {
                let theirs = (peer.place.name(), &peer.series[server][figure][..]);
                let mark = mark(figure, server, peer.place);
                let name = format!("{what}: {name}");
                Record::new(&name, unit, &ours.series[server][figure], theirs, mark)
            }));
        }
    }
    report(Path::new(&directory), "mesh", &records).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read_unless_a_request_failed() {
        let said = "Running 5s test @ http://172.30.0.20:9080/\n  1 threads and 8 connections\n  \
            Latency Distribution\n     50%    1.10ms\n     99%    1.50s \n  \
            12 requests in 5.01s, 2.59MB read\nRequests/sec:   2.40\nTransfer/sec:    529.06KB\n";
        assert_eq!(read(said), Some([2.4, 1500.0, 12.0]));
        let failed = said.replace("Requests/sec", "  Socket errors: connect 1\nRequests/sec");
        assert_eq!(read(&failed), None);
    }
}
