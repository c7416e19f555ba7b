//! Bytes that lie in several places, one behind the other, and go to a socket by one call.

use std::io;
use std::marker::PhantomData;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Places that one call takes at most (IOV_MAX, limits.h).
const MOST: usize = 1024;

/// Places to write from, some of which a guest may write to meanwhile.
#[derive(Default)]
pub struct Gather<'a> {
    places: Vec<libc::iovec>,
    len: usize,
    lent: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    /// Adds bytes that nobody writes to; false where there are too many places already.
    pub fn push(&mut self, bytes: &'a [u8]) -> bool {
        self.add(bytes.as_ptr(), bytes.len())
    }

    /// Adds bytes of a guest's memory; false where there are too many places already.
    pub fn push_guest(&mut self, slice: &VolatileSlice<'a>) -> bool {
        self.add(slice.ptr_guard().as_ptr(), slice.len())
    }

    fn add(&mut self, at: *const u8, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        if self.places.len() == MOST {
            return false;
        }
        self.places.push(libc::iovec {
            iov_base: at.cast_mut().cast(),
            iov_len: len,
        });
        self.len += len;
        true
    }

    /// Bytes of all places.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Gives the bytes to `socket`, which does not block, and returns how many it took.
    pub fn write(&self, socket: &TcpStream) -> io::Result<usize> {
        loop {
            // SAFETY: every place is of a slice that is borrowed for 'a, so it is mapped for as long as it
            // says; there are no more than MOST, which an int holds. The kernel only reads from them,
            // and may do so while a guest writes there: it takes whatever bytes it finds.
            let n = unsafe {
                libc::writev(
                    socket.as_raw_fd(),
                    self.places.as_ptr(),
                    self.places.len() as libc::c_int,
                )
            };
            if let Ok(n) = usize::try_from(n) {
                return Ok(n);
            }
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }
}
