//! The VM's figures as Prometheus reads them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use netdev::counters::Counter;
use netdev::prometheus::Page;

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
