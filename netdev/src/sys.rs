//! What the standard library and socket2 do not wrap of Linux's sockets, and of the C library's heap.

use std::io::{self, IoSliceMut};
use std::mem::size_of;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use socket2::{MaybeUninitSlice, MsgHdrMut, SockAddr, SockRef, Socket};

/// Gives the kernel every whole page of the heap that nobody uses (malloc_trim(3)): a few hundred
/// microseconds for some MiB.
pub fn trim_heap() {
    // SAFETY: it takes no pointer, and locks the heap as malloc itself does, so any thread may call it.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Control messages: room for one of two bytes and one of four.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Control {
    bytes: [u8; 64],
    len: usize,
}

impl Control {
    /// What is in it.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Bytes of datagrams that wait to be read, if we are let.
const RECEIVE_BUFFER: usize = 4 << 20;
const HEADER: usize = size_of::<libc::cmsghdr>();

/// The control message that has a socket cut what is sent into datagrams of `size` (udp(7),
/// UDP_SEGMENT).
pub fn cut_into(size: u16) -> Control {
    let mut bytes = [0; 64];
    // struct cmsghdr: length, level, type; then the value, padded to a word (cmsg(3)).
    let fields = (HEADER + 2).to_ne_bytes().into_iter();
    let fields = fields
        .chain(libc::SOL_UDP.to_ne_bytes())
        .chain(libc::UDP_SEGMENT.to_ne_bytes())
        .chain(size.to_ne_bytes());
    bytes
        .iter_mut()
        .zip(fields)
        .for_each(|(to, from)| *to = from);
    Control {
        bytes,
        len: HEADER + 8,
    }
}

/// Lets `socket` give several datagrams of one sender joined, where the kernel can (udp(7),
/// UDP_GRO); elsewhere it gives each.
pub fn receive_joined(socket: &Socket) {
    // As much room as the kernel gives (net.core.rmem_max): datagrams come while we do other things.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    let _ = set(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
}

/// Has `socket` refuse what is longer than the path's MTU instead of sending it in fragments
/// (ip(7), IP_MTU_DISCOVER).
pub fn dont_fragment(socket: &Socket, v6: bool) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    if v6 {
        set(
            fd,
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_DO,
        )
    } else {
        set(
            fd,
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        )
    }
}

/// Has `socket` tell of all that is heard of its datagrams, not only of what is final (ip(7),
/// IP_RECVERR).
pub fn hear_errors(socket: &Socket, v6: bool) -> io::Result<()> {
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    } else {
        (libc::IPPROTO_IP, libc::IP_RECVERR)
    };
    set(socket.as_raw_fd(), level, name, 1)
}

/// Throws away the datagrams that errors were about: they take a socket's room.
pub fn forget_errors(socket: SockRef<'_>) {
    let mut scratch = [0; 1];
    while socket
        .recv_with_flags(uninit(&mut scratch), libc::MSG_ERRQUEUE)
        .is_ok()
    {}
}

/// The MTU of the path that a connected socket has learned.
pub fn path_mtu(fd: RawFd, v6: bool) -> io::Result<u16> {
    let (level, name) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU)
    };
    let mut value: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: getsockopt writes at most `len` bytes, the integer's size, to the local integer.
    let result =
        unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(u16::try_from(value).unwrap_or(u16::MAX))
}

fn set(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: setsockopt reads `len` bytes, the integer's size, from the local integer.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Receives one datagram, or several joined ones of one sender, into `place`: how many bytes, the
/// size of each of the joined ones, and the sender.
pub fn receive_from(
    socket: SockRef<'_>,
    place: &mut [u8],
) -> io::Result<(usize, Option<u16>, SocketAddr)> {
    let mut control = Control {
        bytes: [0; 64],
        len: 0,
    };
    // Room for either family's.
    let mut from = SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let mut slices = [MaybeUninitSlice::new(uninit(place))];
    let mut message = MsgHdrMut::new()
        .with_addr(&mut from)
        .with_buffers(&mut slices)
        .with_control(uninit(&mut control.bytes));
    let n = socket.recvmsg(&mut message, 0)?;
    control.len = message.control_len();
    let from = from.as_socket().ok_or(io::ErrorKind::InvalidData)?;
    Ok((n, joined(control.as_bytes()), from))
}

/// The size in the first control message, if that is UDP_GRO's.
fn joined(control: &[u8]) -> Option<u16> {
    let level = libc::SOL_UDP.to_ne_bytes();
    let kind = libc::UDP_GRO.to_ne_bytes();
    if control.get(8..12)? != level || control.get(12..16)? != kind {
        return None;
    }
    let value = control.get(HEADER..HEADER + 4)?.try_into().ok()?;
    u16::try_from(libc::c_int::from_ne_bytes(value)).ok()
}

fn uninit(bytes: &mut [u8]) -> &mut [std::mem::MaybeUninit<u8>] {
    // SAFETY: bytes that are initialised may be seen as bytes that perhaps are not; the kernel
    // writes initialised ones only.
    unsafe { &mut *(std::ptr::from_mut(bytes) as *mut [std::mem::MaybeUninit<u8>]) }
}

/// Reads from `fd` into two places, one behind the other.
pub fn read_vectored(fd: RawFd, places: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    // SAFETY: IoSliceMut has the layout of iovec; the kernel writes no more than each says.
    let n = unsafe { libc::readv(fd, places.as_mut_ptr().cast(), places.len() as libc::c_int) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Writes `places`, one behind the other, to `fd`.
pub fn write_vectored(fd: RawFd, places: &[io::IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: IoSlice has the layout of iovec; the kernel reads no more than each says.
    let n = unsafe { libc::writev(fd, places.as_ptr().cast(), places.len() as libc::c_int) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// An ioctl that reads an integer.
pub fn set_by_ioctl(fd: RawFd, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the request is one that reads an int from the pointer, which is a local one.
    let result = unsafe { libc::ioctl(fd, request, &raw const value) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// An ioctl whose argument is a number.
pub fn give_by_ioctl(fd: RawFd, request: libc::Ioctl, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the request is one that takes a number, so nothing is read or written by it.
    let result = unsafe { libc::ioctl(fd, request, value) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `struct ifreq` (netdevice(7)) for the interface `name`; a name that is too long is an error.
fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: the struct is plain numbers and bytes, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() || name.is_empty() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request
        .ifr_name
        .iter_mut()
        .zip(name.bytes())
        .for_each(|(to, from)| *to = from as libc::c_char);
    Ok(request)
}

/// Makes `fd`, which is open on the tun device, a tap called `name` (linux/if_tun.h).
pub fn tap(fd: RawFd, name: &str, flags: libc::c_short) -> io::Result<()> {
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which is a local one.
    let result = unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets how many frames the interface `name` queues (netdevice(7), SIOCSIFTXQLEN).
pub fn queue_length(name: &str, length: libc::c_int) -> io::Result<()> {
    let mut request = ifreq(name)?;
    request.ifr_ifru.ifru_metric = length;
    let any = Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: SIOCSIFTXQLEN reads one ifreq, which is a local one.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFTXQLEN, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
