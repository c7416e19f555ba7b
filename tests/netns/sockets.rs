//! Sockets of a namespace, that wait for no longer than anybody has patience.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use peapod_tests::sides::Family;
use peapod_tests::space::Space;
pub use peapod_tests::{PATIENCE, until};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};

/// Waits until `space` has a way to `address`, for which a link or an address may be late: then a
/// SYN would be sent twice.
pub fn wait_for(space: &Space, address: IpAddr) {
    let nobody = SocketAddr::new(address, 1);
    until(&format!("no way to {address}"), || {
        let attempt = || TcpStream::connect_timeout(&nobody, Duration::from_millis(50));
        let refused = space.inside(attempt).unwrap().unwrap_err();
        (refused.kind() == io::ErrorKind::ConnectionRefused).then_some(())
    });
}

/// A socket from `bind` in `space`. One that was closed lives on for a moment if another test was
/// about to start a process.
fn bound<T: Send>(space: &Space, bind: impl Fn() -> io::Result<T> + Sync) -> T {
    until("somebody else has that port", || {
        match space.inside(&bind).unwrap() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
            result => Some(result.unwrap()),
        }
    })
}

/// Listens in `space` for both families.
pub fn listen(space: &Space, port: u16) -> TcpListener {
    let listener = bound(space, || TcpListener::bind(("::", port)));
    // For more at once than the standard library lets wait.
    rustix::net::listen(&listener, 4096).unwrap();
    set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).unwrap();
    listener
}

pub fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    patient(listener.accept().expect("nobody calls").0)
}

/// Expects that nobody has called.
pub fn expect_nobody(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let nobody = listener.accept().expect_err("somebody called");
    assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
}

pub fn try_dial(space: &Space, to: SocketAddr) -> io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&to, PATIENCE);
    space.inside(connect).unwrap().map(patient)
}

#[track_caller]
pub fn dial(space: &Space, to: SocketAddr) -> TcpStream {
    try_dial(space, to).unwrap_or_else(|error| panic!("{to}: {error}"))
}

/// A connection to a forwarded port, as soon as that is open.
#[track_caller]
pub fn call(space: &Space, to: SocketAddr) -> TcpStream {
    until(&format!("{to} stays closed"), || try_dial(space, to).ok())
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A socket of datagrams with that address of `space`, with room for many.
pub fn datagrams(space: &Space, own: SocketAddr) -> UdpSocket {
    let socket = bound(space, || UdpSocket::bind(own));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    set_socket_recv_buffer_size_force(&socket, 8 << 20).unwrap();
    socket
}

/// A socket of datagrams that are for `to`.
pub fn datagrams_to(space: &Space, to: SocketAddr) -> UdpSocket {
    let socket = datagrams(space, Family::from(to.ip()).any(0));
    space.inside(|| socket.connect(to)).unwrap().unwrap();
    socket
}

/// The next datagram, and who sent it.
#[track_caller]
pub fn receive<'a>(socket: &UdpSocket, place: &'a mut [u8]) -> (&'a [u8], SocketAddr) {
    loop {
        match socket.recv_from(place) {
            Ok((n, from)) => return (&place[..n], from),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("no datagram came: {error}"),
        }
    }
}

/// Has the socket told of everything that becomes of its datagrams.
pub fn hear_errors(socket: &UdpSocket, family: Family) {
    match family {
        Family::V4 => set_option(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        Family::V6 => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// setsockopt(2) with a number.
pub fn set_option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let len = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_raw_fd();
    // SAFETY: setsockopt reads `len` bytes, the integer's size, from the local integer.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}
