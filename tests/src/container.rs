//! The compute container, as a kubelet has it run under the restricted Pod Security Standard: by
//! crun, with podman's seccomp profile, no capability, a root that nobody writes to.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::group::Group;
use crate::space::Space;
use crate::until;
use crate::vm::{Vm, image};

/// Debian's golang-github-containers-common has it there.
const SECCOMP: &str = "/usr/share/containers/seccomp.json";
/// KubeVirt's directories, each of them an emptyDir.
const EMPTY: [(&str, &str); 3] = [
    ("ephemeral", "/var/run/kubevirt-ephemeral-disks"),
    ("private", "/var/run/kubevirt-private"),
    ("infra", "/var/run/kubevirt-infra"),
];
/// Where the compute container looks for container images.
const DISKS: &str = "/var/run/kubevirt/container-disks";
/// Where the containers of images have our program.
const PROGRAM: &str = "/peapod";
/// How long a container may take that does next to nothing.
const SOON: Duration = Duration::from_secs(60);
/// The termination message, for the container and here.
const LAST: &str = "/dev/termination-log";

/// Where a container runs; by default in the caller's network and control group, and its files
/// among the temporary ones.
#[derive(Debug, Default, Clone, Copy)]
pub struct Place<'a> {
    /// The pod's network.
    pub network: Option<&'a Space>,
    /// The pod's control group.
    pub group: Option<&'a Group>,
    /// What the node's disk is: images too are copied there.
    pub disk: Option<&'a Path>,
    /// The init containers' commands, where the disk's image is a container too and no volume: the
    /// first copies the program, the second goes on beside the compute container.
    pub before: Option<[&'a [&'a str]; 2]>,
}

/// A container, until it is dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    user: (u32, u32),
    directory: TempDir,
    manager: &'static str,
    /// The disk's image's container, where it is one.
    beside: Option<Vm>,
    /// Its process.
    pub vm: Vm,
}

impl Container {
    /// Runs a command of the image's as `user`, a number and a group's. The VMI is in the environment
    /// and in a file, where a pod of `peapod pod` has it.
    pub fn start(name: &str, user: (u32, u32), command: &[&str], vmi: &str) -> Self {
        Self::start_in(Place::default(), name, user, command, vmi)
    }

    /// The same, elsewhere.
    pub fn start_in(
        place: Place<'_>,
        name: &str,
        user: (u32, u32),
        command: &[&str],
        vmi: &str,
    ) -> Self {
        let directory = match place.disk {
            Some(disk) => tempfile::tempdir_in(disk),
            None => tempfile::tempdir(),
        };
        let directory = directory.expect("a directory");
        let bundle = directory.path();
        // The container's user finds its files below it.
        fs::set_permissions(bundle, fs::Permissions::from_mode(0o755)).expect("chmod");
        unpack(&bundle.join("rootfs"));
        fs::write(bundle.join("vmi.yaml"), vmi).expect("write");
        for (folder, _) in EMPTY {
            shared(&bundle.join(folder));
        }
        let config = config(place, bundle, user, command, vmi);
        fs::write(bundle.join("config.json"), config.to_string()).expect("write the bundle");
        let manager = match place.group {
            Some(_) => "--cgroup-manager=cgroupfs",
            None => "--cgroup-manager=disabled",
        };
        let beside = place.before.map(|[copy, give]| {
            let status = run_before(manager, bundle, "copy", user, copy).wait(SOON);
            assert_eq!(status, 0, "{copy:?}");
            let mut beside = run_before(manager, bundle, "give", user, give);
            let socket = bundle.join("disks/root.sock");
            until("the disk's container does not listen", || {
                assert_eq!(beside.ended(), None, "{}", beside.log());
                socket.exists().then_some(())
            });
            beside
        });
        Self {
            name: name.to_owned(),
            user,
            manager,
            beside,
            vm: run(manager, bundle, name),
            directory,
        }
    }

    /// Whether the disk's image's container runs, where it is one.
    pub fn beside_runs(&mut self) -> Option<bool> {
        self.beside.as_mut().map(|beside| beside.ended().is_none())
    }

    /// Stops the disk's container as a kubelet does after the compute container's end; its status.
    pub fn stop_beside(&mut self) -> Option<i32> {
        let mut crun = self.crun("kill");
        let status = crun.args(["give", "TERM"]).status();
        assert!(status.expect("run crun").success());
        self.beside.as_mut().map(|beside| beside.wait(SOON))
    }

    /// Runs it once more, as a kubelet does after its end: its empty directories stay as they are.
    pub fn restart(&mut self) {
        self.delete();
        self.vm = run(self.manager, self.directory.path(), &self.name);
    }

    /// Sends a signal as a kubelet does: to its process 1.
    pub fn signal(&self, signal: &str) {
        let mut crun = self.crun("kill");
        let status = crun.args([&self.name, signal]).status();
        assert!(status.expect("run crun").success());
    }

    /// What one more command in it says.
    pub fn exec(&self, command: &[&str]) -> Output {
        self.command(command).output().expect("run crun")
    }

    /// One more command in it, run as a kubelet runs a probe's: as the container's user.
    pub fn command<S: AsRef<OsStr>>(&self, command: &[S]) -> Command {
        let (uid, gid) = self.user;
        let mut crun = self.crun("exec");
        crun.arg("--user").arg(format!("{uid}:{gid}"));
        crun.arg(&self.name).args(command);
        crun
    }

    /// A file of one of its empty directories.
    pub fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// What it has left as the reason of its end.
    pub fn last_word(&self) -> String {
        fs::read_to_string(self.file("last")).expect("read")
    }

    fn crun(&self, verb: &str) -> Command {
        crun(self.manager, self.directory.path(), verb)
    }

    fn delete(&self) {
        // It has ended by itself where the test went well.
        self.delete_one(&self.name);
    }

    fn delete_one(&self, name: &str) {
        let mut crun = self.crun("delete");
        let quiet = crun.stdout(Stdio::null()).stderr(Stdio::null());
        let _ = quiet.args(["--force", name]).status();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.delete();
        if self.beside.is_some() {
            self.delete_one("give");
        }
    }
}

fn crun(manager: &str, bundle: &Path, verb: &str) -> Command {
    let mut crun = Command::new("crun");
    crun.args([manager, "--root"]);
    crun.arg(bundle.join("state")).arg(verb);
    crun
}

/// Starts what a bundle holds, with an empty termination message.
fn run(manager: &str, bundle: &Path, name: &str) -> Vm {
    fs::write(bundle.join("last"), "").expect("write");
    fs::set_permissions(bundle.join("last"), fs::Permissions::from_mode(0o666)).expect("chmod");
    let mut crun = crun(manager, bundle, "run");
    Vm::start(crun.arg("--bundle").arg(bundle).arg(name))
}

/// Starts an init container of a pod whose disk is in a container: the one that copies has the compute
/// container's image, the one that gives the disk's.
fn run_before(manager: &str, pod: &Path, name: &str, user: (u32, u32), command: &[&str]) -> Vm {
    let bundle = pod.join(name);
    let root = match name {
        "copy" => pod.join("rootfs"),
        _ => bundle.join("rootfs"),
    };
    for folder in [&bundle, &root] {
        fs::create_dir_all(folder).expect("a directory");
    }
    for folder in ["program", "disks"] {
        shared(&pod.join(folder));
    }
    let mut mounts = own_mounts();
    mounts.push(bind(pod.join("program"), PROGRAM.to_owned(), "rw"));
    if name == "give" {
        let disk = image("details.ext4").canonicalize().expect("an image");
        mounts.push(bind(disk, "/disk/disk.img".to_owned(), "ro"));
        mounts.push(bind(pod.join("disks"), DISKS.to_owned(), "rw"));
    }
    let process = process(user, command, &[]);
    let config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": root, "readonly": true},
        "process": process,
        "mounts": mounts,
        "linux": {"namespaces": namespaces(), "seccomp": seccomp()},
    });
    fs::write(bundle.join("config.json"), config.to_string()).expect("write the bundle");
    let mut crun = crun(manager, pod, "run");
    Vm::start(crun.arg("--bundle").arg(&bundle).arg(name))
}

/// What every container has.
fn own_mounts() -> Vec<Value> {
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}),
    ]
}

fn bind(from: PathBuf, to: String, mode: &str) -> Value {
    json!({"destination": to, "type": "bind", "source": from, "options": ["bind", mode]})
}

fn process((uid, gid): (u32, u32), command: &[&str], env: &[String]) -> Value {
    let path = "PATH=/usr/bin".to_owned();
    let env: Vec<_> = [&path].into_iter().chain(env).collect();
    json!({
        "user": {"uid": uid, "gid": gid},
        "args": command,
        "env": env,
        "cwd": "/",
        "noNewPrivileges": true,
        "capabilities": {},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
    })
}

fn namespaces() -> Vec<Value> {
    let kinds = ["pid", "mount", "ipc", "uts"].into_iter();
    kinds.map(|kind| json!({"type": kind})).collect()
}

fn shared(folder: &Path) {
    fs::create_dir_all(folder).expect("a directory");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("chmod");
}

/// The image's entry point, as a runtime reads it.
pub fn entry_point() -> Vec<String> {
    let layout = tempfile::tempdir().expect("a directory");
    let (manifest, blob) = layout_of(layout.path());
    let config = read(&blob(&manifest["config"]));
    serde_json::from_value(config["config"]["Entrypoint"].clone()).expect("words")
}

/// The root that the image's layers make.
fn unpack(root: &Path) {
    let layout = root.with_extension("oci");
    for folder in [&layout, &root.to_owned()] {
        fs::create_dir_all(folder).expect("a directory");
    }
    let (manifest, blob) = layout_of(&layout);
    for layer in manifest["layers"].as_array().expect("layers") {
        unpack_tar(&blob(layer), root);
    }
}

/// The image's manifest, and where its blobs are.
fn layout_of(layout: &Path) -> (Value, impl Fn(&Value) -> PathBuf) {
    unpack_tar(&image("compute.tar"), layout);
    let index = read(&layout.join("index.json"));
    let blobs = layout.join("blobs");
    let blob = move |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        blobs.join(digest.replace(':', "/"))
    };
    (read(&blob(&index["manifests"][0])), blob)
}

/// Unpacks a tar.
pub fn unpack_tar(archive: &Path, folder: &Path) {
    let mut tar = Command::new("tar");
    let status = tar.arg("-xf").arg(archive).arg("-C").arg(folder).status();
    assert!(status.expect("run tar").success());
}

fn read(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

fn config(place: Place<'_>, bundle: &Path, user: (u32, u32), command: &[&str], vmi: &str) -> Value {
    let mut mounts = own_mounts();
    mounts.extend([
        bind(bundle.join("last"), LAST.to_owned(), "rw"),
        bind(
            bundle.join("vmi.yaml"),
            "/etc/peapod/vmi.yaml".to_owned(),
            "ro",
        ),
        bind(
            "/etc/resolv.conf".into(),
            "/etc/resolv.conf".to_owned(),
            "ro",
        ),
    ]);
    for (folder, to) in EMPTY {
        mounts.push(bind(bundle.join(folder), to.to_owned(), "rw"));
    }
    // Image volumes: of the disk, and of kernel and agent.
    let share = "/usr/share/peapod";
    let mut images = vec![
        ("vmlinuz", format!("{share}/vmlinuz")),
        ("initramfs.cpio", format!("{share}/initramfs.cpio")),
    ];
    match place.before {
        Some(_) => mounts.push(bind(bundle.join("disks"), DISKS.to_owned(), "rw")),
        None => images.push(("details.ext4", format!("{DISKS}/root/disk/disk.img"))),
    }
    for (name, to) in images {
        let mut file = image(name).canonicalize().expect("an image");
        if place.disk.is_some() {
            fs::copy(&file, bundle.join(name)).expect("copy an image");
            file = bundle.join(name);
        }
        mounts.push(bind(file, to, "ro"));
    }
    let mut namespaces = namespaces();
    if let Some(network) = place.network {
        namespaces.push(json!({"type": "network", "path": network.path()}));
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "process": process(user, command, &[format!("STANDALONE_VMI={vmi}")]),
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces,
            "devices": [{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232,
                "fileMode": 0o666, "uid": 0, "gid": 0}],
            "seccomp": seccomp(),
        },
    });
    if let Some(group) = place.group {
        config["linux"]["cgroupsPath"] = json!(format!("{}/compute", group.name()));
    }
    config
}

/// Podman's profile for a container without capabilities, as it gives it to a runtime.
fn seccomp() -> Value {
    let profile = read(Path::new(SECCOMP));
    let is =
        |list: &Value, word: &str| list.as_array().is_some_and(|l| l.iter().any(|w| w == word));
    let mut calls = Vec::new();
    for entry in profile["syscalls"].as_array().expect("calls") {
        let (only, but) = (&entry["includes"], &entry["excludes"]);
        let foreign = only["arches"].is_array() && !is(&only["arches"], "amd64");
        if foreign || only["caps"].is_array() || is(&but["arches"], "amd64") {
            continue;
        }
        let mut call = json!({"names": entry["names"], "action": entry["action"]});
        if let Some(args) = entry["args"].as_array().filter(|args| !args.is_empty()) {
            call["args"] = json!(args);
        }
        if entry["errnoRet"].is_number() {
            call["errnoRet"] = entry["errnoRet"].clone();
        }
        calls.push(call);
    }
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": calls,
    })
}
