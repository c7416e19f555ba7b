//! The process' own program in memory. A boot runs through much of it that is never run again, and what
//! was run once stays mapped: most of what a VM costs beyond its guest.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::running::Running;

/// After so long a guest that says nothing is taken to have booted.
const LONGEST_BOOT: Duration = Duration::from_secs(60);
/// What a guest that is ready is given for its first requests.
const SETTLED: Duration = Duration::from_secs(2);

/// The mappings of the program's instructions and constants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    parts: Vec<Part>,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: usize,
    len: usize,
}

impl Program {
    /// This process', found before the sandbox closes /proc.
    pub fn find() -> io::Result<Self> {
        let maps = fs::read_to_string("/proc/self/smaps")?;
        let here = Self::find as fn() -> io::Result<Self> as usize;
        let parts = parts(&maps, here);
        if parts.is_empty() {
            return Err(io::Error::other(
                "/proc/self/smaps: the program is not in it",
            ));
        }
        Ok(Self { parts })
    }

    /// Lets it go when the guest has been ready for a moment, or is taken to have been.
    pub async fn let_go_after_the_boot(self, running: Arc<Running>) {
        let ready = running.until_the_agent_is_ready();
        // Either is as good.
        let _ = tokio::time::timeout(LONGEST_BOOT, ready).await;
        tokio::time::sleep(SETTLED).await;
        self.let_go();
    }

    /// Has the kernel unmap it. What is of use again is mapped again, from the kernel's cache of the file,
    /// when it is used.
    pub fn let_go(self) {
        for Part { start, len } in self.parts {
            // SAFETY: the range is this program's, mapped from its file, private, cannot be written, and
            // nothing in it was: what is there when it is mapped again is what was there. A file that is
            // run cannot be written (ETXTBSY), and one that takes its name is another file.
            let failed = unsafe {
                libc::madvise(
                    std::ptr::without_provenance_mut(start),
                    len,
                    libc::MADV_DONTNEED,
                )
            };
            if failed != 0 {
                let error = io::Error::last_os_error();
                tracing::debug!("the program stays mapped: {error}");
            }
        }
    }
}

/// Of proc_pid_smaps(5) what is of the file that `here` is in, private, not to be written, and as the
/// file has it: no relocation was made in it.
fn parts(smaps: &str, here: usize) -> Vec<Part> {
    let (mut all, mut own, mut last) = (Vec::new(), None, None);
    for line in smaps.lines() {
        if let Some((part, rights, file)) = mapping(line) {
            if (part.start..part.start + part.len).contains(&here) {
                own = Some(file);
            }
            let constant = rights == "r-xp" || rights == "r--p";
            last = constant.then_some((part, file));
        } else if line.split_whitespace().eq(["Anonymous:", "0", "kB"]) {
            all.extend(last.take());
        }
    }
    all.retain(|(_, file)| Some(*file) == own && !file.ends_with(" 0"));
    all.into_iter().map(|(part, _)| part).collect()
}

/// The first line of a mapping: where it is, what may be done with it, and the device and inode of its
/// file.
fn mapping(line: &str) -> Option<(Part, &str, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let len = end.checked_sub(start)?;
    let (rights, rest) = rest.split_once(' ')?;
    let (_, rest) = rest.split_once(' ')?;
    let inode = rest.split_once(' ')?.1.split(' ').next()?;
    let file = rest.get(..rest.find(' ')? + 1 + inode.len())?;
    Some((Part { start, len }, rights, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_on_when_it_was_let_go() {
        let program = Program::find().unwrap();
        program.clone().let_go();
        assert_eq!(Program::find().unwrap(), program);
    }

    #[test]
    fn only_what_is_of_the_file_and_as_the_file_has_it_is_let_go() {
        let map = |range: &str, rights: &str, inode: &str, anonymous: u32| {
            format!(
                "{range} {rights} 00001000 08:01 {inode}      /x\nRss:   8 kB\n\
                 Anonymous:      {anonymous} kB\nAnonHugePages:   0 kB\n"
            )
        };
        let part = |start| Part {
            start,
            len: 0x1000,
        };
        let smaps = [
            map("1000-2000", "r--p", "7", 0),
            map("2000-3000", "r-xp", "7", 0),
            map("3000-4000", "r--p", "7", 4),
            map("4000-5000", "rw-p", "7", 0),
            map("5000-6000", "r-xp", "8", 0),
            map("6000-7000", "r--p", "0", 0),
            map("7000-8000", "r--s", "7", 0),
            "rubbish\n".to_owned(),
        ]
        .concat();
        assert_eq!(parts(&smaps, 0x2fff), [part(0x1000), part(0x2000)]);
        assert_eq!(parts(&smaps, 0x5000), [part(0x5000)]);
        assert_eq!(parts(&smaps, 0x8000), []);
        // What has no file is nobody's program.
        assert_eq!(parts(&smaps, 0x6000), []);
    }
}
