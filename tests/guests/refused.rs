//! Bad input: one clear line with its place, status 2, and nothing started.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use peapod_tests::{Manifest, image, peapod};
use tempfile::TempDir;

struct Refusal {
    directory: TempDir,
    manifest: PathBuf,
}

impl Refusal {
    /// A manifest that would run.
    fn new(change: impl FnOnce(Manifest) -> Manifest) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manifest = change(Manifest::new("refused", "true\n")).write(directory.path());
        Self {
            directory,
            manifest,
        }
    }

    /// Replaces words of the manifest.
    fn with(self, from: &str, to: &str) -> Self {
        let text = std::fs::read_to_string(&self.manifest).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&self.manifest, text.replace(from, to)).unwrap();
        self
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The one line that `command`, given the binary and its arguments, says.
    fn said(&self, arguments: &[&str], command: impl FnOnce(Vec<String>) -> Command) -> String {
        let mut words = vec![peapod().display().to_string(), "-q".into(), "run".into()];
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        words.extend(["--state-dir".into(), self.state().display().to_string()]);
        words.push(self.manifest.display().to_string());
        let output: Output = command(words).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(output.stdout.is_empty());
        assert!(!self.state().exists(), "something was started");
        said.trim_end().to_owned()
    }

    fn says(&self, arguments: &[&str]) -> String {
        self.said(arguments, |words| {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]);
            command
        })
    }

    /// As [`Refusal::says`], by a shell with a mount namespace of its own.
    fn says_in(&self, shell: &str) -> String {
        self.said(&[], |words| {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "sh", "-c", shell, "sh"])
                .args(words);
            command
        })
    }
}

fn ends(said: &str, with: &str) {
    assert!(said.ends_with(with), "{said}");
}

#[test]
fn an_unknown_field_is_named_with_its_line_and_the_nearest_known_one() {
    let refusal = Refusal::new(|m| m).with("cores:", "corez:");
    ends(
        &refusal.says(&[]),
        "refused.yaml:9:7: spec.domain.cpu.corez: unknown field; did you mean `cores`?",
    );
}

#[test]
fn a_field_that_is_not_supported_yet_is_named() {
    let refusal = Refusal::new(|m| m).with(
        "    devices:\n",
        "    launchSecurity: {sev: {}}\n    devices:\n",
    );
    let said = refusal.says(&[]);
    assert!(said.contains("spec.domain.launchSecurity: "), "{said}");
}

#[test]
fn a_seed_for_an_agent_that_is_not_there_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.img");
    std::os::unix::fs::symlink(image("grub.img").canonicalize().unwrap(), &root).unwrap();
    let refusal = Refusal::new(|m| m.root(&root));
    let said = refusal.says(&["--agent", "off", "--seed", "vsock"]);
    assert!(said.contains("--seed vsock: Peapod's agent asks"), "{said}");
}

#[test]
fn a_missing_or_truncated_kernel_is_named() {
    let refusal = Refusal::new(|m| m);
    ends(
        &refusal.says(&["--kernel", "/nowhere/vmlinuz"]),
        "kernel /nowhere/vmlinuz: no such file",
    );
    let cut = refusal.directory.path().join("cut");
    let kernel = std::fs::read(image("vmlinuz")).unwrap();
    std::fs::write(&cut, &kernel[..kernel.len() / 2]).unwrap();
    let said = refusal.says(&["--kernel", cut.to_str().unwrap()]);
    assert!(said.contains("cut: truncated: it should have"), "{said}");
}

#[test]
fn a_missing_or_truncated_disk_is_named() {
    let missing = Refusal::new(|m| m.root(Path::new("/nowhere/root.img")));
    ends(
        &missing.says(&[]),
        "disk `root` /nowhere/root.img: no such file",
    );

    let directory = tempfile::tempdir().unwrap();
    let cut = directory.path().join("root.img");
    std::fs::copy(image("systemd.ext4"), &cut).unwrap();
    File::options()
        .write(true)
        .open(&cut)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let said = Refusal::new(|m| m.root(&cut)).says(&[]);
    assert!(
        said.contains("root.img: truncated: it should have"),
        "{said}"
    );
}

#[test]
fn a_disk_with_nothing_to_boot_is_named_with_where_was_looked() {
    let directory = tempfile::tempdir().unwrap();
    let blank = directory.path().join("blank.img");
    File::create(&blank).unwrap().set_len(1 << 20).unwrap();
    ends(
        &Refusal::new(|m| m.root(&blank)).says(&[]),
        "disk `root`: has neither a partition table nor a file system that is known; \
         --kernel starts another one",
    );
}

#[test]
fn a_backing_file_that_was_not_allowed_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let thief = directory.path().join("thief.qcow2");
    let arguments = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-u",
        "-b",
        "/etc/shadow",
        "-F",
        "raw",
    ];
    let mut command = Command::new("qemu-img");
    let status = command.args(arguments).arg(&thief).arg("1M").status();
    assert!(status.unwrap().success());
    let refusal = Refusal::new(|m| m.root(&thief));
    let said = refusal.says(&["--format", "root=qcow2"]);
    assert!(
        said.contains("its backing file /etc/shadow is not opened"),
        "{said}"
    );
    let said = refusal.says(&[]);
    assert!(said.contains("begins as a qcow2 image does"), "{said}");
}

#[test]
fn a_truncated_container_disk_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let cut = directory.path().join("cut.tar");
    let archive = std::fs::read(image("containerdisks/peapod_details_latest.tar")).unwrap();
    std::fs::write(&cut, &archive[..archive.len() / 2]).unwrap();
    let name = image("containerdisks/peapod_details_latest.tar");
    let refusal = Refusal::new(|m| m).with(name.to_str().unwrap(), cut.to_str().unwrap());
    let said = refusal.says(&[]);
    assert!(
        said.contains("disk `root`: image") && said.contains("truncated"),
        "{said}"
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = Refusal::new(|m| m.port(port)).says(&[]);
    assert!(
        said.contains(&format!("127.0.0.1:{port}/tcp: already taken")),
        "{said}"
    );
}

#[test]
fn memory_beyond_the_machine_s_or_the_cgroup_s_is_refused() {
    let machine = Refusal::new(|m| m)
        .with("guest: 512Mi", "guest: 900Gi")
        .says(&[]);
    assert!(
        machine.contains("spec.domain.memory: 921600 MiB"),
        "{machine}"
    );

    // Of the tests' own control group, a child with a limit.
    let group = "/sys/fs/cgroup/peapod-refused";
    let refusal = Refusal::new(|m| m);
    let script = format!(
        "mkdir -p {group} && echo 512M > {group}/memory.max && echo $$ > {group}/cgroup.procs && exec \"$@\""
    );
    let said = refusal.says_in(&script);
    std::fs::remove_dir(group).unwrap();
    assert!(said.contains("512 MiB for the guest and"), "{said}");
    assert!(
        said.contains("peapod-refused/memory.max, 512 MiB"),
        "{said}"
    );
}

#[test]
fn a_missing_and_a_forbidden_dev_kvm_are_told_apart() {
    let refusal = Refusal::new(|m| m);
    let missing = refusal.says_in("mount -t tmpfs none /dev && exec \"$@\"");
    assert!(
        missing.contains("no /dev/kvm: enable virtualization"),
        "{missing}"
    );
    // Root without its capabilities is anybody.
    let forbidden = refusal.says_in(
        "mount -t tmpfs none /dev && mknod -m 000 /dev/kvm c 10 232 && \
         exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"",
    );
    assert!(
        forbidden.contains("no right to open /dev/kvm"),
        "{forbidden}"
    );
}
