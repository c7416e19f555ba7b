//! A tap: the Linux kernel of some network namespace is the guest.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::header::{self, Header};
use super::{Capabilities, Link, Offload, Received};
use crate::sys;

/// The device that taps come from.
const TUN: &str = "/dev/net/tun";
/// Frames that the kernel keeps for us before it drops any: all windows of a busy guest.
const QUEUE: libc::c_int = 10_000;

/// A tap.
pub struct Tap {
    file: File,
    capabilities: Capabilities,
}

impl Tap {
    /// Makes a tap called `name` in the calling thread's network namespace, with all offloads
    /// that this kernel has.
    pub fn create(name: &str) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        sys::tap(file.as_raw_fd(), name, flags as libc::c_short)?;
        sys::set_by_ioctl(
            file.as_raw_fd(),
            libc::TUNSETVNETHDRSZ,
            header::LEN as libc::c_int,
        )?;
        if let Err(error) = sys::queue_length(name, QUEUE) {
            tracing::debug!("{name}: the queue keeps its length: {error}");
        }
        Self::of(file)
    }

    /// The tap behind a descriptor that [`Tap::create`] made, perhaps in another process.
    pub fn from_descriptor(fd: OwnedFd) -> io::Result<Self> {
        Self::of(File::from(fd))
    }

    fn of(file: File) -> io::Result<Self> {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        // Linux has the last two since 6.2.
        let all = tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        let offload = |bits| {
            sys::give_by_ioctl(
                file.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(bits),
            )
        };
        let uso = offload(all).is_ok();
        if !uso {
            offload(tcp)?;
        }
        Ok(Self {
            file,
            capabilities: Capabilities {
                checksum: true,
                tso4: true,
                tso6: true,
                uso,
            },
        })
    }

    /// Its descriptor.
    pub fn into_descriptor(self) -> OwnedFd {
        self.file.into()
    }
}

impl Link for Tap {
    fn receive(&mut self, place: &mut [u8]) -> Option<Received> {
        let mut header: Header = [0; header::LEN];
        let n = loop {
            let mut places = [IoSliceMut::new(&mut header), IoSliceMut::new(place)];
            match sys::read_vectored(self.file.as_raw_fd(), &mut places) {
                Ok(n) => break n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => {
                    tracing::debug!("tap: {error}");
                    return None;
                }
            }
        };
        Some(Received {
            len: n.checked_sub(header::LEN)?,
            datagrams: header::datagrams(&header),
            loan: None,
        })
    }

    fn send(&mut self, parts: &[&[u8]], offload: Offload) -> bool {
        let header = header::encode(offload, 0);
        let mut slices = [IoSlice::new(&[]); 4];
        let all = std::iter::once(&header[..]).chain(parts.iter().copied());
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(all.filter(|part| !part.is_empty())) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        loop {
            match sys::write_vectored(self.file.as_raw_fd(), slices) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) => {
                    // The interface is down, or the kernel finds the frame wrong: it is lost.
                    tracing::debug!("tap: {error}");
                    return true;
                }
                Ok(_) => return true,
            }
        }
    }

    fn flush(&mut self) {}

    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.file.as_raw_fd()]
    }

    fn acknowledge(&mut self) {}

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
}
