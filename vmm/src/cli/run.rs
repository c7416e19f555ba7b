//! `peapod run`: everything is checked here, and a [`Plan`] made; only then does a machine start.

pub mod addresses;
mod boot;
mod firmware;

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use netdev::control::MAX_FORWARDS;
use netdev::options as network;
use netdev::pod::Pod;
use netdev::publish::{self, Publish};

use crate::agent::seed;
use crate::boot::initramfs::InitramfsError;
use crate::boot::kernel::{KernelError, Unpacked};
use crate::disks::{self, Finder};
use crate::plan::{self, Offered, Plan};
use crate::registry::{self, Entry};
use crate::snapshot::Line;
use crate::vmi::{self, Machine};
use crate::{checks, containerdisk, host};

const LOCK_ATTEMPTS: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// A manifest is read no further; `vmi` refuses what is longer than 1 MiB.
const MANIFEST_READ: u64 = (1 << 20) + 1;

/// Arguments of `peapod run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A VirtualMachineInstance, YAML or JSON
    pub manifest: PathBuf,
    /// Directory for sockets and what the guest writes to ephemeral disks [default: a new one
    /// below $XDG_RUNTIME_DIR/peapod or /tmp/peapod-UID, removed in the end]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What there is to say of any VM.
    #[command(flatten)]
    pub vm: Options,
    /// Check everything but KVM, unpack kernel and container disks into the cache, start nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What a command line has to say of a VM, wherever it runs.
#[derive(Debug, clap::Args)]
#[group(id = "vm")]
pub struct Options {
    /// vmlinux or bzImage [default: the disk's own, as its boot loader would start it; for a disk
    /// that is one file system without a kernel, `vmlinux` or `vmlinuz` of the images]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Have the kernel unpack itself, as under a boot loader, so that it chooses where it runs (KASLR);
    /// it needs to be a bzImage. Else the host unpacks it, once, and it starts sooner
    #[arg(long)]
    pub kaslr: bool,
    /// Have UEFI start the disk's own boot loader, and this be the UEFI: Cloud Hypervisor's build of
    /// EDK2 [default: for `firmware.bootloader.efi`, and for a disk whose kernel is not found,
    /// `CLOUDHV.fd` of the images or of Debian's package cloudhv-efi-x86-64]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "kaslr"])]
    pub firmware: Option<PathBuf>,
    /// Initramfs with Peapod's agent [default: `initramfs.cpio` of the images]
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// Whether Peapod's agent goes into a disk that boots its own kernel and initramfs, and does
    /// there what the disk's cloud-init would do: `off` leaves that to cloud-init
    #[arg(long, value_enum, default_value_t, value_name = "WHETHER")]
    pub agent: Agent,
    /// How the guest gets its cloudInitNoCloud: on a `disk`, or by `vsock`, over which Peapod's agent
    /// asks for it, and nobody else
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub seed: Seed,
    /// Words to add to the kernel's command line
    #[arg(long, value_name = "CMDLINE")]
    pub append: Option<String>,
    /// Give the guest a virtio console, hvc0, beside its serial port; what it writes at either is its
    /// console, and what is typed goes to where it wrote last [default: where its kernel's command line
    /// has `console=hvc0`]
    #[arg(long)]
    pub hvc0: bool,
    /// A text that the guest finds among SMBIOS's OEM strings, as
    /// `io.systemd.credential:NAME=VALUE`; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub oem_string: Vec<String>,
    /// Publish a port of the guest or a range, instead of all of the manifest's; may be repeated
    #[arg(short, long, value_name = publish::SPEC)]
    pub publish: Vec<Publish>,
    /// The disks.
    #[command(flatten)]
    pub disks: disks::Options,
    /// Answer /healthz, /readyz and /metrics at this address too, as for a kubelet's probes
    #[arg(long, value_name = "IP:PORT")]
    pub probes: Option<SocketAddr>,
    /// Which addresses the guest has.
    #[command(flatten)]
    pub addresses: addresses::Options,
    /// What the guest's network may do, and how.
    #[command(flatten)]
    pub network: network::Options,
    /// Directory that `peapod capture` may write to, besides the state directory; may be repeated
    #[arg(long, value_name = "DIR")]
    pub capture_dir: Vec<PathBuf>,
    /// Leave system calls and files unlimited
    #[arg(long)]
    pub no_sandbox: bool,
}

/// Whether the agent goes into a disk of its own kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Agent {
    /// Where it can.
    #[default]
    Auto,
    /// Nowhere.
    Off,
}

/// How the guest gets its seed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Seed {
    /// A small one, which cloud-init knows too.
    #[default]
    Disk,
    /// Without any.
    Vsock,
}

impl Options {
    /// Who unpacks a bzImage.
    fn unpacked(&self) -> Unpacked {
        match self.kaslr {
            true => Unpacked::ByItself,
            false => Unpacked::Here,
        }
    }
}

/// What is elsewhere in a pod than on a laptop.
#[derive(Debug)]
pub struct Place {
    /// Where kernel, initramfs and container disks are looked for.
    pub images: Vec<PathBuf>,
    /// Where what was unpacked is kept.
    pub cache: PathBuf,
    /// Where the container images of a pod's volumes are mounted.
    pub mounted: Option<PathBuf>,
    /// Where ports listen of which nobody has said where.
    pub addresses: Vec<IpAddr>,
    /// The state directory; a new one, where none is named.
    pub state_dir: Option<PathBuf>,
    /// What is made for others to find.
    pub offered: Offered,
    /// Whether nothing is to be started.
    pub dry_run: bool,
}

impl Place {
    /// Where a user runs a VM.
    pub(super) fn own(state_dir: Option<PathBuf>, dry_run: bool) -> Self {
        let cache = host::cache_home().unwrap_or_else(std::env::temp_dir);
        Self {
            images: image_dirs(),
            cache: cache.join("peapod"),
            mounted: None,
            addresses: vec![Ipv4Addr::LOCALHOST.into()],
            state_dir,
            offered: Offered::default(),
            dry_run,
        }
    }
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manifest cannot be read.
    #[error("{path}: {}", checks::cause(cause))]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Said by the system.
        cause: io::Error,
    },
    /// There is no manifest.
    #[error("no VMI: no file was named, {0} is not set, and for virt-handler: {1}")]
    NoVmi(&'static str, String),
    /// Signals could not be waited for.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] io::Error),
    /// The manifest was refused.
    #[error(transparent)]
    Invalid(#[from] vmi::Invalid),
    /// No kernel or initramfs is where it is looked for.
    #[error("no {what}: looked for {looked}; `make images` builds it, --{what} names another")]
    NotFound {
        /// `kernel`, `initramfs` or `firmware`.
        what: &'static str,
        /// The paths tried.
        looked: String,
    },
    /// The kernel cannot be unpacked.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The initramfs cannot be read.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// A file or port will not do.
    #[error(transparent)]
    Check(#[from] checks::Error),
    /// A disk will not do.
    #[error(transparent)]
    Disk(#[from] disks::Error),
    /// What a disk's own boot loader cannot be told.
    #[error("--{0}: the disk is booted by UEFI, and its own boot loader decides; leave it out")]
    NotByFirmware(&'static str),
    /// A seed that only Peapod's agent asks for.
    #[error(
        "--seed vsock: Peapod's agent asks for it, and is not there: booting {0}; leave it out"
    )]
    SeedForNobody(String),
    /// The disk's kernel is not found, and UEFI cannot be had.
    #[error("{0}; by UEFI it would boot: {1}")]
    NeitherWay(#[source] disks::entries::Error, Box<Error>),
    /// The manifest's kernel cannot be had.
    #[error("firmware.kernelBoot: {0}")]
    KernelBoot(containerdisk::Error),
    /// The same in a pod.
    #[error("firmware.kernelBoot: {0}")]
    KernelMounted(disks::mounted::Error),
    /// The root disk cannot be booted.
    #[error(transparent)]
    Boot(#[from] disks::entries::Error),
    /// Istio's proxy.
    #[error("{0}")]
    Proxy(String),
    /// More ports than there may be.
    #[error("{0} ports are published: {MAX_FORWARDS} may be, each of which is a socket")]
    Ports(usize),
    /// The manifest has no disk to boot from.
    #[error("{0}: spec.volumes: no disk to boot from")]
    NoRoot(String),
    /// Too large for this host or cgroup.
    #[error(
        "{file}: spec.domain.memory: {guest} MiB for the guest and {overhead} MiB for peapod exceed {origin}, {limit} MiB"
    )]
    Memory {
        /// The manifest.
        file: String,
        /// In MiB.
        guest: u64,
        /// In MiB.
        overhead: u64,
        /// Who sets the limit.
        origin: String,
        /// In MiB.
        limit: u64,
    },
    /// KVM cannot be used.
    #[error(transparent)]
    Kvm(#[from] host::KvmError),
    /// A directory or file cannot be made.
    #[error("cannot make {path}: {cause}")]
    Make {
        /// Its path.
        path: PathBuf,
        /// Said by the system.
        cause: io::Error,
    },
    /// Another VM's.
    #[error("state directory {0}: another VM uses it")]
    StateDir(PathBuf),
    /// The pod's network cannot be looked at.
    #[error("cannot read the pod's addresses and routes: {0}")]
    Pod(#[source] io::Error),
    /// The guest cannot have the addresses that the command line says.
    #[error("the guest's addresses: {0}")]
    Addresses(String),
    /// The host does not tell its limits.
    #[error("cannot read the host's memory limits: {0}")]
    Limits(#[source] io::Error),
}

/// Reads a manifest and logs its warnings.
pub fn read_manifest(path: &Path) -> Result<Machine, Error> {
    Ok(read_manifest_text(path)?.0)
}

/// The same with its text.
pub fn read_manifest_text(path: &Path) -> Result<(Machine, String), Error> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|f| f.take(MANIFEST_READ).read_to_end(&mut bytes));
    read.map_err(|cause| Error::Manifest {
        path: path.to_owned(),
        cause,
    })?;
    let machine = parse_manifest(&path.display().to_string(), &bytes)?;
    // What could be parsed is UTF-8.
    Ok((machine, String::from_utf8_lossy(&bytes).into_owned()))
}

/// Reads the manifest that `bytes` are and logs its warnings; `file` is what it is called.
pub fn parse_manifest(file: &str, bytes: &[u8]) -> Result<Machine, Error> {
    let parsed = vmi::parse(file, bytes)?;
    for warning in parsed.warnings {
        tracing::warn!("{file}: {warning}");
    }
    Ok(parsed.machine)
}

/// Checks everything and makes the plan.
pub fn prepare(args: &Args) -> Result<Plan, Error> {
    args.vm.network.refuse_proxy().map_err(Error::Proxy)?;
    let file = args.manifest.display().to_string();
    let (machine, text) = read_manifest_text(&args.manifest)?;
    let place = Place::own(args.state_dir.clone(), args.dry_run);
    let mut plan = plan(&args.vm, file, machine, place)?;
    plan.line = Line::own(text);
    if let (Some(line), Some(interface)) = (&mut plan.line, &plan.machine.interface) {
        let words = args.vm.addresses.words(interface, plan.addresses);
        line.words.extend(words);
    }
    Ok(plan)
}

/// Checks everything and makes the plan for a machine that was read from `file`. The cheap checks
/// come first; only the last steps write: a container disk's cache, a `DiskOrCreate` disk, the
/// state directory.
pub fn plan(
    args: &Options,
    file: String,
    mut machine: Machine,
    place: Place,
) -> Result<Plan, Error> {
    let begun = SystemTime::now();
    if machine.root_disk().is_none() && machine.kernel_boot.is_none() {
        return Err(Error::NoRoot(file));
    }
    let given = match args.kernel {
        Some(_) => Some(boot::files(args, &place.images)?),
        None => None,
    };
    let finder = Finder {
        options: &args.disks,
        images: &place.images,
        cache: &place.cache.join("containerdisks"),
        mounted: place.mounted.as_deref(),
        dry_run: place.dry_run,
    };
    let seed = match args.seed {
        Seed::Disk => None,
        Seed::Vsock => Some(seed::Seed::new(finder.take_seed(&mut machine)?)),
    };
    finder.check(&machine)?;
    memory(&file, &machine)?;
    if !place.dry_run {
        host::open_kvm()?;
    }
    let forwards = plan::forwards(&machine, &args.publish, &place.addresses);
    if forwards.len() > MAX_FORWARDS {
        return Err(Error::Ports(forwards.len()));
    }
    checks::ports(&forwards)?;
    let addresses = match &machine.interface {
        Some(interface) => {
            let pod = Pod::open().map_err(Error::Pod)?;
            let chosen = args.addresses.choose(interface, &forwards, &pod);
            chosen.map_err(Error::Addresses)?
        }
        None => (None, None),
    };

    let disks = finder.plan(&machine)?;
    let chosen = boot::choose(args, &machine, &finder, &disks, given, &place.cache)?;
    if seed.is_some() && !chosen.has_agent {
        return Err(Error::SeedForNobody(chosen.what));
    }
    let (state_dir, entry) = state_dir(place.state_dir.as_ref(), &machine)?;
    let state_lock = lock(&state_dir)?;
    let booted = chosen.keep(&state_dir)?;
    Ok(Plan {
        begun,
        kernel: booted.kernel,
        initramfs: booted.initramfs,
        boots: booted.what,
        has_agent: booted.has_agent,
        cmdline: booted.cmdline,
        append: args.append.clone(),
        hvc0: args.hvc0,
        oem_strings: args.oem_string.clone(),
        disks,
        seed,
        backing_dirs: args.disks.backing_dir.clone(),
        forwards,
        listen_at: place.addresses,
        addresses,
        offered: place.offered,
        network: args.network.clone(),
        probes: args.probes,
        sandbox: !args.no_sandbox,
        writable: args.capture_dir.clone(),
        entry,
        state_dir,
        state_lock,
        machine,
        line: None,
        restored: None,
    })
}

/// Where kernel, initramfs and container disks are looked for.
pub(super) fn image_dirs() -> Vec<PathBuf> {
    match std::env::var_os("PEAPOD_IMAGES").filter(|v| !v.is_empty()) {
        Some(dir) => vec![PathBuf::from(dir)],
        None => {
            let user = host::data_home().map(|dir| dir.join("peapod"));
            user.into_iter()
                .chain([PathBuf::from("/usr/share/peapod")])
                .collect()
        }
    }
}

fn find(
    given: Option<&PathBuf>,
    what: &'static str,
    names: &[&str],
    dirs: &[PathBuf],
) -> Result<PathBuf, Error> {
    if let Some(path) = given {
        return Ok(path.clone());
    }
    let candidates: Vec<PathBuf> = dirs
        .iter()
        .flat_map(|dir| names.iter().map(|name| dir.join(name)))
        .collect();
    candidates
        .iter()
        .find(|path| path.exists())
        .cloned()
        .ok_or_else(|| {
            let looked: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
            Error::NotFound {
                what,
                looked: looked.join(", "),
            }
        })
}

fn memory(file: &str, machine: &Machine) -> Result<(), Error> {
    let limit = host::memory_limit().map_err(Error::Limits)?;
    if machine.memory.saturating_add(machine.overhead()) > limit.bytes {
        return Err(Error::Memory {
            file: file.to_owned(),
            guest: machine.memory >> 20,
            overhead: machine.overhead() >> 20,
            limit: limit.bytes >> 20,
            origin: limit.origin,
        });
    }
    Ok(())
}

/// The state directory, and the entry by which `peapod ps` finds the VM. Without a directory of
/// its own a VM needs the entry; with one it is only harder to find without it.
fn state_dir(
    given: Option<&PathBuf>,
    machine: &Machine,
) -> Result<(PathBuf, Option<Entry>), Error> {
    let home = registry::home();
    let make = |path: &Path| {
        let path = path.to_owned();
        move |cause| Error::Make { path, cause }
    };
    let Some(dir) = given else {
        let entry = Entry::directory(&home, &machine.name).map_err(make(&home))?;
        return Ok((entry.path().to_owned(), Some(entry)));
    };
    fs::create_dir_all(dir).map_err(make(dir))?;
    let entry = Entry::link(&home, &machine.name, dir);
    if let Err(error) = &entry {
        tracing::debug!(
            "`peapod ps` will not list this VM: {}: {error}",
            home.display()
        );
    }
    Ok((dir.clone(), entry.ok()))
}

fn lock(state_dir: &Path) -> Result<File, Error> {
    let directory = File::open(state_dir).map_err(|cause| Error::Make {
        path: state_dir.to_owned(),
        cause,
    })?;
    // `peapod ps` may look for a moment.
    for _ in 0..LOCK_ATTEMPTS {
        if directory.try_lock().is_ok() {
            return Ok(directory);
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(Error::StateDir(state_dir.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(manifest: &Path) -> Args {
        Line::parse_from([Path::new("run"), manifest]).args
    }

    fn manifest(dir: &Path, memory: &str, port: u16) -> PathBuf {
        let path = dir.join("vm.yaml");
        let root = dir.join("root.img");
        let text = format!(
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata: {{name: t}}\n\
             spec:\n  domain:\n    memory: {{guest: {memory}}}\n    devices:\n      interfaces:\n\
             \x20     - {{name: n, masquerade: {{}}, ports: [{{port: {port}}}]}}\n\
             \x20 networks: [{{name: n, pod: {{}}}}]\n\
             \x20 volumes: [{{name: r, hostDisk: {{path: {}, type: Disk}}}}]\n",
            root.display()
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// Each check in turn, as the files it looks at come to be.
    #[test]
    fn each_missing_thing_is_one_line_and_nothing_is_started() {
        let dir = tempfile::tempdir().unwrap();
        let say = |args: &Args| prepare(args).unwrap_err().to_string();
        let missing = say(&args(&dir.path().join("none.yaml")));
        assert!(missing.contains("none.yaml: no such file"), "{missing}");

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut args = args(&manifest(dir.path(), "999Ti", port));
        args.vm.kernel = Some(dir.path().join("vmlinux"));
        assert!(say(&args).starts_with("kernel /"), "{}", say(&args));
        let mut kernel = vec![0; 2048];
        kernel[..4].copy_from_slice(b"\x7fELF");
        fs::write(dir.path().join("vmlinux"), kernel).unwrap();
        args.vm.initramfs = Some(dir.path().join("initramfs.cpio"));
        assert!(
            say(&args).ends_with("initramfs.cpio: no such file"),
            "{}",
            say(&args)
        );
        fs::write(dir.path().join("initramfs.cpio"), [0x1f, 0x8b, 8]).unwrap();
        assert!(
            say(&args).ends_with("root.img: no such file"),
            "{}",
            say(&args)
        );
        fs::write(dir.path().join("root.img"), [1; 1000]).unwrap();
        assert!(
            say(&args).contains("truncated: 1000 bytes"),
            "{}",
            say(&args)
        );
        fs::write(dir.path().join("root.img"), [1; 1024]).unwrap();
        let memory = say(&args);
        assert!(
            memory.contains("spec.domain.memory: ") && memory.contains("exceed"),
            "{memory}"
        );
        assert_eq!(memory.lines().count(), 1);

        manifest(dir.path(), "64Mi", port);
        let last = say(&args);
        // Without KVM that is what is said; with it, that the port is taken.
        assert!(
            last.contains("/dev/kvm") || last.contains("already taken"),
            "{last}"
        );
    }

    #[test]
    fn what_uefi_cannot_start_or_be_told_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = manifest(dir.path(), "64Mi", 80);
        let text = fs::read_to_string(&path).unwrap();
        let efi = "    firmware: {bootloader: {efi: {secureBoot: false}}}\n    devices:\n";
        fs::write(&path, text.replace("    devices:\n", efi)).unwrap();
        let (machine, _) = read_manifest_text(&path).unwrap();
        let options = |words: &[&str]| {
            let words = [&["run", path.to_str().unwrap()], words].concat();
            Line::parse_from(words).args.vm
        };
        let choose = |words: &[&str]| {
            let images = [dir.path().to_owned()];
            let chosen = firmware::choose(&options(words), &machine, &[], &images, "its loader");
            chosen.err().map(|error| error.to_string())
        };
        for (words, option) in [
            (["--append", "quiet"], "--append: the disk"),
            (["--initramfs", "x"], "--initramfs: the disk"),
            (["--seed", "vsock"], "--seed vsock: the disk"),
        ] {
            let said = choose(&words).unwrap();
            assert!(said.starts_with(option), "{said}");
        }
        let firmware = dir.path().join("CLOUDHV.fd");
        let mut image = vec![0; 2560];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        fs::write(&firmware, &image).unwrap();
        let said = choose(&[]).unwrap();
        assert!(said.contains("CLOUDHV.fd: no ELF image"), "{said}");
        image[..4].copy_from_slice(b"\x7fELF");
        fs::write(&firmware, &image).unwrap();
        assert_eq!(choose(&[]), None);
    }

    #[test]
    fn a_missing_kernel_is_reported_with_where_it_was_looked_for() {
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let error = find(None, "kernel", &["vmlinux", "vmlinuz"], &dirs)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "no kernel: looked for /a/vmlinux, /a/vmlinuz, /b/vmlinux, /b/vmlinuz; \
             `make images` builds it, --kernel names another"
        );
    }
}
