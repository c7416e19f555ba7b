//! A domain's figures in KubeVirt's JSON: each with a word that says whether it is known.

use netdev::counters::{Content, Counters, Direction};
use serde_json::{Map, Value, json};

use super::Domain;
use crate::devices::virtio::block;
use crate::running::Running;

impl Domain {
    /// The figures now.
    pub fn stats(&self, running: &Running) -> Value {
        let kib = running.memory / 1024;
        let running_vcpu = known([("State", json!(1))]);
        let vcpus = vec![running_vcpu; running.vcpus as usize];
        let network = running.network.as_ref().map(|network| network.counters());
        let net = self.interface.iter().zip(network);
        let net: Vec<_> = net
            .map(|((name, _), counters)| traffic(name, counters))
            .collect();
        let disks = self.disks.iter().zip(&running.disks);
        let block: Vec<_> = disks
            .map(|(disk, (_, counters))| requests(disk, counters))
            .collect();
        json!({
            "Name": self.full_name(),
            "UUID": self.uuid,
            "Cpu": known([("Time", json!(cpu_time()))]),
            "Memory": known([("ActualBalloon", json!(kib)), ("Total", json!(kib))]),
            "MigrateDomainJobInfo": null,
            "Vcpu": vcpus,
            "Net": net,
            "Block": block,
            "CPUMapSet": false,
            "CPUMap": null,
            "DirtyRate": null,
            "Load": null,
        })
    }
}

/// The process's time on CPUs, in nanoseconds.
fn cpu_time() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // Of libc's, for rustix's first such call makes others, which the sandbox does not let pass.
    // SAFETY: the structure is ours, and outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

/// What KubeVirt calls `Rx` is what the guest received.
fn traffic(name: &str, counters: &Counters) -> Value {
    let sum = |direction| {
        Content::ALL.iter().fold((0, 0), |(packets, bytes), kind| {
            let one = counters.traffic(direction, *kind);
            (packets + one.packets.get(), bytes + one.bytes.get())
        })
    };
    let (received, received_bytes) = sum(Direction::In);
    let (sent, sent_bytes) = sum(Direction::Out);
    known([
        ("Name", name.into()),
        ("Alias", name.into()),
        ("RxPkts", received.into()),
        ("RxBytes", received_bytes.into()),
        ("RxDrop", counters.dropped_no_room.get().into()),
        ("TxPkts", sent.into()),
        ("TxBytes", sent_bytes.into()),
    ])
}

/// What was done with a disk, which the domain has so. Nobody takes the time of a request.
fn requests(disk: &Value, counters: &block::counters::Counters) -> Value {
    let text = |pointer: &str| disk.pointer(pointer).cloned().unwrap_or_default();
    known([
        ("Name", text("/Target/Device")),
        ("Alias", text("/Alias/Name")),
        ("Path", text("/Source/File")),
        ("RdReqs", counters.reads.get().into()),
        ("RdBytes", counters.read_bytes.get().into()),
        ("WrReqs", counters.writes.get().into()),
        ("WrBytes", counters.written_bytes.get().into()),
        ("FlReqs", counters.flushes.get().into()),
        ("Errors", counters.errors.get().into()),
    ])
}

fn known<const COUNT: usize>(figures: [(&str, Value); COUNT]) -> Value {
    let mut all = Map::new();
    for (name, value) in figures {
        all.insert(format!("{name}Set"), true.into());
        all.insert(name.to_owned(), value);
    }
    all.into()
}
