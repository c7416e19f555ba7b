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

/// The mapping of the program's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    start: usize,
    len: usize,
}

impl Program {
    /// This process', found before the sandbox closes /proc.
    pub fn find() -> io::Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let here = Self::find as fn() -> io::Result<Self> as usize;
        let found = maps.lines().find_map(|line| parse(line, here));
        found.ok_or_else(|| io::Error::other("/proc/self/maps: the program is not in it"))
    }

    /// Lets it go when the guest has been ready for a moment, or is taken to have been.
    pub async fn let_go_after_the_boot(self, running: Arc<Running>) {
        let ready = running.until_the_agent_is_ready();
        // Either is as good.
        let _ = tokio::time::timeout(LONGEST_BOOT, ready).await;
        tokio::time::sleep(SETTLED).await;
        self.let_go();
    }

    /// Has the kernel unmap it. What runs again is mapped again, from the kernel's cache of the file, when
    /// it runs.
    pub fn let_go(self) {
        // SAFETY: the range is this program's instructions, mapped from its file, private, and never
        // writable: what is there when it is mapped again is what was there. A file that is run cannot be
        // written (ETXTBSY), and one that takes its name is another file.
        let failed = unsafe {
            libc::madvise(
                std::ptr::without_provenance_mut(self.start),
                self.len,
                libc::MADV_DONTNEED,
            )
        };
        if failed != 0 {
            tracing::debug!("the program stays mapped: {}", io::Error::last_os_error());
        }
    }
}

/// A line of proc_pid_maps(5), where it is a file's instructions, private, never written, around `here`.
fn parse(line: &str, here: usize) -> Option<Program> {
    let mut words = line.split_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let (start, end) = range.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let is_a_file = words.nth(2)? != "0";
    let len = end.checked_sub(start)?;
    (is_a_file && rights == "r-xp" && (start..end).contains(&here))
        .then_some(Program { start, len })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_on_when_it_was_let_go() {
        let program = Program::find().unwrap();
        program.let_go();
        assert_eq!(Program::find().unwrap(), program);
    }

    #[test]
    fn only_a_file_s_instructions_around_here_are_let_go() {
        let line =
            |rights: &str, inode: &str| format!("1000-3000 {rights} 00001000 08:01 {inode} /x");
        let found = Program {
            start: 0x1000,
            len: 0x2000,
        };
        assert_eq!(parse(&line("r-xp", "7"), 0x2fff), Some(found));
        for (line, here) in [
            (line("r-xp", "7"), 0x3000),
            (line("rwxp", "7"), 0x1000),
            (line("r--p", "7"), 0x1000),
            (line("r-xp", "0"), 0x1000),
            ("rubbish".to_owned(), 0x1000),
        ] {
            assert_eq!(parse(&line, here), None, "{line}");
        }
    }
}
