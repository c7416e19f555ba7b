//! A pod of `peapod pod` in a small kubelet's hands: what becomes of it when its guest is slow, hangs,
//! reboots, goes, or when its VMM does.

use std::time::{Duration, Instant};

use peapod_tests::kubelet::{Kubelet, Terminated};
use peapod_tests::{Guest, Manifest};

use super::{BOOT, SOON};

fn served(name: &str) -> Manifest {
    Manifest::new(name, Guest::SERVE).port(Guest::PORT)
}

/// A pod that is ready, and its guest's shell.
fn ready(name: &str, manifest: &Manifest) -> (Kubelet, Guest) {
    let mut kubelet = Kubelet::run(name, manifest, &[]);
    kubelet.until("it is not ready", BOOT, |pod| pod.ready);
    let guest = Guest::of(kubelet.address);
    (kubelet, guest)
}

fn powered_off() -> Terminated {
    Terminated {
        exit_code: 0,
        message: "the guest powered off".to_owned(),
    }
}

#[test]
fn a_guest_that_is_slow_to_boot_is_waited_for_and_one_that_powers_off_has_succeeded() {
    let script = format!("sleep 8\necho at last\n{}", Guest::SERVE);
    let manifest = Manifest::new("slow", &script).port(Guest::PORT);
    let mut kubelet = Kubelet::run("slow", &manifest, &[]);
    kubelet.until("nobody says that it is not ready", BOOT, |pod| {
        let unready = |event: &String| event.contains("503");
        pod.events.iter().any(unready)
    });
    assert!(!kubelet.status().started && !kubelet.status().ready);
    kubelet.until("it is not ready", BOOT, |pod| pod.ready);
    kubelet.container().vm.wait_console("at last", 1, SOON);
    // Before it had started nobody asked anything else.
    let events = &kubelet.status().events;
    let other = events
        .iter()
        .find(|e| !e.starts_with("Startup probe failed"));
    assert_eq!((other, kubelet.status().restarts), (None, 0));

    Guest::of(kubelet.address).run("(sleep 1; busybox poweroff) > /dev/null 2>&1 &", SOON);
    kubelet.until("it does not end", SOON, |pod| pod.phase.is_some());
    let status = kubelet.status();
    assert_eq!(status.phase, Some("Succeeded"), "{status:?}");
    assert_eq!(status.last, Some(powered_off()));
    assert_eq!(status.restarts, 0);
}

#[test]
#[ignore = "slow: make test-all"]
fn a_guest_that_is_never_ready_is_powered_off_when_its_start_is_given_up() {
    let manifest = Manifest::new("never", "echo up-now\n").port(Guest::PORT);
    let mut kubelet = Kubelet::run("never", &manifest, &["--replicas=1"]);
    kubelet.container().vm.wait_console("up-now", 1, BOOT);
    // Which a kubelet does after 300 failures, a second each.
    kubelet.give_up_start();
    kubelet.until("it is not given up", BOOT, |pod| pod.last.is_some());
    let status = kubelet.status();
    assert_eq!(status.last, Some(powered_off()), "{status:?}");
    // A deployment's.
    assert_eq!((status.restarts, status.phase), (1, None));
}

#[test]
#[ignore = "slow: make test-all"]
fn a_guest_that_hangs_is_unready_and_is_ended_by_force_and_started_again() {
    let manifest = served("hung").grace(2).liveness(
        "{guestAgentPing: {}, periodSeconds: 2, timeoutSeconds: 10, failureThreshold: 4}",
    );
    let (mut kubelet, guest) = ready("hung", &manifest);
    // The kernel itself stops, and cannot say so.
    let hang = "(sleep 1; echo 0 > /proc/sys/kernel/panic
        echo 0000:00:1f.0 > /sys/bus/pci/drivers/pvpanic-pci/unbind
        echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &";
    guest.run(hang, SOON);
    kubelet.until("it is not ended", BOOT, |pod| pod.restarts == 1);
    let status = kubelet.status();
    let last = status.last.as_ref().unwrap();
    assert_eq!(last.exit_code, 4, "{status:?}");
    assert!(!last.message.is_empty());
    let told = |what: &str| status.events.iter().any(|event| event.starts_with(what));
    assert!(told("Killing: Liveness probe failed"), "{status:?}");
    // Peapod's own force comes before the kubelet's, and with a reason.
    assert!(!told("Killing: by force"), "{status:?}");
}

#[test]
#[ignore = "slow: make test-all"]
fn a_guest_that_reboots_is_unready_meanwhile_in_the_same_container() {
    // The user-data runs once for this instance; the per-boot script at the second boot only.
    let script = format!(
        "mkdir -p /var/lib/cloud/scripts/per-boot\ncd /var/lib/cloud/scripts/per-boot\n\
         cat > x << 'end'\n#!/bin/bash\n{0}end\nchmod 755 x\n{0}",
        Guest::SERVE
    );
    let manifest = Manifest::new("again", &script).port(Guest::PORT);
    let (mut kubelet, guest) = ready("again", &manifest);
    guest.run("(sleep 1; busybox reboot) > /dev/null 2>&1 &", SOON);
    kubelet.until("it stays ready", SOON, |pod| !pod.ready);
    kubelet.until("it is not ready again", BOOT, |pod| pod.ready);
    let status = kubelet.status();
    assert_eq!((status.restarts, &status.last), (0, &None), "{status:?}");
    assert_eq!(guest.run("echo hello", SOON), "hello\n");
}

#[test]
fn a_vmm_that_is_killed_is_started_again_and_a_drain_powers_its_guest_off_in_time() {
    let mut kubelet = Kubelet::run("killed", &served("killed").grace(40), &[]);
    kubelet.container().vm.wait_console("userspace", 1, BOOT);
    // Behind everybody's back.
    kubelet.container().signal("KILL");
    kubelet.until("it is not started again", SOON, |pod| pod.restarts == 1);
    let last = kubelet.status().last.clone();
    assert_eq!(last.map(|last| last.exit_code), Some(137));
    assert!(!kubelet.status().ready);
    kubelet.until("it is not ready again", BOOT, |pod| pod.ready);
    assert_eq!(
        Guest::of(kubelet.address).run("echo hello", SOON),
        "hello\n"
    );

    let begin = Instant::now();
    let ended = kubelet.delete();
    assert_eq!(ended, powered_off());
    assert!(begin.elapsed() < Duration::from_secs(40));
}
