//! Sockets of a namespace, that wait for no longer than anybody has patience.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use peapod_tests::space::Space;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// Longer than anything takes that is not stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Tries until there is something, which has to be soon.
pub fn until<T>(failure: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(success) = attempt() {
            return success;
        }
        assert!(start.elapsed() < PATIENCE, "{failure}");
        sleep(Duration::from_millis(10));
    }
}

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

pub fn accept(listener: &TcpListener) -> TcpStream {
    patient(listener.accept().expect("nobody calls").0)
}

pub fn try_dial(space: &Space, to: SocketAddr) -> io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&to, PATIENCE);
    space.inside(connect).unwrap().map(patient)
}

pub fn dial(space: &Space, to: SocketAddr) -> TcpStream {
    try_dial(space, to).unwrap_or_else(|error| panic!("{to}: {error}"))
}

/// A connection to a forwarded port, as soon as that is open.
pub fn call(space: &Space, to: SocketAddr) -> TcpStream {
    until(&format!("{to} stays closed"), || try_dial(space, to).ok())
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}
