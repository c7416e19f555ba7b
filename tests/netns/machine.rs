//! A VM as the guest: `peapod run`'s, or one of Debian's QEMU with `peapod-net --vhost-user`. It has
//! nothing in common with the tests but its network, by which it is told what to do.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use peapod_tests::space::{Process, Space};
use peapod_tests::{Boot, Guest, peapod_net};

use crate::sockets::until;

const MEMORY_MIB: u64 = 1024;
/// What a boot and a script may take: a second of a real machine is ten of the lab's.
const LIMIT: Duration = Duration::from_secs(300);
/// What every VM starts from, made for the first of them.
static BOOT: Mutex<Option<Arc<Boot>>> = Mutex::new(None);

/// What has the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A network namespace, whose kernel is this machine's.
    Namespace,
    /// `peapod run`.
    Peapod,
    /// QEMU, with our network for its backend.
    Qemu,
}

impl Kind {
    /// What `PEAPOD_GUEST` says.
    pub fn asked() -> Self {
        match std::env::var("PEAPOD_GUEST").as_deref() {
            Err(_) => Self::Namespace,
            Ok("vm") => Self::Peapod,
            Ok("qemu") => Self::Qemu,
            Ok(other) => panic!("PEAPOD_GUEST is {other}; it can be vm or qemu"),
        }
    }
}

/// A VM, without the process that is its network.
pub struct Machine {
    _qemu: Option<Process>,
    _boot: Arc<Boot>,
}

impl Machine {
    /// Starts one in `pod`, with peapod-net's `arguments`, and its network by `wrapped`, which makes of a
    /// program a command that sees the pod as a process of it would.
    pub fn start(
        kind: Kind,
        pod: &Space,
        arguments: &str,
        wrapped: impl Fn(&Command) -> Command,
    ) -> (Process, Self) {
        let boot = boot();
        let shell = format!("-p {0}:{0}", Guest::PORT);
        let mut words = shell.split(' ').chain(arguments.split_whitespace());
        let mut options = Vec::new();
        while let Some(word) = words.next() {
            if word != "-p" {
                options.push(word.to_owned());
                continue;
            }
            // By itself a laptop's VM would have it on its loopback.
            let port = words.next().unwrap();
            options.extend(["0.0.0.0", "[::]"].map(|address| format!("-p{address}:{port}")));
        }
        let (network, qemu) = if kind == Kind::Peapod {
            let mut vm = boot.peapod();
            vm.arg("--state-dir")
                .arg(format!("/run/{}.state", pod.name));
            vm.args(options);
            (Process::start(&mut wrapped(&vm)).unwrap(), None)
        } else {
            let socket = format!("/run/{}.socket", pod.name);
            let mut backend = Command::new(peapod_net());
            backend.args(options).args(["--vhost-user", &socket]);
            let network = Process::start(&mut wrapped(&backend)).unwrap();
            until("no socket", || {
                std::fs::exists(&socket).unwrap().then_some(())
            });
            let mut qemu = boot.qemu_by_vhost_user(Path::new(&socket));
            (network, Some(Process::start(&mut qemu).unwrap()))
        };
        let machine = Self {
            _qemu: qemu,
            _boot: boot,
        };
        // The machine may be too busy to answer at once.
        output(
            pod,
            "for family in -4 -6; do
                 until route=$(ip $family route show default | head -n 1); [ \"$route\" ]; do sleep 0.2; done
                 ip $family route change $route rto_min 2s || true
             done",
        );
        (network, machine)
    }
}

/// What they start from.
fn boot() -> Arc<Boot> {
    let mut boot = BOOT.lock().unwrap();
    let made = boot.get_or_insert_with(|| {
        let user_data = format!("#!/bin/bash\n{}", Guest::SERVE);
        let ports = [Guest::PORT];
        Arc::new(Boot::of(
            "peapod/programs:latest",
            &user_data,
            MEMORY_MIB,
            &ports,
        ))
    });
    Arc::clone(made)
}

/// There are no more of them.
pub fn end() {
    drop(BOOT.lock().unwrap().take());
}

/// What a script in the VM of `pod` prints, which has to succeed.
#[track_caller]
pub fn output(pod: &Space, script: &str) -> String {
    let seconds = LIMIT.as_secs();
    let whole = format!(
        "cat >/run/script <<'end-of-script'\n{script}\nend-of-script\n\
         timeout {seconds} bash -e /run/script 2>/run/complaint </dev/null; status=$?\n\
         [ $status = 0 ] || cat /run/complaint\necho status $status"
    );
    let start = Instant::now();
    let said = pod.inside(|| Guest::at(Guest::PORT).run(&whole, LIMIT));
    let said = said.unwrap();
    let (said, status) = said.rsplit_once("status ").unwrap_or((&said, "none"));
    let took = start.elapsed();
    assert_eq!(status, "0\n", "{script}: after {took:?}\n{said}");
    said.to_owned()
}
