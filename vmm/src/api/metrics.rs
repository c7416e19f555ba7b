//! The VM's figures as Prometheus reads them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use netdev::counters::Counter;
use netdev::prometheus::Page;

use crate::devices::virtio::balloon::Figures;
use crate::devices::virtio::block::counters as disk;
use crate::devices::virtio::trouble::Complaints;
use crate::running::Running;

/// Prometheus' text format.
const TEXT: &str = "text/plain; version=0.0.4";

pub async fn metrics(State(running): State<Arc<Running>>) -> impl IntoResponse {
    let network = running.network.as_ref();
    let network = network.map(|network| network.counters().prometheus());
    let all = own(&running) + &network.unwrap_or_default();
    ([(header::CONTENT_TYPE, TEXT)], all)
}

/// What the guest has beside its balloon, and how it fares with that, as far as it says.
fn balloon(page: &mut Page, figures: &Figures) {
    page.metric(
        "balloon_target_bytes",
        "gauge",
        "Memory that the guest was asked to make do with.",
    );
    page.sample("balloon_target_bytes", &[], figures.target);
    page.metric(
        "balloon_actual_bytes",
        "gauge",
        "Memory that the guest has beside its balloon.",
    );
    page.sample("balloon_actual_bytes", &[], figures.actual);
    let guest = figures.guest.unwrap_or_default();
    let gauges = [
        ("total", guest.total),
        ("free", guest.free),
        ("available", guest.available),
        ("caches", guest.caches),
    ];
    page.metric(
        "guest_memory_bytes",
        "gauge",
        "Memory as the guest counts it, by state.",
    );
    for (state, value) in gauges {
        if let Some(value) = value {
            page.sample("guest_memory_bytes", &[("state", state)], value);
        }
    }
    let faults = [("major", guest.major_faults), ("minor", guest.minor_faults)];
    page.metric(
        "guest_page_faults_total",
        "counter",
        "Page faults in the guest, by whether they waited for a disk.",
    );
    for (kind, value) in faults {
        if let Some(value) = value {
            page.sample("guest_page_faults_total", &[("kind", kind)], value);
        }
    }
    let swapped = [("in", guest.swapped_in), ("out", guest.swapped_out)];
    page.metric(
        "guest_swapped_bytes_total",
        "counter",
        "What the guest read from its swap and wrote there.",
    );
    for (direction, value) in swapped {
        if let Some(value) = value {
            let labels = [("direction", direction)];
            page.sample("guest_swapped_bytes_total", &labels, value);
        }
    }
}

/// What is done with each disk.
fn disks(page: &mut Page, disks: &[(String, Arc<disk::Counters>)]) {
    type Kinds = [(&'static str, fn(&disk::Counters) -> &Counter)];
    let requests: &Kinds = &[
        ("read", |disk| &disk.reads),
        ("write", |disk| &disk.writes),
        ("flush", |disk| &disk.flushes),
        ("discard", |disk| &disk.discards),
    ];
    let bytes: &Kinds = &[
        ("read", |disk| &disk.read_bytes),
        ("write", |disk| &disk.written_bytes),
        ("discard", |disk| &disk.discarded_bytes),
    ];
    for (name, help, kinds) in [
        (
            "disk_requests_total",
            "Requests of the guest to its disks, by kind.",
            requests,
        ),
        (
            "disk_bytes_total",
            "Bytes of those that were done, by kind.",
            bytes,
        ),
    ] {
        page.metric(name, "counter", help);
        for (disk, counters) in disks {
            for (kind, counter) in kinds {
                let labels = [("disk", disk.as_str()), ("kind", kind)];
                page.sample(name, &labels, counter(counters).get());
            }
        }
    }
    page.metric(
        "disk_errors_total",
        "counter",
        "Requests of the guest to its disks that failed.",
    );
    for (disk, counters) in disks {
        page.sample(
            "disk_errors_total",
            &[("disk", disk)],
            counters.errors.get(),
        );
    }
}

fn own(running: &Running) -> String {
    let status = running.status();
    let mut page = Page::new("peapod_");
    page.metric(
        "ready",
        "gauge",
        "Whether the VM is ready, as /readyz has it.",
    );
    page.sample("ready", &[], u64::from(status.ready));
    page.metric("vcpus", "gauge", "vCPUs of the VM.");
    page.sample("vcpus", &[], status.vcpus.into());
    page.metric("memory_bytes", "gauge", "Memory of the guest.");
    page.sample("memory_bytes", &[], status.memory);
    page.metric(
        "resident_bytes",
        "gauge",
        "What the process holds of the host's memory, the guest's included.",
    );
    page.sample("resident_bytes", &[], status.resident);
    if let Some(figures) = &status.balloon {
        balloon(&mut page, figures);
    }
    disks(&mut page, &running.disks);
    page.metric(
        "vcpu_exits_total",
        "counter",
        "Exits of vCPUs that KVM did not answer itself, by reason.",
    );
    let exits = &running.exits;
    for (reason, counter) in [
        ("pio", &exits.pio),
        ("mmio", &exits.mmio),
        ("kicked", &exits.kicked),
    ] {
        page.sample("vcpu_exits_total", &[("reason", reason)], counter.get());
    }
    type Read = fn(&Complaints) -> &Counter;
    let counters: [(&str, &str, Read); 2] = [
        (
            "device_malformed_total",
            "Requests of the guest's driver that made no sense and were given back unserved.",
            |of| &of.malformed,
        ),
        (
            "device_broken_total",
            "Times that the guest's driver broke a queue, and so has to reset the device.",
            |of| &of.broken,
        ),
    ];
    for (name, help, counter) in counters {
        page.metric(name, "counter", help);
        for device in &running.complaints {
            let labels = [("device", device.device), ("name", &device.name)];
            page.sample(name, &labels, counter(device).get());
        }
    }
    page.metric(
        "boot_stage_milliseconds",
        "gauge",
        "Uptime of the guest when a stage of its set-up came so far, as its agent says.",
    );
    for stage in &status.agent.stages {
        let state = format!("{:?}", stage.state).to_lowercase();
        let labels = [("stage", stage.name.as_str()), ("state", &state)];
        page.sample("boot_stage_milliseconds", &labels, stage.uptime_ms);
    }
    if let Some(ready) = status.agent.ready_ms {
        page.metric(
            "boot_ready_milliseconds",
            "gauge",
            "Uptime of the guest when its set-up was over, as its agent says.",
        );
        page.sample("boot_ready_milliseconds", &[], ready);
    }
    page.into_text()
}
