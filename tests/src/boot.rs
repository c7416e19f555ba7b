//! One guest that peapod and its peers boot alike: the same kernel, initramfs, root and user-data.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::{image, peapod};

/// What a guest with Peapod's initramfs says first.
pub const FIRST_LINE: &str = "peapod-agent: userspace";

/// The root with the details service.
const DETAILS: &str = "peapod/details:latest";
/// What peapod tells the kernel too.
const CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 cryptomgr.notests root=/dev/vda rootfstype=ext4 rw";

/// A disk that a guest has besides.
#[derive(Debug, Clone, Copy)]
pub struct ExtraDisk<'a> {
    /// Peapod's name of it.
    pub name: &'a str,
    /// The image.
    pub path: &'a Path,
    /// `raw` or `qcow2`.
    pub format: &'a str,
}

/// What both boot from. It lies in memory, so that neither waits for a disk.
pub struct Boot {
    directory: tempfile::TempDir,
    memory_mib: u64,
}

impl Boot {
    /// A guest that runs `user_data`, has so much memory and serves on these ports.
    pub fn new(user_data: &str, memory_mib: u64, ports: &[u16]) -> Self {
        Self::of(DETAILS, user_data, memory_mib, ports)
    }

    /// The same with another root.
    pub fn of(reference: &str, user_data: &str, memory_mib: u64, ports: &[u16]) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let boot = Self {
            directory,
            memory_mib,
        };
        let images = boot.path("images");
        fs::create_dir_all(images.join("containerdisks")).unwrap();
        let archive = format!("containerdisks/{}.tar", reference.replace(['/', ':'], "_"));
        for name in ["vmlinuz", "initramfs.cpio", &archive] {
            fs::copy(image(name), images.join(name)).unwrap();
        }
        fs::copy(peapod(), boot.path("program")).unwrap();
        let manifest = manifest(reference, user_data, memory_mib, ports);
        fs::write(boot.path("details.yaml"), manifest).unwrap();
        // Unpacks the kernel and the root, which both use then.
        let prepared = boot.peapod().arg("--dry-run").status().unwrap();
        assert!(prepared.success());
        boot.make_seed(user_data);
        boot
    }

    /// A path beside what it boots from.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The only file of a folder of the cache, whatever leads to it.
    fn cached(&self, folder: &str) -> PathBuf {
        let mut entries = fs::read_dir(self.path("peapod").join(folder)).unwrap();
        entries
            .next()
            .unwrap()
            .unwrap()
            .path()
            .canonicalize()
            .unwrap()
    }

    /// The kernel, unpacked.
    fn kernel(&self) -> PathBuf {
        self.cached("kernels")
    }

    fn initramfs(&self) -> PathBuf {
        self.path("images/initramfs.cpio")
    }

    fn root(&self) -> PathBuf {
        self.cached("containerdisks")
    }

    fn make_seed(&self, user_data: &str) {
        fs::write(self.path("user-data"), user_data).unwrap();
        fs::write(self.path("meta-data"), r#"{"instance-id":"boot"}"#).unwrap();
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

    /// `peapod run` of it.
    pub fn peapod(&self) -> Command {
        let mut command = self.command("run");
        command.arg(self.path("details.yaml"));
        command
    }

    /// `peapod launch` of it, as in a pod: with an image volume, and empty directories.
    pub fn launch(&self) -> Command {
        let pod = self.path("pod");
        // It is not there yet, at first.
        let _ = fs::remove_dir_all(&pod);
        let volume = pod.join("container-disks/r/disk");
        for folder in [&volume, &pod.join("private"), &pod.join("ephemeral")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::hard_link(self.root(), volume.join("disk.img")).unwrap();
        let mut command = self.command("launch");
        for (option, place) in [
            ("--container-disk-dir", "container-disks"),
            ("--private-dir", "private"),
            ("--ephemeral-disk-dir", "ephemeral"),
            ("--kubevirt-share-dir", "share"),
            ("--termination-log", "last"),
        ] {
            command.arg(option).arg(pod.join(place));
        }
        command.arg(self.path("details.yaml"));
        command
    }

    /// `peapod run` with these disks besides, which the guest sees behind the others.
    pub fn peapod_with(&self, disks: &[ExtraDisk<'_>]) -> Command {
        let text = fs::read(self.path("details.yaml")).unwrap();
        let mut manifest: Value = serde_json::from_slice(&text).unwrap();
        let mut command = self.command("run");
        for disk in disks {
            let volume = json!({
                "name": disk.name, "hostDisk": { "path": disk.path, "type": "Disk" },
            });
            manifest["spec"]["volumes"]
                .as_array_mut()
                .unwrap()
                .push(volume);
            let format = format!("{}={}", disk.name, disk.format);
            command.args(["--format", &format]);
        }
        let file = self.path("disks.yaml");
        fs::write(&file, manifest.to_string()).unwrap();
        command.arg(file);
        command
    }

    /// QEMU with them, whose network `n` the arguments make; it asks the host by io_uring.
    pub fn qemu_with(&self, network: &[&str], disks: &[ExtraDisk<'_>]) -> Command {
        let mut command = self.qemu(network);
        for disk in disks {
            let (format, path) = (disk.format, disk.path.display());
            let drive = format!("if=virtio,aio=io_uring,format={format},file={path}");
            command.args(["-drive", &drive]);
        }
        command
    }

    /// Another of peapod's commands, which finds what it was booted from.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.path("program"));
        command
            .env("XDG_CACHE_HOME", self.directory.path())
            .env("PEAPOD_IMAGES", self.path("images"))
            .args(["-q", name]);
        command
    }

    /// QEMU with it, whose network is behind a vhost-user socket.
    pub fn qemu_by_vhost_user(&self, socket: &Path) -> Command {
        let socket = format!("socket,id=c,path={}", socket.display());
        let memory = format!(
            "memory-backend-memfd,id=m,size={}M,share=on",
            self.memory_mib
        );
        let network = [
            ["-chardev", &socket],
            ["-netdev", "vhost-user,id=n,chardev=c"],
            ["-object", &memory],
            ["-machine", "memory-backend=m"],
        ];
        self.qemu(&network.concat())
    }

    /// QEMU with it, whose network `n` the arguments make.
    pub fn qemu(&self, network: &[&str]) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(
                "-M q35 -accel kvm -cpu host -smp 1 -nodefaults -display none -serial stdio"
                    .split(' '),
            )
            .args("-device virtio-net-pci,netdev=n -device virtio-rng-pci".split(' '))
            .args(["-m", &self.memory_mib.to_string()])
            .args(network)
            .arg("-kernel")
            .arg(self.kernel())
            .arg("-initrd")
            .arg(self.initramfs())
            .args(["-append", CMDLINE]);
        let root = self.root();
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

/// The same, up to its first line, by VMMs that have a machine for it and no firmware.
impl Boot {
    /// QEMU's microvm.
    pub fn microvm(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        let machine = "microvm,x-option-roms=off,isa-serial=on,acpi=on,rtc=on,pit=on,pic=on";
        let root = format!(
            "id=root,if=none,format=raw,snapshot=on,file={}",
            self.root().display()
        );
        command
            .args(["-M", machine])
            .args("-accel kvm -cpu host -smp 1 -nodefaults -no-user-config".split(' '))
            .args("-display none -serial stdio -device virtio-rng-device".split(' '))
            .args(["-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(self.kernel())
            .arg("-initrd")
            .arg(self.initramfs())
            .args(["-append", CMDLINE, "-drive", &root])
            .args(["-device", "virtio-blk-device,drive=root"]);
        command
    }

    /// Firecracker, which lies at `program`.
    pub fn firecracker(&self, program: &Path) -> Command {
        let disks = [("root", &*self.root(), true)];
        let mut command = Command::new(program);
        command.arg("--no-api");
        command
            .arg("--config-file")
            .arg(self.firecracker_machine(&disks, json!([])));
        command
    }

    /// The same with a network by the tap `tap`, and a disk and user-data of its own: what peapod boots, as
    /// a VM that can be saved by the API at `socket`.
    pub fn firecracker_served(&self, program: &Path, tap: &str, socket: &Path) -> Command {
        let root = self.path("firecracker-root");
        fs::copy(self.root(), &root).unwrap();
        let disks = [
            ("root", &*root, false),
            ("seed", &*self.path("seed.img"), true),
        ];
        let networks = json!([{ "iface_id": "n", "host_dev_name": tap }]);
        let mut command = Command::new(program);
        // By PCI, for which the initramfs has drivers.
        command.arg("--enable-pci").arg("--api-sock").arg(socket);
        command
            .arg("--config-file")
            .arg(self.firecracker_machine(&disks, networks));
        command
    }

    /// The file that describes its machine; of each disk its name, its place, and whether it is only read.
    fn firecracker_machine(&self, disks: &[(&str, &Path, bool)], networks: Value) -> PathBuf {
        let disks = disks.iter().map(|(name, path, read_only)| {
            json!({
                "drive_id": name,
                "path_on_host": path,
                "is_root_device": false,
                "is_read_only": read_only,
            })
        });
        let machine = json!({
            "boot-source": {
                "kernel_image_path": self.kernel(),
                "initrd_path": self.initramfs(),
                "boot_args": CMDLINE,
            },
            "drives": disks.collect::<Vec<_>>(),
            "network-interfaces": networks,
            "machine-config": { "vcpu_count": 1, "mem_size_mib": self.memory_mib },
            "entropy": {},
        });
        let file = self.path("firecracker.json");
        fs::write(&file, machine.to_string()).unwrap();
        file
    }

    /// Cloud Hypervisor, which lies at `program`.
    pub fn cloud_hypervisor(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .args("--serial tty --console off --cpus boot=1 --rng src=/dev/urandom".split(' '))
            .arg("--kernel")
            .arg(self.kernel())
            .arg("--initramfs")
            .arg(self.initramfs())
            .args(["--cmdline", CMDLINE])
            .args(["--memory", &format!("size={}M", self.memory_mib)])
            .arg("--disk")
            .arg(format!("path={},readonly=on", self.root().display()));
        command
    }
}

fn manifest(reference: &str, user_data: &str, memory_mib: u64, ports: &[u16]) -> String {
    let ports: Vec<_> = ports.iter().map(|port| json!({ "port": port })).collect();
    let ports = Value::from(ports);
    let script = serde_json::to_string(user_data).unwrap();
    format!(
        r#"{{"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {{"name": "boot"}},
"spec": {{"domain": {{"memory": {{"guest": "{memory_mib}Mi"}}, "devices": {{"interfaces":
[{{"name": "n", "masquerade": {{}}, "ports": {ports}}}]}}}}, "networks": [{{"name": "n", "pod": {{}}}}],
"volumes": [{{"name": "r", "containerDisk": {{"image": "{reference}"}}}},
{{"name": "s", "cloudInitNoCloud": {{"userData": {script}}}}}]}}}}"#
    )
}
