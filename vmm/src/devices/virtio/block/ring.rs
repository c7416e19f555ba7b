//! io_uring, by which a disk's files are asked for many things at once.

use std::io;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, register::Restriction};

use super::aio::{Call, Kind};

/// A ring that can read, write and flush, and nothing else that a ring might: no filter of system calls
/// sees what is asked for there.
pub struct Ring(IoUring);

impl Ring {
    /// One for so many requests at once; an error where the kernel has none to give, as in many a
    /// container.
    pub fn new(depth: u16) -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().build(depth.into())?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let asks = [
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
        ];
        let submitter = ring.submitter();
        submitter.register_restrictions(&mut asks.map(Restriction::sqe_op))?;
        submitter.register_enable_rings()?;
        Ok(Self(ring))
    }

    /// Asks for `call` with the next [`Ring::reap`]; whether there is room for it.
    ///
    /// # Safety
    ///
    /// As for [`super::aio::Aio::ask`].
    pub unsafe fn ask(&mut self, call: &Call) -> bool {
        let (fd, table, count) = (Fd(call.file), call.table, call.count);
        let entry = match call.kind {
            Kind::Read => opcode::Readv::new(fd, table, count).offset(call.at).build(),
            Kind::Write => opcode::Writev::new(fd, table, count)
                .offset(call.at)
                .build(),
            Kind::Flush => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        };
        // SAFETY: what the entry points to is there until the caller has heard of its end.
        unsafe { self.0.submission().push(&entry.user_data(call.slot)) }.is_ok()
    }

    /// Begins what was asked for, waits until one of all is done, or so long, and calls `done` with the
    /// slot and the result of each that is.
    pub fn reap(&mut self, patience: Duration, mut done: impl FnMut(u64, i32)) {
        let moment = Timespec::from(patience);
        let arguments = SubmitArgs::new().timespec(&moment);
        match self.0.submitter().submit_with_args(1, &arguments) {
            Ok(_) => {}
            // Nothing was done in that moment; or a signal came, or the kernel has much to do.
            Err(error)
                if [libc::ETIME, libc::EINTR, libc::EAGAIN, libc::EBUSY]
                    .contains(&error.raw_os_error().unwrap_or(0)) => {}
            Err(error) => {
                tracing::debug!("block: io_uring: {error}");
                std::thread::sleep(patience);
            }
        }
        for entry in self.0.completion() {
            done(entry.user_data(), entry.result());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_does_nothing_but_read_write_and_flush() {
        let mut ring = match Ring::new(4) {
            Ok(ring) => ring,
            Err(error) => return eprintln!("skipped: this host has no io_uring: {error}"),
        };
        let path = c"/etc/passwd";
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let poll = opcode::PollAdd::new(Fd(0), libc::POLLIN as u32).build();
        for entry in [open, poll] {
            // SAFETY: the path is a literal.
            unsafe { ring.0.submission().push(&entry) }.unwrap();
            ring.0.submit_and_wait(1).unwrap();
            let answer = ring.0.completion().next().unwrap();
            assert_eq!(answer.result(), -libc::EACCES);
        }
    }
}
