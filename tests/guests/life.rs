//! VMs that run, seen and led by `peapod`'s other commands.

use std::process::{Command, Output};
use std::time::Duration;

use peapod_tests::{Guest, Manifest, Vm, peapod};

use super::{BOOT, SOON, shared};

/// Runs `peapod` with those words.
fn call(words: &[&str]) -> Output {
    let output = Command::new(peapod()).args(words).output();
    output.expect("start peapod")
}

/// What it prints.
pub fn said(words: &[&str]) -> String {
    let output = call(words);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn pid(vm: &Vm) -> String {
    vm.pid().to_string()
}

#[test]
fn a_vm_is_listed_and_tells_of_itself_its_console_and_its_network() {
    shared::run("true");
    let vm = &pid(shared::vm());
    let line = |text: String| text.lines().find(|l| l.contains(vm)).map(str::to_owned);
    let listed = line(said(&["ps"])).unwrap();
    assert!(listed.starts_with("shared "), "{listed}");
    assert!(said(&["ps", "--json"]).contains("\"name\": \"shared\""));
    let status = said(&["status", vm]);
    assert!(status.contains("\"role\": \"init\""), "{status}");
    assert!(said(&["logs", vm]).contains("peapod-agent: userspace"));
    let ports = said(&["port", "ls", vm]);
    assert!(ports.contains("127.0.0.1:9080"), "{ports}");
    let metrics = said(&["metrics", vm]);
    let connections =
        "peapod_net_forward_connections_total{transport=\"tcp\",bind=\"127.0.0.1:9099\"";
    assert!(metrics.contains(connections), "{metrics}");
    assert!(metrics.contains("peapod_vcpu_exits_total{reason=\"pio\"}"));
    assert!(said(&["flows", vm]).starts_with("TRANSPORT"));
}

#[test]
fn a_port_is_published_and_withdrawn_while_the_vm_runs() {
    shared::run("true");
    let vm = &pid(shared::vm());
    let port = "127.0.0.1:9098:9099";
    said(&["port", "add", vm, port]);
    assert_eq!(Guest::at(9098).run("echo again", BOOT), "again\n");
    let taken = call(&["port", "add", vm, port]);
    let error = String::from_utf8(taken.stderr).unwrap();
    assert_eq!(taken.status.code(), Some(1));
    assert!(error.contains("127.0.0.1:9098"), "{error}");
    said(&["port", "rm", vm, port]);
    assert!(std::net::TcpListener::bind("127.0.0.1:9098").is_ok());
}

#[test]
fn frames_are_captured_while_the_vm_runs() {
    shared::run("true");
    let vm = &pid(shared::vm());
    let elsewhere = tempfile::tempdir().unwrap();
    let refused = elsewhere.path().join("frames.pcapng");
    let refused = call(&["capture", "start", vm, refused.to_str().unwrap()]);
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("--capture-dir"), "{error}");
    let file = shared::directory().join("frames.pcapng");
    let file = file.to_str().unwrap();
    said(&["capture", "start", vm, file]);
    shared::run("true");
    let status = said(&["capture", "stop", vm]);
    assert!(status.contains(file), "{status}");
    let bytes = std::fs::read(file).unwrap();
    // A section header block, and more (draft-ietf-opsawg-pcapng, section 4.1).
    assert_eq!(bytes[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
    assert!(bytes.len() > 200);
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_and_a_stop_waits_for_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let script = "i=0; while :; do echo tick-$i; i=$((i + 1)); sleep 0.2; done &\n";
    let manifest = Manifest::new("paused", script).write(directory.path());
    let mut vm = Vm::run(&manifest, ["--state-dir".as_ref(), state.as_os_str()]);
    vm.wait_log("the guest is ready", BOOT);
    let name = state.to_str().unwrap();
    said(&["pause", name]);
    assert!(said(&["ps"]).contains("Paused"));
    let before = vm.console();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(vm.console(), before);
    said(&["resume", name]);
    let ticks = vm.console().matches("tick-").count();
    vm.wait_console("tick-", ticks + 2, SOON);
    assert!(said(&["ps"]).contains("Running"));
    // Paused again: whoever stops it does not have to know.
    said(&["pause", name]);
    said(&["stop", name]);
    assert_eq!(vm.wait(SOON), 0);
    let gone = call(&["status", name]);
    assert_eq!(gone.status.code(), Some(1));
}

/// Types at the console of a guest once it has written `asks`, and sees it answer and power off.
fn type_to(mut vm: Vm, asks: &str) {
    vm.wait_console(asks, 1, BOOT);
    let mut console = Command::new(peapod())
        .args(["console", &pid(&vm)])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = console.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, b"over there\n").unwrap();
    assert_eq!(vm.wait(BOOT), 0);
    drop(input);
    let output = console.wait_with_output().unwrap();
    let seen = String::from_utf8_lossy(&output.stdout);
    assert!(seen.contains("heard over there"), "{seen}");
}

#[test]
fn what_is_typed_at_the_console_reaches_the_guest() {
    let directory = tempfile::tempdir().unwrap();
    let script = "read -r line < /dev/console; echo \"heard $line\"\nbusybox poweroff\n";
    let manifest = Manifest::new("typed", script).write(directory.path());
    type_to(Vm::run(&manifest, [""; 0]), "userspace");
}

#[test]
fn a_guest_on_hvc0_is_heard_and_hears() {
    let directory = tempfile::tempdir().unwrap();
    // Its driver is one that nothing waits for.
    let script = "until [ -e /dev/hvc0 ]; do sleep 0.1; done; exec </dev/hvc0 >/dev/hvc0\n\
        echo who is there; read -r line; echo \"heard $line\"\nbusybox poweroff\n";
    let manifest = Manifest::new("hvc0", script).write(directory.path());
    let named = ["--append", "console=ttyS0 console=hvc0"];
    type_to(Vm::run(&manifest, named), "who is there");
}
