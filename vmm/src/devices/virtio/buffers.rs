//! The buffers of a chain as slices of the guest's memory: what the driver wrote for the device,
//! and where the device may write.

use vm_memory::{GuestMemoryBackend, VolatileMemoryError, VolatileSlice};

use super::GuestMemory;
use super::queue::{BadChain, Chain, descriptors};

/// Buffers, one behind the other.
pub type Slices<'a> = Vec<VolatileSlice<'a>>;

/// The chain's buffers: those to read from, those to write to.
pub fn gather<'c>(chain: &'c Chain<'_>) -> Result<(Slices<'c>, Slices<'c>), BadChain> {
    gather_in(chain.memory(), chain)
}

/// The same for longer than the chain is there; the memory is the chain's.
pub fn gather_in<'m>(
    memory: &'m GuestMemory,
    chain: &Chain<'_>,
) -> Result<(Slices<'m>, Slices<'m>), BadChain> {
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for descriptor in descriptors(chain) {
        let descriptor = descriptor?;
        let slice = memory
            .get_slice(descriptor.addr(), descriptor.len() as usize)
            .map_err(|_| BadChain)?;
        if descriptor.is_write_only() {
            to.push(slice);
        } else {
            from.push(slice);
        }
    }
    Ok((from, to))
}

/// Bytes in all the buffers.
pub fn len(slices: &[VolatileSlice<'_>]) -> usize {
    slices
        .iter()
        .fold(0, |sum, slice| sum.saturating_add(slice.len()))
}

/// Cuts the first `N` bytes off the buffers and returns them; `None` where there are fewer.
pub fn take<const N: usize>(slices: &mut Slices<'_>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        let n = cut(slices, rest.len(), |slice, n| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut_checked(n)?;
            rest = later;
            slice.copy_to(now);
            Some(())
        })?;
        debug_assert!(n > 0);
    }
    Some(bytes)
}

/// Writes `bytes` to the first buffers and cuts off what it wrote; `None` where there is no room.
pub fn put(slices: &mut Slices<'_>, mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        cut(slices, bytes.len(), |slice, n| {
            let (now, later) = bytes.split_at_checked(n)?;
            bytes = later;
            slice.copy_from(now);
            Some(())
        })?;
    }
    Some(())
}

/// Shows the first buffer's first bytes, at most `most` and at least one, and cuts them off.
fn cut<'a>(
    slices: &mut Slices<'a>,
    most: usize,
    with: impl FnOnce(VolatileSlice<'a>, usize) -> Option<()>,
) -> Option<usize> {
    while slices.first().is_some_and(|slice| slice.is_empty()) {
        slices.remove(0);
    }
    let first = slices.first_mut()?;
    let n = first.len().min(most);
    with(first.subslice(0, n).ok()?, n)?;
    if n == first.len() {
        slices.remove(0);
    } else {
        *first = first.offset(n).ok()?;
    }
    Some(n)
}

/// Shortens the buffers to `most` bytes.
pub fn truncate(slices: &mut Slices<'_>, most: usize) -> Result<(), VolatileMemoryError> {
    let mut room = most;
    let mut keep = 0;
    for slice in slices.iter_mut() {
        if room == 0 {
            break;
        }
        if slice.len() > room {
            *slice = slice.subslice(0, room)?;
        }
        room -= slice.len();
        keep += 1;
    }
    slices.truncate(keep);
    Ok(())
}

/// The buffers as the kernel's scattered I/O takes them. They are valid as long as the slices.
pub fn iovecs(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    slices
        .iter()
        .map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(bytes: &mut [u8], cuts: &[usize]) -> Slices<'static> {
        let mut at = bytes.as_mut_ptr();
        cuts.iter()
            .map(|len| {
                // SAFETY: the cuts' sum is the length of the bytes, which outlive each test.
                unsafe {
                    let slice = VolatileSlice::new(at, *len);
                    at = at.add(*len);
                    slice
                }
            })
            .collect()
    }

    #[test]
    fn bytes_are_taken_and_put_across_buffers() {
        let mut bytes = *b"0123456789";
        let mut from = slices(&mut bytes, &[3, 0, 4, 3]);
        assert_eq!(take::<4>(&mut from), Some(*b"0123"));
        assert_eq!(len(&from), 6);
        assert_eq!(take::<7>(&mut from), None);
        let mut to = slices(&mut bytes, &[1, 9]);
        assert_eq!(put(&mut to, b"abc"), Some(()));
        truncate(&mut to, 2).unwrap();
        assert_eq!(put(&mut to, b"de"), Some(()));
        assert_eq!(put(&mut to, b"f"), None);
        assert_eq!(&bytes, b"abcde56789");
    }
}
