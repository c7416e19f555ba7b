//! A control group whose memory is bounded, by either of the kernel's interfaces for that: version 2's
//! (Linux's cgroup-v2.rst), and version 1's (its memory.rst), which counts apart what TCP's sockets hold.

use std::fs;
use std::path::PathBuf;

/// Files of version 1: limits, what they are about, and how often each was reached.
const ONE: [[&str; 3]; 2] = [
    [
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "memory.failcnt",
    ],
    [
        "memory.kmem.tcp.limit_in_bytes",
        "memory.kmem.tcp.usage_in_bytes",
        "memory.kmem.tcp.failcnt",
    ],
];

/// Such a group. It is to outlive what is in it.
pub struct Bound {
    path: PathBuf,
    /// Whether it is version 2's.
    unified: bool,
}

impl Bound {
    /// Makes one of so many bytes beside the caller's own, for one that has processes may have none below it.
    pub fn new(bytes: usize) -> Self {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let field = |line: &'static str| own.lines().find_map(move |l| l.split_once(line));
        let one = field(":memory:");
        let (root, (_, own)) = match one {
            Some(one) => ("/sys/fs/cgroup/memory", one),
            None => ("/sys/fs/cgroup", field("0::").unwrap()),
        };
        let beside = own.rsplit_once('/').unwrap().0;
        let mut place = tempfile::Builder::new();
        let made = place.prefix("bound-").tempdir_in(format!("{root}{beside}"));
        let bound = Self {
            // Its files can't be deleted.
            path: made.unwrap().keep(),
            unified: one.is_none(),
        };
        let limits: &[&str] = match bound.unified {
            true => &["memory.max"],
            false => &ONE.map(|[limit, ..]| limit),
        };
        for limit in limits {
            // It is not there where nobody counts memory.
            let path = bound.path.join(limit);
            assert!(path.exists(), "{}: no such limit here", path.display());
            fs::write(path, bytes.to_string()).unwrap();
        }
        bound
    }

    /// Where a process writes 0 to be in it.
    pub fn processes(&self) -> String {
        self.path.join("cgroup.procs").display().to_string()
    }

    /// Bytes that its processes have, and the kernel for them.
    pub fn used(&self) -> usize {
        match self.unified {
            true => self.number("memory.current", ""),
            false => ONE.map(|[_, used, _]| self.number(used, "")).iter().sum(),
        }
    }

    /// How often it has been at its limit.
    pub fn reached(&self) -> usize {
        match self.unified {
            true => self.number("memory.events", "max "),
            false => ONE
                .map(|[.., reached]| self.number(reached, ""))
                .iter()
                .sum(),
        }
    }

    /// How many of its processes the kernel has killed.
    pub fn killed(&self) -> usize {
        let file = match self.unified {
            true => "memory.events",
            false => "memory.oom_control",
        };
        self.number(file, "oom_kill ")
    }

    /// The number in the line of `file` that begins so.
    fn number(&self, file: &str, name: &str) -> usize {
        let text = fs::read_to_string(self.path.join(file)).unwrap();
        let number = text.lines().find_map(|line| line.strip_prefix(name));
        number.and_then(|number| number.parse().ok()).expect(&text)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // It stays where something failed that is in it still.
        let _ = fs::remove_dir(&self.path);
    }
}
