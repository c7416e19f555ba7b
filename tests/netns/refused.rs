//! What a guest may not reach, or cannot: it learns that at once, as a process of the pod does.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use peapod_tests::sides::{Family, GATEWAY, GUEST, Way};
use peapod_tests::space::Space;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::content::pass;
use crate::site::{NOWHERE, Setup, Site, output, sh, world};
use crate::sockets::{
    datagrams, expect_nobody, hear_errors, listen, port, receive, try_dial, until,
};

/// Less than a SYN waits until it is sent again.
const AT_ONCE: Duration = Duration::from_millis(900);

/// What came of a connection, in so much time.
fn refusal(space: &Space, to: SocketAddr, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    let error = try_dial(space, to).expect_err("not refused");
    let took = start.elapsed();
    assert!(took < limit, "{to}: {took:?}");
    error.raw_os_error()
}

/// What a socket is told of a datagram that did not arrive.
fn told(space: &Space, to: SocketAddr) -> Option<i32> {
    let family = Family::from(to.ip());
    let socket = space.inside(|| UdpSocket::bind(family.any(0)).unwrap());
    let socket = socket.unwrap();
    hear_errors(&socket, family);
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    // A router tells one host of few errors at once only, so one may need to be asked again.
    let attempt = || {
        socket.connect(to)?;
        socket.send(b"?")?;
        socket.recv(&mut [0])
    };
    until(&format!("nobody tells of {to}"), || {
        let error = attempt().expect_err("an answer");
        (error.kind() != ErrorKind::WouldBlock).then_some(error)
    })
    .raw_os_error()
}

pub fn a_dead_port_refuses_the_guest_at_once() {
    let site = Site::new("");
    for family in Family::BOTH {
        let to = world(family, 9);
        let refused = Some(libc::ECONNREFUSED);
        assert_eq!(refusal(&site.guest, to, AT_ONCE), refused, "{to}");
        assert_eq!(told(&site.guest, to), refused, "{to}, a datagram");
    }
}

pub fn what_is_unreachable_is_so_for_the_guest_as_for_the_pod() {
    // Because the world has no way, by the pod's own routes, and by the world's. That of IPv4 that
    // is prohibited is something else for the pod itself, of which no message tells.
    for address in [
        NOWHERE[0],
        "198.18.1.1",
        "198.18.3.1",
        "198.18.4.1",
        NOWHERE[1],
        "2001:db8:dead:1::1",
        "2001:db8:dead:2::1",
        "2001:db8:dead:3::1",
        "2001:db8:dead:4::1",
    ] {
        // For the same reason each has a pod of its own.
        let site = Site::new("");
        sh(
            &site.pod,
            "ip route add unreachable 198.18.1.0/24; ip route add unreachable 2001:db8:dead:1::/64
             ip route add prohibit 2001:db8:dead:2::/64",
        );
        sh(
            &site.world,
            "ip route add unreachable 198.18.3.0/24; ip route add unreachable 2001:db8:dead:3::/64
             ip route add prohibit 198.18.4.0/24; ip route add prohibit 2001:db8:dead:4::/64",
        );
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        // A kernel that is told while it sends the first SYN sends another before it listens.
        let limit = 3 * AT_ONCE;
        let ours = refusal(&site.guest, to, limit);
        assert_eq!(said(ours), said(refusal(&site.pod, to, limit)), "{to}");
        let (ours, native) = (told(&site.guest, to), told(&site.pod, to));
        assert_eq!(said(ours), said(native), "{to}, a datagram");
    }
}

fn said(code: Option<i32>) -> String {
    format!("{:?}", code.map(io::Error::from_raw_os_error))
}

pub fn a_pod_of_one_family_gives_its_guest_that_one_and_a_clear_no() {
    for (there, missing, flag) in [
        (Family::V4, Family::V6, "-6"),
        (Family::V6, Family::V4, "-4"),
    ] {
        for (arguments, has_both) in [("", false), (BOTH, true)] {
            let site = Setup {
                only: Some(there),
                arguments: &format!("-p 8080:80 {arguments}"),
                ..Setup::default()
            }
            .site();
            for way in Way::BOTH {
                let ends = site.connect(way, there);
                pass(&ends.guest, &ends.world, 100);
            }
            let addresses = format!("ip {flag} address show dev eth0 scope global");
            assert_eq!(!output(&site.guest, &addresses).is_empty(), has_both);
            let to = world(missing, 80);
            let error = refusal(&site.guest, to, AT_ONCE);
            assert_eq!(said(error), said(refusal(&site.pod, to, AT_ONCE)));
            assert_eq!(said(told(&site.guest, to)), said(told(&site.pod, to)));
        }
    }
}

/// A guest has the addresses that are said, whatever the pod has.
const BOTH: &str = "--address 10.0.2.2 --address6 fd10:0:2::2";

pub fn the_pod_s_loopback_and_metadata_are_closed() {
    let site = Site::new("");
    sh(
        &site.pod,
        "ip address add 169.254.169.254/32 dev lo; ip address add fd00:ec2::254/128 dev lo
         ip address add 169.254.20.10/32 dev lo",
    );
    let listener = listen(&site.pod, 0);
    let port = port(&listener);
    for address in [
        GATEWAY[0],
        "169.254.169.254",
        "10.0.2.9",
        GATEWAY[1],
        "fd00:ec2::254",
        "fd10:0:2::9",
    ] {
        let to = SocketAddr::new(address.parse().unwrap(), port);
        let refused = Some(libc::ECONNREFUSED);
        assert_eq!(refusal(&site.guest, to, AT_ONCE), refused, "{to}");
    }
    expect_nobody(&listener);
    // A node's DNS, and the pod's own services, are for the guest too.
    for address in ["169.254.20.10".parse().unwrap(), site.address(Family::V6)] {
        try_dial(&site.guest, SocketAddr::new(address, port)).unwrap();
    }
    // But not its sidecar's.
    let _sidecar = listen(&site.pod, 15000);
    for family in Family::BOTH {
        let to = site.pod(family, 15000);
        let refused = Some(libc::ECONNREFUSED);
        assert_eq!(refusal(&site.guest, to, AT_ONCE), refused, "{to}");
    }
}

pub fn a_guest_that_sends_from_another_address_gets_no_answer() {
    let site = Site::new("");
    // It has to know the gateway: it would ask for that from such an address too.
    for family in Family::BOTH {
        drop(site.connect(Way::Out, family));
    }
    sh(
        &site.guest,
        "ip address add 10.0.2.77/24 dev eth0; ip address add 198.51.100.9/32 dev eth0
         ip address add fd10:0:2::77/120 dev eth0; ip address add 2001:db8:bad::9/128 dev eth0",
    );
    let listener = listen(&site.world, 0);
    // For both families: it answers nobody.
    let server = datagrams(&site.world, Family::V6.any(0));
    for from in [
        "10.0.2.77",
        "198.51.100.9",
        "fd10:0:2::77",
        "2001:db8:bad::9",
    ] {
        let from: IpAddr = from.parse().unwrap();
        let family = Family::from(from);
        let to = world(family, port(&listener));
        let stream = site.guest.inside(|| dial_from(from, to)).unwrap();
        assert_eq!(
            stream.expect_err("connected").kind(),
            ErrorKind::TimedOut,
            "{from}"
        );
        let to = world(family, server.local_addr().unwrap().port());
        let sent = site.guest.inside(|| {
            let socket = UdpSocket::bind((from, 0))?;
            socket.send_to(b"false", to)
        });
        sent.unwrap().unwrap();
    }
    expect_nobody(&listener);
    until("too few were dropped", || {
        (site.counter("dropped_spoofed") >= 8).then_some(())
    });
    // Those that are the guest's come by the same way, and alone.
    for family in Family::BOTH {
        let to = world(family, server.local_addr().unwrap().port());
        let sent = site.guest.inside(|| {
            let socket = UdpSocket::bind((family.of(GUEST), 0))?;
            socket.send_to(b"true", to)
        });
        sent.unwrap().unwrap();
        let mut bytes = [0; 9];
        assert_eq!(receive(&server, &mut bytes).0, b"true");
    }
}

/// A connection from that address of ours.
fn dial_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if from.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    let patience = Some(Duration::from_millis(500));
    // connect() waits no longer than a sender does.
    set_socket_timeout(&socket, Timeout::Send, patience)?;
    match connect(&socket, &to) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
        Err(rustix::io::Errno::INPROGRESS) => Err(ErrorKind::TimedOut.into()),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(TcpStream::from(socket)),
    }
}
