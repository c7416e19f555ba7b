//! Firecracker as a peer of a VM that begins with a snapshot: it is saved and restored by its own API, and
//! its guest is called by a tap.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use peapod_tests::networks::dhcp_server;
use peapod_tests::space::{Process, run};
use peapod_tests::{Boot, Vm};
use serde_json::{Value, json};

use crate::answer;

/// The guest's address.
const GUEST: &str = "10.0.2.2";
const TAP: &str = "firecracker";

/// A VM that was saved once it had answered.
pub struct Saved {
    program: PathBuf,
    socket: PathBuf,
    state: PathBuf,
    memory: PathBuf,
    _leases: Process,
}

impl Saved {
    /// Boots one and saves it.
    pub fn new(program: &Path, files: &Boot) -> Self {
        let leases = tap(files);
        let saved = Self {
            program: program.to_owned(),
            socket: files.path("firecracker.sock"),
            state: files.path("firecracker.state"),
            memory: files.path("firecracker.memory"),
            _leases: leases,
        };
        let vm = Vm::start(&mut files.firecracker_served(program, TAP, &saved.socket));
        answer(GUEST, Instant::now());
        saved.ask("PATCH", "/vm", &json!({ "state": "Paused" }));
        let files = json!({ "snapshot_path": saved.state, "mem_file_path": saved.memory });
        saved.ask("PUT", "/snapshot/create", &files);
        drop(vm);
        saved
    }

    /// Seconds from a process's start, which begins with the snapshot, to its answer.
    pub fn restore(&self) -> f64 {
        let _ = std::fs::remove_file(&self.socket);
        let begin = Instant::now();
        let mut command = Command::new(&self.program);
        let _vm = Vm::start(
            command
                .arg("--enable-pci")
                .arg("--api-sock")
                .arg(&self.socket),
        );
        self.ask(
            "PUT",
            "/snapshot/load",
            &json!({
                "snapshot_path": self.state,
                "mem_backend": { "backend_type": "File", "backend_path": self.memory },
                "resume_vm": true,
            }),
        );
        answer(GUEST, begin)
    }

    /// Has its API do something, as soon as it is there.
    fn ask(&self, method: &str, path: &str, body: &Value) {
        let start = Instant::now();
        let mut stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < crate::LIMIT, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let body = body.to_string();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = [0; 1024];
        let n = stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..n]);
        assert!(
            answer.starts_with("HTTP/1.1 204"),
            "{method} {path}: {answer}"
        );
    }
}

/// A tap, and who tells the guest its address by DHCP.
fn tap(files: &Boot) -> Process {
    run(Command::new("modprobe").arg("tun")).unwrap();
    let script = format!(
        "ip tuntap add {TAP} mode tap; ip address add 10.0.2.1/24 dev {TAP}; ip link set {TAP} up"
    );
    run(Command::new("sh").args(["-ec", &script])).unwrap();
    Process::start(&mut dhcp_server(files, TAP)).unwrap()
}
