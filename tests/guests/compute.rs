//! The compute container: the image itself, under crun, as a restricted pod has it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use peapod_tests::kubelet::{self, words};
use peapod_tests::space::Space;
use peapod_tests::{Container, Guest, Manifest, Place, entry_point, until};
use serde_json::Value;

use super::{BOOT, SOON};

/// As KubeVirt has it, and as OpenShift does: any user, in group 0.
const KUBEVIRT: (u32, u32) = (107, 107);
const OPENSHIFT: (u32, u32) = (1_000_660_000, 0);

fn vmi(manifest: &Manifest) -> String {
    let directory = tempfile::tempdir().unwrap();
    std::fs::read_to_string(manifest.write(directory.path())).unwrap()
}

/// The status line that a probe gets.
fn probe(path: &str) -> Option<String> {
    let mut stream = TcpStream::connect("127.0.0.1:9142").ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().next().map(str::to_owned)
}

#[test]
fn a_restricted_pod_runs_a_vmi_answers_probes_and_ends_cleanly_on_sigterm() {
    // Where Istio's agent is beside it.
    let sidecar = TcpListener::bind("127.0.0.1:15020").unwrap();
    let quit = thread::spawn(move || {
        let (mut stream, _) = sidecar.accept().unwrap();
        let mut request = [0; 512];
        let n = stream.read(&mut request).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        String::from_utf8_lossy(&request[..n]).into_owned()
    });
    let vmi = vmi(&Manifest::new("details", Guest::SERVE).port(Guest::PORT));
    let command = [
        "virt-launcher",
        "--name=details",
        "--namespace=default",
        "--uid=4f1b",
        "--readiness-file=/var/run/kubevirt-infra/healthy",
        "--qemu-timeout=5m",
        "--hook-sidecars=0",
        "--probes=127.0.0.1:9142",
        "--publish=9143:9099",
        "-v",
    ];
    let mut container = Container::start("details", KUBEVIRT, &command, &vmi);
    container.vm.wait_log("sandbox: seccomp and Landlock", BOOT);
    assert!(container.file("infra/healthy").exists());
    let healthy = until("nobody answers the probe", || probe("/healthz"));
    assert_eq!(healthy, "HTTP/1.1 200 OK");
    assert_eq!(Guest::at(9143).run("echo hello", BOOT), "hello\n");
    until("it is not ready", || {
        probe("/readyz").filter(|line| line == "HTTP/1.1 200 OK")
    });
    // As a probe of `peapod pod` asks in the guest.
    let state = "/var/run/kubevirt-ephemeral-disks/vm";
    let asked = ["/usr/bin/peapod", "exec", state, "--", "sh", "-c", "exit 7"];
    let output = container.exec(&asked);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{said}");
    // The console is where virtctl looks for it.
    let mut console = UnixStream::connect(container.file("private/4f1b/virt-serial0")).unwrap();
    console
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    Guest::at(9143).run("sleep 1; echo seen-by-virtctl >/dev/console", BOOT);
    let mut seen = Vec::new();
    until("the console shows nothing", || {
        let mut buffer = [0; 256];
        let n = console.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..n]);
        String::from_utf8_lossy(&seen)
            .contains("seen-by-virtctl")
            .then_some(())
    });
    // And where virt-tail follows it.
    let log = container.file("private/4f1b/virt-serial0-log");
    until("the log does not show it", || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains("seen-by-virtctl").then_some(())
    });
    container.signal("TERM");
    assert_eq!(container.vm.wait(SOON), 0);
    assert_eq!(container.last_word(), "the guest powered off");
    assert!(quit.join().unwrap().starts_with("POST /quitquitquit "));
    // For `kubectl logs`.
    assert!(container.vm.console().contains("peapod-agent: ready"));
}

/// What `peapod pod` prints for a guest that powers itself off.
fn printed(arguments: &[&str]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let manifest = Manifest::new("off", "busybox poweroff\n").write(directory.path());
    kubelet::printed(&manifest, arguments)
}

/// Runs its compute container until the guest is off.
fn run_printed(list: &Value, place: Place<'_>, user: (u32, u32)) -> Container {
    let compute = &list["items"][1]["spec"]["containers"][0];
    let entry = entry_point();
    let command = entry.iter().map(String::as_str);
    let command: Vec<_> = command.chain(words(&compute["args"])).collect();
    let vmi = list["items"][0]["stringData"]["vmi.yaml"].as_str().unwrap();
    // Its own, for each of them answers probes at the same port.
    let network = Space::new("compute").unwrap();
    let place = Place {
        network: Some(&network),
        ..place
    };
    let mut container = Container::start_in(place, "off", user, &command, vmi);
    assert_eq!(container.vm.wait(BOOT), 0);
    assert_eq!(container.last_word(), "the guest powered off");
    container
}

#[test]
fn what_peapod_pod_prints_runs_as_any_user_of_group_0() {
    run_printed(&printed(&[]), Place::default(), OPENSHIFT);
}

#[test]
fn a_disk_that_is_a_container_of_the_pod_is_handed_over_and_runs() {
    let list = printed(&["--container-disks", "containers"]);
    let before = &list["items"][1]["spec"]["initContainers"];
    let [copy, give] = [0, 1].map(|number| words(&before[number]["command"]));
    let place = Place {
        before: Some([&copy, &give]),
        ..Place::default()
    };
    let mut container = run_printed(&list, place, KUBEVIRT);
    assert_eq!(container.stop_beside(), Some(0));
    assert!(!container.file("disks/root.sock").exists());
}

#[test]
fn a_bad_vmi_is_told_in_the_termination_message() {
    let bad = vmi(&Manifest::new("bad", "true\n")).replace("cores:", "corez:");
    let command = ["virt-launcher-monitor"];
    let mut container = Container::start("bad", OPENSHIFT, &command, &bad);
    assert_eq!(container.vm.wait(SOON), 2);
    let last = container.last_word();
    assert!(
        last.starts_with("STANDALONE_VMI:9:7: spec.domain.cpu.corez"),
        "{last}"
    );
}
