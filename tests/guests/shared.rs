//! The one VM that tests share when its boot is not what they test: the details service, two
//! vCPUs, a shell.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use peapod_tests::{Guest, Manifest, Vm};
use tempfile::TempDir;

use super::BOOT;

struct Shared {
    vm: Vm,
    directory: TempDir,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

/// A static is never dropped, so the VM is ended when the test process exits.
extern "C" fn end_shared_vm() {
    if let Some(shared) = SHARED.get() {
        shared.vm.signal(libc::SIGKILL);
    }
}

/// The shared VM, booted by whoever asks first. Where it has ended nobody waits for it any more.
pub fn vm() -> &'static Vm {
    let vm = &shared().vm;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", vm.pid())).unwrap();
    // proc_pid_stat(5): the state is behind the name.
    let runs = stat
        .rsplit(") ")
        .next()
        .is_some_and(|rest| !rest.starts_with('Z'));
    assert!(
        runs,
        "the shared VM has ended\n--- console ---\n{}\n--- log ---\n{}",
        vm.console(),
        vm.log()
    );
    vm
}

/// The one directory, besides its own, that the VM may write to.
pub fn directory() -> &'static Path {
    shared().directory.path()
}

fn shared() -> &'static Shared {
    SHARED.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("{}cd /opt/details\nruby details.rb 9080 &\n", Guest::SERVE);
        let manifest = Manifest::new("shared", &script)
            .cores(2)
            .port(9080)
            .port(Guest::PORT)
            .write(directory.path());
        let vm = Vm::run(
            &manifest,
            [
                "--publish",
                "127.0.0.1:9080:9080",
                "--publish",
                "127.0.0.1:9099:9099",
                "--capture-dir",
                directory.path().to_str().unwrap(),
            ],
        );
        // SAFETY: the function touches only a static that lives as long as the process.
        unsafe { libc::atexit(end_shared_vm) };
        Shared { vm, directory }
    })
}

/// Starts `peapod` with these words and this input, once the VM's agent is there.
pub fn peapod(words: &[&str], input: &[u8]) -> Child {
    vm().wait_log("the guest is ready", BOOT);
    let mut child = Command::new(peapod_tests::peapod())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // A program that has ended does not read it.
    std::thread::spawn(move || stdin.write_all(&input));
    child
}

/// Runs a script in the shared VM.
pub fn run(script: &str) -> String {
    vm();
    Guest::default().run(script, BOOT)
}
