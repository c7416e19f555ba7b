//! `make bench-net`: what a user-mode network costs the streams, calls and datagrams of a network
//! namespace, beside pasta, slirp4netns and what a container has, in turns.
//!
//! Each contender gets a host's and a guest's namespace of its own, anew in every round.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod load;
mod measure;
mod profile;
mod site;
mod table;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use peapod_tests::bench::machine;
use peapod_tests::sides::{Family, Way};
use peapod_tests::space;

use measure::{Measurement, Scale};
use rustix::process::{Resource, getrlimit};
use site::{Contender, SPARE, Site};
use table::Table;

/// A failure for a reason outside of what is measured.
const UNUSABLE: u8 = 2;

/// Idle flows where descriptors are many, and where they are not.
const MANY: usize = 100_000;
const SOME: usize = 15_000;

/// The first word of a command line for a part of the load.
const LOAD: &str = "load";

#[derive(Parser)]
struct Options {
    /// How often each contender is measured; the medians are told.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// One round with little of everything, to see that it works.
    #[arg(long)]
    quick: bool,
    /// What to measure.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// The only contenders.
    #[arg(long, value_delimiter = ',')]
    with: Vec<Contender>,
    /// Contenders to leave out.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Contender>,
    /// Idle flows to open [default: 100,000 where a process may have as many descriptors, else 15,000]
    #[arg(long)]
    flows: Option<usize>,
    /// Runs in namespaces of its own already.
    #[arg(long, hide = true)]
    enclosed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One stream each way.
    Tcp,
    /// A byte there and back.
    Rr,
    /// The same with a connection for each.
    Crr,
    /// Datagrams, as many as arrive.
    Udp,
    /// One stream out behind the rules of Istio's sidecar.
    Istio,
    /// Memory and descriptors of idle flows.
    Idle,
    /// System calls, wake-ups and time on a CPU, of a stream and of a byte there and back.
    Profile,
}

/// What is measured of sites of one kind.
struct Stage {
    mtu: u16,
    sidecar: bool,
    /// How many sites stand at once: all, so that each measurement goes round them, or one.
    together: usize,
    measurements: Vec<(Part, Measurement)>,
}

impl Options {
    fn scale(&self) -> Scale {
        let flows = self.flows.unwrap_or_else(idle_flows);
        let usual = Scale {
            seconds: 2.0,
            probe: 0.5,
            asks: 5000,
            connects: 2000,
            flows,
        };
        let quick = Scale {
            seconds: 0.5,
            probe: 0.2,
            asks: 500,
            connects: 200,
            flows: flows.min(1000),
        };
        if self.quick { quick } else { usual }
    }

    fn contenders(&self) -> Vec<Contender> {
        let mut contenders = Contender::value_variants().to_vec();
        contenders.retain(|c| self.with.is_empty() || self.with.contains(c));
        contenders.retain(|c| !self.without.contains(c));
        contenders
    }

    fn stages(&self) -> Vec<Stage> {
        const WAYS: [Way; 2] = Way::BOTH;
        let streams = |mtu| {
            let families = Family::BOTH.into_iter();
            families.flat_map(move |f| WAYS.map(|w| (Part::Tcp, Measurement::Stream(w, f, mtu))))
        };
        let small = WAYS.map(|w| (Part::Rr, Measurement::Ask(w))).into_iter();
        let small = small.chain(WAYS.map(|w| (Part::Crr, Measurement::Connect(w))));
        let datagrams = |size| WAYS.map(|w| (Part::Udp, Measurement::Datagrams(w, size)));
        let small = small.chain([64, 1400].into_iter().flat_map(datagrams));
        let stage = |mtu, sidecar, together, measurements: Vec<_>| Stage {
            mtu,
            sidecar,
            together,
            measurements,
        };
        let istio = vec![(Part::Istio, Measurement::BehindSidecar)];
        let idle = vec![(Part::Idle, Measurement::Idle)];
        let profile = WAYS.map(Measurement::ProfileStream).into_iter();
        let profile = profile.chain(WAYS.map(Measurement::ProfileAsk));
        let profile = profile.map(|measurement| (Part::Profile, measurement));
        let all = usize::MAX;
        let mut stages = vec![
            stage(1500, false, all, streams(1500).chain(small).collect()),
            stage(65520, false, all, streams(65520).collect()),
            stage(1500, true, all, istio),
            stage(1500, false, 1, idle),
            stage(1500, false, all, profile.collect()),
        ];
        let wanted = |part: &Part| self.only.is_empty() || self.only.contains(part);
        for stage in &mut stages {
            stage.measurements.retain(|(part, _)| wanted(part));
        }
        stages.retain(|stage| !stage.measurements.is_empty());
        stages
    }
}

/// As many idle flows as each process may have descriptors for, of those that are asked for.
fn idle_flows() -> usize {
    let most = getrlimit(Resource::Nofile).maximum;
    let most = most.map_or(usize::MAX, |most| most as usize);
    match most.saturating_sub(SPARE) {
        MANY.. => MANY,
        fewer => fewer.min(SOME),
    }
}

/// Whether a measurement says anything of a contender.
fn concerns(part: Part, contender: Contender) -> bool {
    use Contender::{Loopback, Relay, Veth};
    match part {
        // The rules take what comes by a veth for a call from outside. On loopback the guest's end
        // is a process of the host's own.
        Part::Istio => !matches!(contender, Veth | Relay),
        // Those that keep flows in a process of theirs.
        Part::Idle | Part::Profile => !matches!(contender, Veth | Relay | Loopback),
        Part::Udp => !matches!(contender, Relay | Loopback),
        Part::Tcp | Part::Rr | Part::Crr => true,
    }
}

/// What has come out so far.
#[derive(Default)]
struct Outcome {
    table: Table,
    failures: Vec<String>,
}

impl Outcome {
    fn failed(&mut self, contender: Contender, what: &str, error: &io::Error) {
        let (name, said) = (contender.name(), contender.complaint());
        let failure = format!("{name}: {what}: {error}; it complained of: {said}");
        eprintln!("    {failure}");
        self.failures.push(failure);
    }

    /// Measures each of the contenders once.
    fn measure(&mut self, stage: &Stage, contenders: &[Contender], scale: Scale) {
        let mut sites = Vec::new();
        for &contender in contenders {
            let mut parts = stage.measurements.iter().map(|(part, _)| *part);
            if !parts.any(|part| concerns(part, contender)) {
                continue;
            }
            match Site::new(contender, stage.mtu, scale, stage.sidecar) {
                Ok(site) => sites.push(site),
                Err(error) => self.failed(contender, "start", &error),
            }
        }
        for (part, measurement) in &stage.measurements {
            for site in sites.iter_mut().filter(|s| concerns(*part, s.contender)) {
                match measurement.of(site, scale) {
                    Ok(Some(figures)) => {
                        let rows = measurement.rows(scale);
                        self.table.add(site.contender, rows, &figures);
                    }
                    Ok(None) => {}
                    Err(e) => self.failed(site.contender, &format!("{measurement:?}"), &e),
                }
            }
        }
    }
}

/// Measures everything; what went wrong on the way.
fn measure(options: &Options, directory: &Path) -> io::Result<Vec<String>> {
    let rounds = if options.quick { 1 } else { options.rounds };
    let (order, stages) = (options.contenders(), options.stages());
    println!("{}", machine());
    for contender in &order {
        let name = contender.name();
        let absent = |e| io::Error::other(format!("{e}; or leave it out: --without {name}"));
        if let Some(version) = contender.version().map_err(absent)? {
            println!("{name}: {version}");
        }
    }
    let (mut contenders, mut outcome) = (order.clone(), Outcome::default());
    for round in 1..=rounds {
        for stage in &stages {
            eprintln!("==> round {round} of {rounds}, MTU {}", stage.mtu);
            for some in contenders.chunks(stage.together.min(contenders.len().max(1))) {
                outcome.measure(stage, some, options.scale());
            }
        }
        // Nobody is always the first.
        contenders.rotate_left(1);
    }
    outcome.table.print(&order);
    outcome.table.write(directory)?;
    Ok(outcome.failures)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == LOAD) {
        // Whoever started it reads this.
        if let Err(error) = load::run(&words[1..]) {
            println!("{error}");
        }
        return ExitCode::SUCCESS;
    }
    match start(&Options::parse()) {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("failed: {}", failures.join("\nfailed: "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench-net: {error}");
            ExitCode::from(UNUSABLE)
        }
    }
}

fn start(options: &Options) -> io::Result<Vec<String>> {
    let directory = std::env::var_os("PEAPOD_BENCH")
        .ok_or_else(|| io::Error::other("PEAPOD_BENCH is not set: run `make bench-net`"))?;
    // With a descriptor for every flow, in all that is started here.
    space::enclose()?;
    measure(options, Path::new(&directory))
}
