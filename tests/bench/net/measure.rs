//! What is measured of a site: each measurement gives the figures of one or more rows.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use peapod_tests::bench::{Mark, cpu_seconds, ticks};
use peapod_tests::sides::{Family, Way};

use crate::load::service;
use crate::profile;
use crate::site::Contender::{Loopback, Pasta, Slirp4netns, Veth};
use crate::site::Site;
use crate::table::{Against, Row};

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Of a stream.
    pub seconds: f64,
    /// Of a probe with datagrams.
    pub probe: f64,
    pub asks: usize,
    pub connects: usize,
    /// Idle flows.
    pub flows: usize,
}

#[derive(Debug, Clone, Copy)]
pub enum Measurement {
    Stream(Way, Family, u16),
    BehindSidecar,
    Ask(Way),
    Connect(Way),
    Datagrams(Way, usize),
    Idle,
    ProfileStream(Way),
    ProfileAsk(Way),
}

/// Longer than anything lasts that is not stuck.
pub const LIMIT: Duration = Duration::from_secs(40);
/// Less loss than this counts as none.
const LOSS: f64 = 0.001;
/// Datagrams a second: where the search begins, and what it is content with at either end.
const START_PACE: f64 = 32_000.0;
const PACES: std::ops::Range<f64> = 500.0..4e6;
/// Halvings of what is left between a pace that passed and one that failed, on a logarithmic
/// scale: to some 4 %.
const HALVINGS: usize = 4;

const PEERS: [Against; 2] = [Against::One(Pasta, None), Against::One(Slirp4netns, None)];

impl Measurement {
    /// What the figures are, and what they are held against.
    pub fn rows(self, scale: Scale) -> Vec<Row> {
        use Against::{BetterOf, Goal, One};
        let least = |peer, ratio| One(peer, Some(Mark::AtLeast(ratio)));
        let most = |peer, ratio| One(peer, Some(Mark::AtMost(ratio)));
        let below = |peer| One(peer, Some(Mark::Below(1.0)));
        let stream = |name: &str, against: &[Against]| {
            let all = [&PEERS[..], &[One(Veth, None)]].concat();
            vec![
                Row::new(name, "Gbit/s", against),
                Row::new(&format!("{name}: its CPU"), "s/GiB", &PEERS),
                Row::new(&format!("{name}: all CPU"), "s/GiB", &all),
            ]
        };
        let profile = |of: &str, figures: &[(&str, &'static str)]| {
            let row = |(what, unit): &(&str, &'static str)| {
                Row::new(&format!("profile: {of}: {what}"), unit, &PEERS)
            };
            figures.iter().map(row).collect()
        };
        match self {
            Self::Stream(way, family, mtu) => {
                let better = BetterOf([Pasta, Slirp4netns], Mark::AtLeast(1.2));
                let peers = if mtu == 1500 { &PEERS[..] } else { &[better] };
                let against = [&[least(Veth, 0.8)], peers].concat();
                stream(&format!("TCP {way} {family} MTU {mtu}"), &against)
            }
            Self::BehindSidecar => {
                let against = [&[least(Loopback, 0.6)], &PEERS[..]].concat();
                stream("TCP g->h IPv4 behind Istio", &against)
            }
            Self::Ask(way) => {
                let name = format!("1 B there and back {way}");
                let against = [most(Pasta, 0.75), One(Veth, None)];
                vec![
                    Row::new(&format!("{name}: p50"), "us", &against),
                    Row::new(&format!("{name}: p99"), "us", &[most(Pasta, 1.0)]),
                ]
            }
            Self::Connect(way) => {
                let against = [most(Veth, 1.25), below(Pasta), below(Slirp4netns)];
                let name = format!("connect, 1 B, close {way}: mean");
                vec![Row::new(&name, "us", &against)]
            }
            Self::Datagrams(way, size) => {
                let against = [least(Pasta, 1.3), One(Slirp4netns, None)];
                let name = format!("UDP {size} B {way}, loss < 0.1 %");
                vec![Row::new(&name, "1/s", &against)]
            }
            Self::ProfileStream(way) => profile(
                &format!("TCP {way} IPv4 MTU 1500"),
                &[
                    ("system calls", "1/MiB"),
                    ("wake-ups", "1/MiB"),
                    ("frames", "1/MiB"),
                    ("CPU a frame", "ns"),
                ],
            ),
            Self::ProfileAsk(way) => profile(
                &format!("1 B there and back {way}"),
                &[("system calls", ""), ("wake-ups", ""), ("CPU", "ns")],
            ),
            Self::Idle => {
                let (all, most) = (scale.flows as f64, Mark::AtMost(1.0));
                let pasta = [One(Pasta, None)];
                vec![
                    Row::new("idle flows opened", "", &[Goal(all, Mark::AtLeast(1.0))]),
                    Row::new("a flow's descriptors", "", &[Goal(1.0, most)]),
                    Row::new("a flow's memory: PSS", "B", &[Goal(1024.0, most)]),
                    Row::new("a flow's memory: RSS", "B", &pasta),
                    Row::new("1 B there and back beside them: p50", "us", &pasta),
                ]
            }
        }
    }

    /// The figures of the rows, in their order; nothing if the contender can't do this.
    pub fn of(self, site: &mut Site, scale: Scale) -> io::Result<Option<Vec<f64>>> {
        let (way, family, service) = match self {
            Self::Stream(way, family, _) => (way, family, service::SINK),
            Self::ProfileStream(way) => (way, Family::V4, service::SINK),
            Self::ProfileAsk(way) => (way, Family::V4, service::ECHO),
            Self::BehindSidecar => (Way::Out, Family::V4, service::SINK),
            Self::Ask(way) => (way, Family::V4, service::ECHO),
            Self::Connect(way) => (way, Family::V4, service::ONCE),
            Self::Datagrams(way, _) => (way, Family::V4, service::DATAGRAMS),
            Self::Idle => (Way::Out, Family::V4, service::ECHO),
        };
        let Some(to) = site.target(way, family, service) else {
            return Ok(None);
        };
        let figures = match self {
            Self::Stream(..) | Self::BehindSidecar => stream(site, way, to),
            Self::Ask(_) => ask(site, way, to, scale.asks),
            Self::Connect(_) => {
                let client = site.load(way, &format!("connect {to} {}", scale.connects))?;
                Ok(client.numbers::<1>(LIMIT)?.to_vec())
            }
            Self::Datagrams(_, size) => fastest(|pace| {
                let words = format!("datagrams {to} {size} {pace} {}", scale.probe);
                probe(site, way, &words)
            }),
            Self::Idle => idle(site, to, scale),
            Self::ProfileStream(_) => profile::stream(site, way, to),
            Self::ProfileAsk(_) => profile::ask(site, way, to, scale.asks),
        };
        figures.map(Some)
    }
}

fn stream(site: &mut Site, way: Way, to: SocketAddr) -> io::Result<Vec<f64>> {
    let (own, all) = (own_cpu(site)?, machine_cpu()?);
    let client = site.load(way, &format!("send {to}"))?;
    let received = site.server(way).numbers(LIMIT);
    // If nothing came, the sender knows why.
    let why = |_| client.numbers(Duration::ZERO);
    let [bytes, nanoseconds] = received.or_else(why)?;
    drop(client);
    let gib = bytes / f64::from(1 << 30);
    Ok(vec![
        bytes * 8.0 / nanoseconds,
        (own_cpu(site)? - own) / gib,
        (machine_cpu()? - all) / gib,
    ])
}

fn ask(site: &Site, way: Way, to: SocketAddr, times: usize) -> io::Result<Vec<f64>> {
    let client = site.load(way, &format!("ask {to} {times}"))?;
    Ok(client.numbers::<2>(LIMIT)?.to_vec())
}

/// The highest rate at which next to nothing is lost.
fn fastest(mut probe: impl FnMut(f64) -> io::Result<Option<f64>>) -> io::Result<Vec<f64>> {
    let (mut passed, mut failed) = (PACES.start, PACES.end);
    let (mut pace, mut best, mut halvings) = (START_PACE, 0.0_f64, 0);
    while halvings <= HALVINGS && PACES.contains(&pace) {
        // A machine's hiccup is no loss of the contender's: each pace gets a second chance.
        let mut rate = probe(pace)?;
        if rate.is_none() {
            rate = probe(pace)?;
        }
        match rate {
            Some(rate) => {
                best = best.max(rate);
                passed = pace;
                // A sender that didn't keep the pace won't keep a higher one.
                if rate < pace * 0.95 {
                    break;
                }
            }
            None => failed = pace,
        }
        pace = if failed == PACES.end {
            pace * 2.0
        } else if passed == PACES.start {
            pace / 2.0
        } else {
            halvings += 1;
            (passed * failed).sqrt()
        };
    }
    Ok(vec![best])
}

/// Datagrams received a second of sending, if next to none was lost.
fn probe(site: &mut Site, way: Way, words: &str) -> io::Result<Option<f64>> {
    let client = site.load(way, words)?;
    let [sent, nanoseconds] = client.numbers(LIMIT)?;
    // What is still on its way arrives.
    sleep(Duration::from_millis(50));
    let server = site.server(way);
    if let Some(input) = &mut server.input {
        input.write_all(b"\n")?;
    }
    let [received] = server.numbers(LIMIT)?;
    Ok((received >= sent * (1.0 - LOSS)).then_some(received / nanoseconds * 1e9))
}

fn idle(site: &mut Site, to: SocketAddr, scale: Scale) -> io::Result<Vec<f64>> {
    // What the first flow of all brings with it belongs to no flow.
    ask(site, Way::Out, to, 10)?;
    let before = possessions(site)?;
    let (flows, holders) = (scale.flows, site.holders().join(" "));
    // A fifth of a millisecond for each of many is enough for a peer too.
    let seconds = LIMIT.as_secs() / 2 + flows as u64 / 5000;
    let client = site.load(Way::Out, &format!("hold {flows} {seconds} {holders}"))?;
    let [flows] = client.numbers(2 * Duration::from_secs(seconds))?;
    let after = possessions(site)?;
    // One that took no more flows has none left for this.
    let beside = ask(site, Way::Out, to, scale.asks);
    let p50 = beside.map_or(f64::NAN, |figures| figures[0]);
    let [descriptors, pss, rss] = [0, 1, 2].map(|i| (after[i] - before[i]) / flows);
    // A descriptor more for all of them together is none for each.
    let descriptors = (descriptors * 100.0).round() / 100.0;
    Ok(vec![flows, descriptors, pss, rss, p50])
}

/// The contender's descriptors, PSS and RSS in bytes; nothing of one that is no process.
fn possessions(site: &Site) -> io::Result<[f64; 3]> {
    let Some(process) = &site.process else {
        return Ok([f64::NAN; 3]);
    };
    let descriptors = fs::read_dir(format!("/proc/{}/fd", process.id()))?.count();
    let memory = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.id()))?;
    let bytes = |name| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok());
        kib.map_or(f64::NAN, |kib| kib * 1024.0)
    };
    Ok([descriptors as f64, bytes("Pss:"), bytes("Rss:")])
}

/// The contender's own seconds on a CPU so far; not a number if it is no process.
fn own_cpu(site: &Site) -> io::Result<f64> {
    let Some(process) = &site.process else {
        return Ok(f64::NAN);
    };
    cpu_seconds(process.id())
}

/// Everybody's.
fn machine_cpu() -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq
    let fields: Vec<&str> = all.split_whitespace().skip(1).collect();
    Ok(ticks([0, 1, 2, 5, 6].map(|i| fields[i]).into_iter()))
}
