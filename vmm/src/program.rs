//! The process' own program in memory. A boot runs through much of it that is never run again, and what
//! was run once stays mapped: most of what a VM costs beyond its guest.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::running::Running;

/// After so long a guest that says nothing is taken to have booted.
const LONGEST_BOOT: Duration = Duration::from_secs(60);
/// What a guest that is ready is given for its first requests.
const SETTLED: Duration = Duration::from_secs(2);

const PAGE: usize = 4096;

/// The program's instructions and constants: what the linker has nobody write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    parts: Vec<Part>,
}

/// Whole pages of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: usize,
    len: usize,
}

impl Program {
    /// This process'.
    pub fn find() -> Self {
        let mut parts = Vec::new();
        let place: *mut Vec<Part> = &raw mut parts;
        // SAFETY: `add_parts` is what dl_iterate_phdr(3) calls, and gets the place, which is there
        // until it returns and which nobody else uses meanwhile.
        unsafe { libc::dl_iterate_phdr(Some(add_parts), place.cast()) };
        Self { parts }
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
            // SAFETY: the range is a segment of this program's file, mapped private, that cannot be written
            // and in which no relocation is made: what is there when it is mapped again is what was there. A
            // file that is run cannot be written (ETXTBSY), and one that takes its name is another file.
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

/// Adds to the vector at `place` what cannot be written of the first object, which is the program, and
/// ends the iteration. What is made so after relocation (PT_GNU_RELRO) is of a segment that can be.
unsafe extern "C" fn add_parts(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    place: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library gives an object of which all is there until this returns; the place is that of
    // a vector, by `Program::find`.
    let (object, parts) = unsafe { (&*object, &mut *place.cast::<Vec<Part>>()) };
    // SAFETY: that many program headers lie there, as long as the program is there.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    parts.extend(headers.iter().filter_map(|header| {
        let constant = header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
        let start = (object.dlpi_addr as usize).checked_add(header.p_vaddr as usize)?;
        let end = start.checked_add(header.p_memsz as usize)?;
        let start = start / PAGE * PAGE;
        let len = end.next_multiple_of(PAGE) - start;
        constant.then_some(Part { start, len })
    }));
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_on_when_it_was_let_go() {
        let program = Program::find();
        program.clone().let_go();
        assert_eq!(Program::find(), program);
    }

    #[test]
    fn it_is_what_nobody_can_write_of_the_program() {
        let parts = Program::find().parts;
        let covers = |address: usize| {
            let within = |part: &&Part| (part.start..part.start + part.len).contains(&address);
            parts.iter().any(|part| within(&part))
        };
        let (instruction, constant) = (Program::find as fn() -> Program, &"a constant");
        assert!(covers(instruction as usize));
        assert!(covers(constant.as_ptr() as usize));
        // A relocation is made in it, and then nobody can write it.
        static RELOCATED: &&str = &"another";
        static WRITTEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
        assert!(!covers(&raw const RELOCATED as usize));
        assert!(!covers(WRITTEN.as_ptr() as usize));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        for Part { start, len } in &parts {
            let range = format!("{start:x}-{:x} r-", start + len);
            let line = maps.lines().find(|line| line.starts_with(&range));
            assert!(line.is_some(), "{range}\n{maps}");
        }
    }
}
