//! Pages that go back to the host. The guest's memory is private, so that MADV_DONTNEED frees a
//! page; the guest finds zeros when it touches it again, or, in a machine that was restored, what the
//! snapshot has there.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileSlice};

use super::BadChain;
use super::buffers::{gather, len, take};
use crate::devices::virtio::GuestMemory;
use crate::devices::virtio::queue::Chain;

/// What the driver counts in, whatever its own pages are (section 5.5.6).
pub const PAGE: usize = 4096;
/// A page's number is this many bytes.
const NUMBER: usize = 4;
/// The most pages of one chain: more than any driver names at once.
const MAX_PAGES: usize = 1 << 16;

/// Lets the pages go whose numbers are in `chain`.
pub fn inflate(chain: &Chain<'_>) -> Result<u32, BadChain> {
    let (mut from, _) = gather(chain)?;
    let bytes = len(&from);
    if !bytes.is_multiple_of(NUMBER) || bytes == 0 || bytes / NUMBER > MAX_PAGES {
        return Err(BadChain);
    }
    let mut run: Option<(u64, usize)> = None;
    while let Some(number) = take::<NUMBER>(&mut from) {
        let page = u64::from(u32::from_le_bytes(number));
        // The driver takes pages as it finds them, often one behind the other, up or down.
        run = Some(match run {
            Some((first, count)) if page == first + count as u64 => (first, count + 1),
            Some((first, count)) if page + 1 == first => (page, count + 1),
            other => {
                let_go_of(chain, other)?;
                (page, 1)
            }
        });
    }
    let_go_of(chain, run)?;
    Ok(0)
}

fn let_go_of(chain: &Chain<'_>, run: Option<(u64, usize)>) -> Result<(), BadChain> {
    let Some((first, count)) = run else {
        return Ok(());
    };
    let (at, len) = (first * PAGE as u64, count * PAGE);
    let memory = chain.memory();
    let slice = memory.get_slice(GuestAddress(at), len);
    free(&slice.map_err(|_| BadChain)?);
    Ok(())
}

/// Whether the guest's memory is a file's, as a restored machine's is.
pub fn have_a_file(memory: &GuestMemory) -> bool {
    memory.iter().any(|region| region.file_offset().is_some())
}

/// Lets the free pages go that `chain`'s buffers are, unless their content is to be kept.
pub fn report(chain: &Chain<'_>, keep: bool) -> Result<u32, BadChain> {
    let (_, to) = gather(chain)?;
    if len(&to) == 0 {
        return Err(BadChain);
    }
    if !keep {
        to.iter().for_each(free);
    }
    Ok(0)
}

/// Frees the whole pages of `slice`.
fn free(slice: &VolatileSlice<'_>) {
    let guard = slice.ptr_guard_mut();
    let start = guard.as_ptr();
    let skip = start.align_offset(PAGE);
    let len = slice.len().saturating_sub(skip) / PAGE * PAGE;
    if len == 0 {
        return;
    }
    // SAFETY: the range lies in the slice, which is of the guest's memory and stays mapped; what
    // was in it is the guest's to lose, and nothing that Rust knows of lies there.
    if unsafe { libc::madvise(start.wrapping_add(skip).cast(), len, libc::MADV_DONTNEED) } != 0 {
        tracing::debug!("balloon: {}", io::Error::last_os_error());
    }
}
