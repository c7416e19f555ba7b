//! Datagrams: each arrives whole or not at all, and whoever sends one that is too long is told.

use std::net::{SocketAddr, UdpSocket};

use peapod_tests::sides::{Family, Way};
use peapod_tests::space::Space;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover,
    set_ipv6_mtu_discover,
};

use crate::content::Content;
use crate::site::{Site, sh, world};
use crate::sockets::{datagrams, datagrams_to, hear_errors, receive, set_option, until};

/// The server's socket, who calls it, and where.
fn sides(site: &Site, way: Way, family: Family) -> (UdpSocket, &Space, SocketAddr) {
    match way {
        Way::Out => {
            let to = world(family, 7000);
            (datagrams(&site.world, to), &site.guest, to)
        }
        Way::In => {
            let server = datagrams(&site.guest, family.any(80));
            (server, &site.world, site.pod(family, 8080))
        }
    }
}

fn each_comes_back(site: &Site, sizes: &[usize]) {
    for way in Way::BOTH {
        for family in Family::BOTH {
            let (server, caller, to) = sides(site, way, family);
            let client = datagrams_to(caller, to);
            let mut bytes = vec![0; 1 << 16];
            for &size in sizes {
                let what = format!("{size} bytes, {way} by {family:?}");
                let sent = Content::new(size).bytes(0, size);
                client.send(sent).unwrap();
                let (got, from) = receive(&server, &mut bytes);
                assert!(got == sent, "{what}: another question");
                server.send_to(got, from).unwrap();
                bytes.fill(0);
                let (got, _) = receive(&client, &mut bytes);
                assert!(got == sent, "{what}: another answer");
            }
        }
    }
}

pub fn datagrams_of_every_size_come_back() {
    let site = Site::new("-p 8080:80/udp");
    let sizes = [0, 1, 2, 3, 17, 100, 512, 1000, 1231, 1232, 1400, 1451, 1452];
    each_comes_back(&site, &sizes);
}

pub fn long_datagrams_come_back_where_every_mtu_is_as_long() {
    let site = Site::new("--mtu 65520 -p 8080:80/udp");
    sh(&site.pod, "ip link set eth0 mtu 65535");
    let link = format!("ip link set to-{} mtu 65535", site.pod.name);
    sh(&site.world, &link);
    each_comes_back(&site, &[0, 1472, 1473, 9000, 40_000, 65_000, 65_472]);
}

pub fn a_datagram_longer_than_the_mtu_reaches_the_guest_and_the_guest_s_own_is_an_error() {
    // Only what the kernel of the pod has put together comes in; fragments are not carried.
    let site = Site::new("-p 8080:80/udp");
    for family in Family::BOTH {
        let (server, caller, to) = sides(&site, Way::In, family);
        let client = datagrams_to(caller, to);
        let mut bytes = vec![0; 1 << 16];
        client.send(Content::new(1).bytes(0, 65_000)).unwrap();
        let (got, from) = receive(&server, &mut bytes);
        assert!(got == Content::new(1).bytes(0, 65_000));
        let before = site.counter("dropped_fragment");
        hear_errors(&server, family);
        server.send_to(got, from).unwrap();
        let error = until("nobody says that it is too long", || {
            server.take_error().unwrap()
        });
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{family}");
        server.send_to(b"whole", from).unwrap();
        assert_eq!(receive(&client, &mut bytes).0, b"whole");
        assert!(site.counter("dropped_fragment") > before + 40, "{family}");
    }
}

pub fn a_burst_arrives_in_its_order() {
    let site = Site::new("-p 8080:80/udp");
    for (way, count) in [(Way::Out, 500_u32), (Way::In, 60)] {
        for family in Family::BOTH {
            let (server, caller, to) = sides(&site, way, family);
            let client = datagrams_to(caller, to);
            let mut bytes = [0; 1400];
            // Before anybody knows where the other is, few can wait.
            client.send(&[]).unwrap();
            assert!(receive(&server, &mut bytes).0.is_empty());
            for number in 0..count {
                bytes[..4].copy_from_slice(&number.to_be_bytes());
                client.send(&bytes).unwrap();
            }
            for number in 0..count {
                let (got, _) = receive(&server, &mut bytes);
                assert_eq!(got.len(), 1400);
                assert_eq!(got[..4], number.to_be_bytes(), "{way} {family:?}");
            }
        }
    }
}

pub fn datagrams_that_the_card_has_to_cut_arrive_cut() {
    let site = Site::new("-p 8080:80/udp");
    for way in Way::BOTH {
        for family in Family::BOTH {
            let (server, caller, to) = sides(&site, way, family);
            let client = datagrams_to(caller, to);
            set_option(&client, libc::SOL_UDP, libc::UDP_SEGMENT, 1000);
            let content = Content::new(2);
            client.send(content.bytes(0, 40_500)).unwrap();
            let mut bytes = [0; 2000];
            for at in (0..40_500).step_by(1000) {
                let (got, _) = receive(&server, &mut bytes);
                assert_eq!(got, content.bytes(at, 1000.min(40_500 - at)));
            }
        }
    }
}

pub fn many_flows_of_datagrams_at_once_are_kept_apart() {
    const FLOWS: usize = 300;
    const ROUNDS: usize = 10;
    let site = Site::new("-p 8080:80/udp");
    for way in Way::BOTH {
        let (server, caller, to) = sides(&site, way, Family::V4);
        let clients: Vec<UdpSocket> = (0..FLOWS).map(|_| datagrams_to(caller, to)).collect();
        let mut bytes = [0; 2000];
        for round in 0..ROUNDS {
            let content = |number| Content::new(number).bytes(round, 100 + number);
            for first in (0..FLOWS).step_by(30) {
                let some = first..first + 30;
                for number in some.clone() {
                    clients[number].send(content(number)).unwrap();
                }
                for _ in some.clone() {
                    let (got, from) = receive(&server, &mut bytes);
                    server.send_to(got, from).unwrap();
                }
                for number in some {
                    let (got, _) = receive(&clients[number], &mut bytes);
                    assert!(got == content(number), "another's");
                }
            }
        }
    }
}

pub fn the_guest_s_port_is_the_pod_s_towards_everybody() {
    let site = Site::new("");
    for family in Family::BOTH {
        let client = datagrams(&site.guest, family.any(5353));
        for to in [world(family, 7001), world(family, 7002)] {
            let server = datagrams(&site.world, to);
            client.send_to(b"?", to).unwrap();
            let (_, from) = receive(&server, &mut [0]);
            assert_eq!(from.port(), 5353);
            assert_eq!(from.ip().to_canonical(), site.address(family));
        }
    }
}

/// A socket that sends no fragments, and never cuts.
fn strict(space: &Space, to: SocketAddr) -> UdpSocket {
    let socket = datagrams_to(space, to);
    if to.is_ipv4() {
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO).unwrap();
    } else {
        set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO).unwrap();
    }
    socket
}

fn mtu(socket: &UdpSocket, family: Family) -> u32 {
    match family {
        Family::V4 => ip_mtu(socket).unwrap(),
        Family::V6 => ipv6_mtu(socket).unwrap(),
    }
}

/// Sends what is too long for a path of `mtu` until that is said, and then what is not.
fn learn(site: &Site, family: Family, to: SocketAddr, path: u32) {
    let socket = strict(&site.guest, to);
    assert_eq!(mtu(&socket, family), 1500);
    let error = until("nobody says that it is too long", || {
        socket.send(&[0; 1450]).err()
    });
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{to}");
    assert_eq!(mtu(&socket, family), path, "{to}");
    // What was sent meanwhile may be told of too.
    until("the rest is too long", || socket.send(&[1; 1200]).ok());
}

pub fn a_datagram_that_is_too_long_for_the_path_is_an_error_of_the_next() {
    let site = Site::new("");
    for family in Family::BOTH {
        // By the pod's own link, and another one behind the world.
        sh(&site.pod, "ip link set eth0 mtu 1280");
        let to = world(family, 7000);
        let server = datagrams(&site.world, to);
        learn(&site, family, to, 1280);
        assert_eq!(receive(&server, &mut [0; 2000]).0.len(), 1200);
        sh(&site.pod, "ip link set eth0 mtu 1500");
    }
    let (far, addresses) = site.far();
    for family in Family::BOTH {
        let to = SocketAddr::new(family.of(addresses), 7000);
        let server = datagrams(&far, to);
        learn(&site, family, to, 1300);
        assert_eq!(receive(&server, &mut [0; 2000]).0.len(), 1200);
    }
}
