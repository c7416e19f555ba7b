//! What the host grants this process: memory, and the right to use KVM.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;

/// The API version that every kernel since 2.6.22 answers (linux/Documentation/virt/kvm/api.rst).
const KVM_API_VERSION: i32 = 12;
/// The device node.
pub const KVM: &str = "/dev/kvm";

/// A bound on memory and who set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In bytes.
    pub bytes: u64,
    /// "the machine's memory" or the cgroup's file.
    pub origin: String,
}

/// The narrowest bound on this process's memory: the machine's and every cgroup's above it.
pub fn memory_limit() -> io::Result<Limit> {
    memory_limit_in(Path::new("/"))
}

/// As [`memory_limit`], with `/proc` and `/sys` below `root`.
fn memory_limit_in(root: &Path) -> io::Result<Limit> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo"))?;
    let total = meminfo_bytes(&meminfo, "MemTotal")
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no MemTotal in /proc/meminfo"))?;
    let mut narrowest = Limit {
        bytes: total,
        origin: "the machine's memory".to_owned(),
    };
    let cgroups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    for line in cgroups.lines() {
        // proc(5), cgroups(7): hierarchy-ID:controllers:path; the unified one has no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (base, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let base = root.join(base);
        let leaf = base.join(path.trim_start_matches('/'));
        // In a cgroup namespace the path may lead out of what is mounted; the mount's own root
        // is then the nearest that can be read.
        let above = leaf.ancestors().take_while(|dir| dir.starts_with(&base));
        for file in above.map(|dir| dir.join(file)) {
            let limit = fs::read_to_string(&file)
                .ok()
                .and_then(|t| t.trim().parse::<u64>().ok());
            if let Some(bytes) = limit.filter(|bytes| *bytes < narrowest.bytes) {
                let shown = file.strip_prefix(root).unwrap_or(&file);
                narrowest = Limit {
                    bytes,
                    origin: format!("/{}", shown.display()),
                };
            }
        }
    }
    Ok(narrowest)
}

fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No device node.
    #[error(
        "no {KVM}: enable virtualization in the firmware and load kvm_amd or kvm_intel (in a container, pass the device in)"
    )]
    Missing,
    /// The node is there, the right is not.
    #[error(
        "no right to open {KVM}: add the user to its group, `usermod -aG kvm USER`, and log in again"
    )]
    Denied,
    /// Any other failure of open.
    #[error("cannot open {KVM}: {0}")]
    Open(#[source] io::Error),
    /// Not the API this program speaks.
    #[error("{KVM} speaks API version {0}, not {KVM_API_VERSION}")]
    Version(i32),
}

/// Random bytes, of which nobody else has the same.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Opens /dev/kvm and checks that it is KVM.
pub fn open_kvm() -> Result<Kvm, KvmError> {
    open_kvm_at(Path::new(KVM))
}

fn open_kvm_at(path: &Path) -> Result<Kvm, KvmError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path);
    let file: File = opened.map_err(|e| match e.kind() {
        ErrorKind::NotFound => KvmError::Missing,
        ErrorKind::PermissionDenied => KvmError::Denied,
        _ if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => KvmError::Missing,
        _ => KvmError::Open(e),
    })?;
    let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
    // SAFETY: `fd` was just opened and nobody else owns it.
    let kvm = unsafe { <Kvm as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    match kvm.get_api_version() {
        KVM_API_VERSION => Ok(kvm),
        other => Err(KvmError::Version(other)),
    }
}

/// The user's directory of data, as the XDG base directory specification has it.
pub fn data_home() -> Option<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share")
}

/// The user's directory of caches.
pub fn cache_home() -> Option<PathBuf> {
    xdg("XDG_CACHE_HOME", ".cache")
}

fn xdg(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    set(variable).or_else(|| set("HOME").map(|home| home.join(below_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:        1048576 kB\nMemFree:  5 kB\n",
    );

    #[test]
    fn the_narrowest_cgroup_above_the_process_bounds_its_memory() {
        let dir = root(&[
            MEMINFO,
            ("proc/self/cgroup", "1:name=systemd:/x\n0::/pod/box\n"),
            ("sys/fs/cgroup/pod/box/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "67108864\n"),
        ]);
        let limit = memory_limit_in(dir.path()).unwrap();
        assert_eq!(limit.bytes, 64 << 20);
        assert_eq!(limit.origin, "/sys/fs/cgroup/pod/memory.max");
    }

    #[test]
    fn cgroup_v1_and_no_cgroup_at_all_are_understood() {
        let v1 = root(&[
            MEMINFO,
            ("proc/self/cgroup", "4:cpu,memory:/a\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "33554432\n"),
            (
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ]);
        assert_eq!(memory_limit_in(v1.path()).unwrap().bytes, 32 << 20);
        let none = root(&[MEMINFO]);
        assert_eq!(memory_limit_in(none.path()).unwrap().bytes, 1 << 30);
    }

    #[test]
    fn a_missing_device_a_forbidden_one_and_one_that_is_no_kvm_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let missing = open_kvm_at(&dir.path().join("kvm"));
        assert!(matches!(missing, Err(KvmError::Missing)));
        assert!(matches!(
            open_kvm_at(Path::new("/dev/null")),
            Err(KvmError::Version(-1))
        ));
    }
}
