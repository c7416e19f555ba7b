//! The locks that shadow-utils and the C library take before they write.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::labels;
use rustix::fs::{FlockOperation, fcntl_lock};

/// As long as lckpwdf(3) waits.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);
/// What useradd locks one by one, each by a link.
const TABLES: [&str; 4] = ["passwd", "group", "shadow", "gshadow"];

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    links: Vec<PathBuf>,
    /// Of lckpwdf(3); closing it lets go.
    _file: File,
}

impl Lock {
    /// Waits for them.
    pub fn take(etc: &Path) -> io::Result<Self> {
        let end = Instant::now() + PATIENCE;
        let path = etc.join(".pwd.lock");
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        labels::wrote(&path);
        while let Err(error) = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            wait(end, error.into())?;
        }
        let mut lock = Self {
            links: Vec::new(),
            _file: file,
        };
        for table in TABLES {
            let link = etc.join(format!("{table}.lock"));
            while let Err(error) = link_own(etc, table, &link) {
                if error.kind() != io::ErrorKind::AlreadyExists {
                    return Err(error);
                }
                if !alive(&link) {
                    let _ = fs::remove_file(&link);
                }
                wait(end, error)?;
            }
            lock.links.push(link);
        }
        Ok(lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for link in &self.links {
            // Somebody who took it for dead may have taken it.
            let _ = fs::remove_file(link);
        }
    }
}

fn wait(end: Instant, error: io::Error) -> io::Result<()> {
    if Instant::now() > end {
        let why = format!("the accounts' files are locked by another: {error}");
        return Err(io::Error::other(why));
    }
    std::thread::sleep(PAUSE);
    Ok(())
}

/// A link is made or not, also where the other is another machine with the same disk.
fn link_own(etc: &Path, table: &str, link: &Path) -> io::Result<()> {
    let own = etc.join(format!("{table}.{}", std::process::id()));
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&own)?;
    write!(file, "{}\0", std::process::id())?;
    let linked = fs::hard_link(&own, link);
    fs::remove_file(&own)?;
    linked
}

/// Whether the process that a lock names still runs.
fn alive(link: &Path) -> bool {
    let text = fs::read_to_string(link).unwrap_or_default();
    let pid = text.trim_end_matches(['\0', '\n']).parse::<u32>();
    pid.is_ok_and(|pid| pid != std::process::id() && Path::new(&format!("/proc/{pid}")).exists())
}
