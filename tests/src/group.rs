//! A control group of a pod, and what the kernel says of it (Linux's cgroup-v2.rst).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::space::about;

const ROOT: &str = "/sys/fs/cgroup";

/// A control group with an account of its memory; what is in it ends with this.
#[derive(Debug)]
pub struct Group {
    name: String,
}

impl Group {
    /// Makes one beside the caller's own, where a group that has processes may have none below it.
    pub fn new(role: &str) -> io::Result<Self> {
        let of = "/proc/self/cgroup";
        let own = fs::read_to_string(of).map_err(|e| about(of, e))?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::"));
        let beside = own.and_then(|own| Path::new(own).parent());
        let beside = beside.unwrap_or(Path::new("/"));
        let name = beside.join(format!("{role}-{}", std::process::id()));
        let group = Self {
            name: name.display().to_string(),
        };
        let path = group.path("");
        fs::create_dir(&path).map_err(|e| about(&path.display().to_string(), e))?;
        // Fails where there is no such account.
        group.set("cgroup.subtree_control", "+memory")?;
        Ok(group)
    }

    /// As a runtime knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::new(ROOT)
            .join(self.name.trim_start_matches('/'))
            .join(file)
    }

    /// Writes a file of it.
    pub fn set(&self, file: &str, value: &str) -> io::Result<()> {
        let path = self.path(file);
        fs::write(&path, value).map_err(|e| about(&path.display().to_string(), e))
    }

    /// Its only number in a file.
    pub fn number(&self, file: &str) -> io::Result<u64> {
        let text = fs::read_to_string(self.path(file))?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// The numbers in a file, by their names.
    pub fn numbers(&self, file: &str) -> io::Result<BTreeMap<String, u64>> {
        let text = fs::read_to_string(self.path(file))?;
        let lines = text.lines().filter_map(|line| line.split_once(' '));
        let number = |(name, number): (&str, &str)| Some((name.to_owned(), number.parse().ok()?));
        Ok(lines.filter_map(number).collect())
    }

    /// All processes that are in it or below it.
    pub fn processes(&self) -> io::Result<Vec<u32>> {
        let mut all = Vec::new();
        let mut folders = vec![self.path("")];
        while let Some(folder) = folders.pop() {
            let here = fs::read_to_string(folder.join("cgroup.procs"))?;
            all.extend(here.lines().filter_map(|line| line.parse::<u32>().ok()));
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        Ok(all)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.set("cgroup.kill", "1");
        // Until those that were killed are gone.
        for _ in 0..100 {
            if let Ok(entries) = fs::read_dir(self.path("")) {
                for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
            if fs::remove_dir(self.path("")).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
    }
}
