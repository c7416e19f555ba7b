//! What a guest's agent tells and does for the commands at the host: figures, file systems that stand
//! still, passwords and keys, the clock.

use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use peapod_tests::{Manifest, Vm};
use serde_json::Value;

use super::{BOOT, SOON, shared};

const VM: &str = "shared";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEVuZHM7IE5vd2hlcmUgZWxzZSE= anna@home";

/// Held by whoever has the guest's file systems stand still, or cannot have that.
static STANDSTILL: Mutex<()> = Mutex::new(());

/// What a command prints that succeeds.
fn run(words: &[&str], input: &[u8]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = shared::peapod(words, input).wait_with_output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(status.success(), "{words:?}: {stderr}");
    String::from_utf8(stdout).unwrap()
}

/// What a shell of the guest's prints.
fn sh(script: &str) -> String {
    run(&["exec", VM, "--", "sh", "-c", script], b"")
}

#[test]
fn a_guest_tells_what_it_is_and_has() {
    let info: Value = serde_json::from_str(&run(&["guest-info", "--json", VM], b"")).unwrap();
    let told = |pointer: &str| info.pointer(pointer).unwrap().clone();
    assert_eq!(told("/os/id"), "debian");
    assert_eq!(told("/os/kernel_release"), sh("uname -r").trim());
    assert_eq!(told("/hostname"), sh("hostname").trim());
    assert_eq!(told("/vcpus"), 2);
    assert!(told("/memory/available").as_u64().unwrap() > 1 << 20);
    let root = &told("/filesystems/0");
    assert_eq!(root["mountpoint"], "/");
    let total = root["total"].as_u64().unwrap();
    assert!(
        total > root["used"].as_u64().unwrap() && total > 1 << 20,
        "{root}"
    );
    let links = told("/interfaces");
    let card = links
        .as_array()
        .unwrap()
        .iter()
        .find(|link| link["name"] != "lo");
    let address = &card.unwrap()["addresses"][0];
    assert_eq!(address["ip"], "10.0.2.2", "{links}");
    let shown = run(&["guest-info", VM], b"");
    assert!(
        shown.contains("10.0.2.2/24") && shown.contains("Debian"),
        "{shown}"
    );
}

#[test]
fn file_systems_stand_still_until_they_are_told_to_go_on_or_their_time_is_over() {
    let _held = STANDSTILL.lock().unwrap_or_else(PoisonError::into_inner);
    let write = ["exec", VM, "--", "sh", "-c", "echo x >/root/frozen; sync"];
    for seconds in ["600", "5"] {
        run(&["freeze", "--time", seconds, VM], b"");
        let info = run(&["guest-info", "--json", VM], b"");
        // A slow host may have taken longer to ask than they stand still.
        if seconds == "600" {
            assert!(info.contains("\"frozen\": true"), "{info}");
            let again = shared::peapod(&["freeze", VM], b"")
                .wait_with_output()
                .unwrap();
            let said = String::from_utf8(again.stderr).unwrap();
            assert!(said.contains("frozen already"), "{said}");
            let refused =
                shared::peapod(&["credentials", "set-password", "-u", "root", VM], b"x\n");
            let refused = refused.wait_with_output().unwrap();
            let said = String::from_utf8(refused.stderr).unwrap();
            assert!(said.contains("the file systems are frozen"), "{said}");
        }
        let mut writing = shared::peapod(&write, b"");
        if seconds == "600" {
            thread::sleep(Duration::from_secs(2));
            assert!(writing.try_wait().unwrap().is_none(), "it was written");
            run(&["thaw", VM], b"");
        }
        let output = writing.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let info = run(&["guest-info", "--json", VM], b"");
        assert!(info.contains("\"frozen\": false"), "{info}");
    }
}

#[test]
fn a_seed_goes_over_vsock_where_there_is_no_disk_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let long = format!("# {}\n", "x".repeat(70)).repeat(9_000);
    let script = format!("[ -e /dev/vdb ] || echo without-a-disk\n{long}echo read-to-its-end\n");
    let manifest = Manifest::new("vsock", &script).write(directory.path());
    let mut vm = Vm::run(&manifest, ["--seed", "vsock"]);
    vm.wait_console("read-to-its-end", 1, BOOT);
    vm.wait_log("the guest is ready", SOON);
    assert!(vm.console().contains("without-a-disk"));
    let log = vm.log();
    assert!(log.contains("has the seed's user-data over vsock"), "{log}");
    assert!(!log.contains("with failures"), "{log}");
    vm.signal(libc::SIGTERM);
    assert_eq!(vm.wait(BOOT), 0);
}

#[test]
fn a_user_gets_a_password_and_keys() {
    let _held = STANDSTILL.lock().unwrap_or_else(PoisonError::into_inner);
    run(
        &["credentials", "set-password", "--user", "root", VM],
        b"Secret 1\n",
    );
    let hash = sh("grep ^root: /etc/shadow | cut -d: -f2");
    assert!(hash.starts_with("$6$"), "{hash}");
    let hashed = ["credentials", "set-password", "--hashed", "-u", "root", VM];
    run(&hashed, b"$6$salt$other\n");
    let hash = sh("grep ^root: /etc/shadow | cut -d: -f2");
    assert_eq!(hash.trim(), "$6$salt$other");

    let keys = |what: &str, input: &str| {
        run(
            &["credentials", what, "--user", "root", "--file", "-", VM],
            input.as_bytes(),
        )
    };
    keys("add-ssh-key", &format!("# mine\n{KEY}\n"));
    let list = ["credentials", "list-ssh-keys", "--user", "root", VM];
    assert!(run(&list, b"").contains(KEY));
    assert_eq!(
        sh("stat -c %a:%U /root/.ssh/authorized_keys").trim(),
        "600:root"
    );
    keys("remove-ssh-key", &format!("{KEY} of another name\n"));
    assert!(!run(&list, b"").contains("AAAAC3"));

    let nobody = shared::peapod(&["credentials", "list-ssh-keys", "-u", "x y", VM], b"");
    let nobody = nobody.wait_with_output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert!(said.contains("there is no user \"x y\""), "{said}");
}

#[test]
fn a_guest_that_goes_on_knows_what_time_it_is() {
    sh("date -s @1000000000");
    run(&["pause", VM], b"");
    run(&["resume", VM], b"");
    let end = Instant::now() + SOON;
    let off = || {
        let guest: u64 = sh("date +%s").trim().parse().unwrap();
        let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        host.as_secs().abs_diff(guest)
    };
    while off() > 30 {
        assert!(Instant::now() < end, "off by {} s", off());
        thread::sleep(Duration::from_millis(200));
    }
}
