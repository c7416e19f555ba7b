//! `make bench`: how long a VM takes to boot and to answer, and what it costs beyond its guest,
//! beside QEMU with the same kernel, initramfs and root, in turns, where KVM works.
//!
//! Everything that either reads lies in memory, so that neither waits for a disk.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use peapod_tests::bench::{Record, report};
use peapod_tests::{image, peapod};

const ROUNDS: usize = 7;
const MEMORY_MIB: u64 = 512;
const PORT: u16 = 9080;
const LIMIT: Duration = Duration::from_secs(120);
const FIRST_LINE: &[u8] = b"peapod-agent: userspace";
const REFERENCE: &str = "peapod/details:latest";

/// What one boot took.
struct Boot {
    userspace: f64,
    answer: f64,
    memory: f64,
}

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    /// Copies what both boot from into memory.
    fn new() -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let files = Self { directory };
        let images = files.path("images");
        fs::create_dir_all(images.join("containerdisks")).unwrap();
        let archive = format!("containerdisks/{}.tar", REFERENCE.replace(['/', ':'], "_"));
        for name in ["vmlinuz", "initramfs.cpio", &archive] {
            fs::copy(image(name), images.join(name)).unwrap();
        }
        fs::write(files.path("details.yaml"), manifest()).unwrap();
        // Unpacks the kernel and the root, which both use then.
        let prepared = files.peapod().arg("--dry-run").status().unwrap();
        assert!(prepared.success());
        files.make_seed();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The only file of a folder of the cache.
    fn cached(&self, folder: &str) -> PathBuf {
        let mut entries = fs::read_dir(self.path("peapod").join(folder)).unwrap();
        entries.next().unwrap().unwrap().path()
    }

    fn make_seed(&self) {
        fs::write(self.path("user-data"), USER_DATA).unwrap();
        fs::write(self.path("meta-data"), r#"{"instance-id":"bench"}"#).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let status = Command::new(program)
                .args(arguments)
                .current_dir(self.directory.path())
                .stdout(Stdio::null())
                .status();
            assert!(status.is_ok_and(|s| s.success()), "{program}");
        };
        run("mkfs.vfat", &["-C", "-n", "cidata", "seed.img", "1024"]);
        run("mcopy", &["-i", "seed.img", "user-data", "meta-data", "::"]);
    }

    fn peapod(&self) -> Command {
        let mut command = Command::new(peapod());
        command
            .env("XDG_CACHE_HOME", self.directory.path())
            .env("PEAPOD_IMAGES", self.path("images"))
            .args(["-q", "run"])
            .arg(self.path("details.yaml"));
        command
    }

    fn qemu(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(
                "-M q35 -accel kvm -cpu host -smp 1 -nodefaults -display none -serial stdio"
                    .split(' '),
            )
            .args("-device virtio-net-pci,netdev=n -device virtio-rng-pci".split(' '))
            .args(["-m", &MEMORY_MIB.to_string(), "-netdev"])
            .arg(format!("user,id=n,hostfwd=tcp:127.0.0.1:{PORT}-:{PORT}"))
            .arg("-kernel")
            .arg(self.cached("kernels"))
            .arg("-initrd")
            .arg(self.path("images/initramfs.cpio"))
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 root=/dev/vda rootfstype=ext4 rw",
            ]);
        let root = self.cached("containerdisks");
        for (file, options) in [
            (root, "snapshot=on"),
            (self.path("seed.img"), "readonly=on"),
        ] {
            let drive = format!("if=virtio,format=raw,{options},file={}", file.display());
            command.args(["-drive", &drive]);
        }
        command
    }
}

const USER_DATA: &str = "#!/bin/bash\ncd /opt/details\nruby details.rb 9080 &\n";

fn manifest() -> String {
    let script = USER_DATA.replace('\n', "\\n");
    format!(
        r#"{{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {{"name": "bench"}},
"spec": {{"domain": {{"memory": {{"guest": "{MEMORY_MIB}Mi"}}, "devices": {{"interfaces":
[{{"name": "n", "masquerade": {{}}, "ports": [{{"port": {PORT}}}]}}]}}}}, "networks": [{{"name": "n", "pod": {{}}}}],
"volumes": [{{"name": "r", "containerDisk": {{"image": "{REFERENCE}"}}}},
{{"name": "s", "cloudInitNoCloud": {{"userData": "{script}"}}}}]}}}}"#
    )
}

/// A running VM, killed in the end.
struct Vm(Child);

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(mut command: Command) -> Boot {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start the VM");
    let lines = first_line(child.stdout.take().unwrap(), start);
    let vm = Vm(child);
    let userspace = lines.recv_timeout(LIMIT).expect("a line from userspace");
    while !answers() {
        assert!(start.elapsed() < LIMIT, "no answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    Boot {
        userspace,
        answer: start.elapsed().as_secs_f64(),
        memory: memory_beyond_the_guest(vm.0.id()),
    }
}

/// When the first line from userspace came; what follows is read and thrown away.
fn first_line(mut console: impl Read + Send + 'static, start: Instant) -> Receiver<f64> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let (mut seen, mut bytes) = (Vec::<u8>::new(), [0; 4096]);
        while let Ok(n @ 1..) = console.read(&mut bytes) {
            seen.extend(&bytes[..n]);
            if seen.windows(FIRST_LINE.len()).any(|w| w == FIRST_LINE) {
                let _ = sender.send(start.elapsed().as_secs_f64());
                seen.clear();
            }
        }
    });
    receiver
}

fn answers() -> bool {
    let request = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /details/0 HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    request().is_ok_and(|answer| answer.contains("ISBN-10"))
}

/// The process's proportional share of memory in MiB, without the guest's own.
fn memory_beyond_the_guest(pid: u32) -> f64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut total, mut size) = (0, 0);
    for line in smaps.lines() {
        let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        if line.starts_with("Size:") {
            size = kib(line).unwrap_or(0);
        } else if line.starts_with("Pss:") && size != MEMORY_MIB * 1024 {
            total += kib(line).unwrap_or(0);
        }
    }
    total as f64 / 1024.0
}

fn main() {
    let files = Files::new();
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    // The first of each is not counted: it reads the programs themselves.
    for round in 0..=ROUNDS {
        let (a, b) = (measure(files.peapod()), measure(files.qemu()));
        if round > 0 {
            ours.push(a);
            peer.push(b);
        }
    }
    let record = |name: &str, unit, figure: fn(&Boot) -> f64| {
        let series = |boots: &[Boot]| boots.iter().map(figure).collect::<Vec<_>>();
        Record::new(
            name,
            unit,
            &series(&ours),
            ("qemu q35, slirp", &series(&peer)),
            None,
        )
    };
    let records = [
        record("process start to first line of userspace", "s", |b| {
            b.userspace
        }),
        record("process start to first answer on 9080", "s", |b| b.answer),
        record("memory beyond the guest's (PSS)", "MiB", |b| b.memory),
    ];
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `make bench`");
    report(Path::new(&directory), "boot", &records).unwrap();
}
