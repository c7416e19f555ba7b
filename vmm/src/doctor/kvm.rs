//! /dev/kvm: there, openable, able enough, and fit to run what a stock kernel runs.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kvm_ioctls::{Cap, Kvm};

use super::{Check, probe};
use crate::host;

const NAME: &str = "kvm";
/// The probes take microseconds; a KVM that takes this long is of no use.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the machine is built of (linux/Documentation/virt/kvm/api.rst names each).
const NEEDED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

pub(super) fn check() -> Check {
    let kvm = match host::open_kvm() {
        Ok(kvm) => kvm,
        Err(e) => return Check::missing(NAME, true, e.to_string(), None),
    };
    let absent: Vec<_> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, n)| *n)
        .collect();
    if !absent.is_empty() {
        let detail = format!("/dev/kvm lacks {}", absent.join(", "));
        return Check::missing(NAME, true, detail, Some("use a kernel of 4.13 or later"));
    }
    // In a thread of its own, for a guest that never exits cannot be waited for.
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(probes(&kvm)));
    match receive.recv_timeout(PATIENCE) {
        Ok(Ok(())) => Check::ok(
            NAME,
            true,
            "/dev/kvm opens, has all that is needed, and boots a stock kernel",
        ),
        Ok(Err(why)) => unfit(&why),
        Err(_) => unfit("a guest of ten instructions did not come to its end"),
    }
}

fn unfit(why: &str) -> Check {
    let detail = format!("/dev/kvm opens, but cannot boot a stock kernel: {why}");
    Check::missing(
        NAME,
        true,
        detail,
        Some("use hardware virtualization, or run in ci/lab"),
    )
}

fn probes(kvm: &Kvm) -> Result<(), String> {
    probe::real_mode(kvm).map_err(|e| format!("in real mode, {e}"))?;
    probe::long_mode(kvm).map_err(|e| format!("in long mode, {e}"))
}
