//! Benchmarks: what is measured is measured of ours and of a peer in turns, and told with its
//! spread. Every benchmark writes the same records.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

/// A mark that a figure is held against: the ratio of ours to the peer's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mark {
    /// Ours is at most so many times the peer's.
    AtMost(f64),
    /// Ours is less than so many times the peer's.
    Below(f64),
    /// Ours is at least so many times the peer's.
    AtLeast(f64),
}

/// One figure of ours beside one of a peer's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// What was measured.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Ours, the median.
    pub ours: f64,
    /// The peer's, the median; no number, and null in JSON, where it could not do that.
    #[serde(deserialize_with = "number")]
    pub peer: f64,
    /// Who that is.
    pub peer_name: String,
    /// How often each was measured.
    pub samples: usize,
    /// Of each, in ours' order: from the least to the most, divided by the median.
    #[serde(deserialize_with = "numbers")]
    pub spread: [f64; 2],
    /// Where.
    pub machine: String,
    /// Ours divided by the peer's.
    #[serde(deserialize_with = "number")]
    pub ratio: f64,
    /// What the ratio is to be, if anything: `<= 0.75`.
    pub mark: Option<String>,
    /// Whether it is.
    pub met: Option<bool>,
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<[f64; 2], D::Error> {
    let numbers = <[Option<f64>; 2]>::deserialize(from)?;
    Ok(numbers.map(|number| number.unwrap_or(f64::NAN)))
}

impl Record {
    /// The record of two series that were measured in turns.
    pub fn new(
        name: &str,
        unit: &str,
        ours: &[f64],
        (peer_name, peer): (&str, &[f64]),
        mark: Option<Mark>,
    ) -> Self {
        let (our_median, peer_median) = (median(ours), median(peer));
        let ratio = our_median / peer_median;
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            ours: our_median,
            peer: peer_median,
            peer_name: peer_name.to_owned(),
            samples: ours.len().min(peer.len()),
            spread: [spread(ours), spread(peer)],
            machine: machine(),
            ratio,
            mark: mark.map(|mark| mark.to_string()),
            met: mark.map(|mark| match mark {
                Mark::AtMost(most) => ratio <= most,
                Mark::Below(most) => ratio < most,
                Mark::AtLeast(least) => ratio >= least,
            }),
        }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::Below(most) => write!(f, "< {most}"),
            Self::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

/// The value in the middle.
pub fn median(series: &[f64]) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.as_slice() {
        [] => f64::NAN,
        all if all.len() % 2 == 1 => all[middle],
        all => (all[middle - 1] + all[middle]) / 2.0,
    }
}

/// From the least to the most, divided by the median.
pub fn spread(series: &[f64]) -> f64 {
    let least = series.iter().copied().fold(f64::INFINITY, f64::min);
    let most = series.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (most - least) / median(series)
}

/// The seconds of a CPU that a process has had so far, or a thread of it (`PID/task/TID`).
pub fn cpu_seconds(process: impl fmt::Display) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name may have anything in it; the fields after it count from the third.
    let fields = stat.rsplit(") ").next().unwrap_or_default();
    Ok(ticks(fields.split(' ').skip(11).take(2)))
}

/// What a thread of a process has done so far.
#[derive(Debug, Clone)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// How often it has slept, and so was woken.
    pub sleeps: u64,
    /// The nanoseconds of a CPU that it has had.
    pub ran: u64,
}

/// The threads of a process; one may have ended meanwhile.
pub fn threads(process: u32) -> io::Result<Vec<Thread>> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))?;
    let threads = tasks.map(|task| {
        let path = task?.path();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap_or_default();
        let (status, run) = (read("status"), read("schedstat"));
        let slept = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(Thread {
            name: read("comm").trim().to_owned(),
            sleeps: slept.map_or(0, |n| n.trim().parse().unwrap_or(0)),
            ran: run.split(' ').next().map_or(0, |n| n.parse().unwrap_or(0)),
        })
    });
    threads.collect()
}

/// The seconds of fields of proc_stat(5) or proc_pid_stat(5) together.
pub fn ticks<'a>(fields: impl Iterator<Item = &'a str>) -> f64 {
    let sum: f64 = fields.filter_map(|field| field.parse::<f64>().ok()).sum();
    sum / rustix::param::clock_ticks_per_second() as f64
}

/// The machine and whether it is the lab's outer one.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, model)| model);
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    let lab = match read("/proc/sys/kernel/hostname").trim() {
        "lab" => "the lab's outer machine (TCG): ",
        _ => "",
    };
    format!("{lab}{model}, {cores} CPUs, Linux {}", kernel.trim())
}

/// Prints the records as a table and writes them as `directory/name.json`.
pub fn report(directory: &Path, name: &str, records: &[Record]) -> io::Result<()> {
    println!(
        "{}",
        records.first().map_or_else(machine, |r| r.machine.clone())
    );
    println!(
        "{:<44} {:>8} {:>12} {:>12} {:<22} {:>7} {:>9} {:>4}  spread",
        "", "unit", "ours", "peer", "", "ratio", "mark", "met"
    );
    for record in records {
        println!(
            "{:<44} {:>8} {:>12.3} {:>12.3} {:<22} {:>7.3} {:>9} {:>4}  {:.0} % / {:.0} % of {}",
            record.name,
            record.unit,
            record.ours,
            record.peer,
            record.peer_name,
            record.ratio,
            record.mark.as_deref().unwrap_or("-"),
            record.met.map_or("-", |met| if met { "yes" } else { "NO" }),
            record.spread[0] * 100.0,
            record.spread[1] * 100.0,
            record.samples
        );
    }
    fs::create_dir_all(directory)?;
    let path = directory.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_vec_pretty(records)?)?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_medians_spread_and_verdict() {
        let record = Record::new(
            "boot",
            "s",
            &[1.0, 3.0, 2.0],
            ("qemu", &[4.0, 4.0, 4.0, 5.0]),
            Some(Mark::AtMost(0.5)),
        );
        assert_eq!((record.ours, record.peer, record.ratio), (2.0, 4.0, 0.5));
        assert_eq!((record.samples, record.met), (3, Some(true)));
        assert_eq!(record.spread, [1.0, 0.25]);
        assert_eq!(record.mark.as_deref(), Some("<= 0.5"));
    }
}
