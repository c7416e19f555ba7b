//! UDP, echoes, and the guest's lease.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use netdev::config::{Forward, Transport};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::{dhcpv4, icmp, udp};
use smoltcp::wire::{Icmpv4Message, Icmpv4Packet, IpAddress, IpCidr, IpEndpoint};

use super::world::{GATEWAY, GATEWAY6, LOOPBACK, SERVICE, Setup, World};

fn buffer(packets: usize) -> udp::PacketBuffer<'static> {
    udp::PacketBuffer::new(
        vec![udp::PacketMetadata::EMPTY; packets],
        vec![0; packets * 2000],
    )
}

/// A guest's socket at `port`.
fn bound(world: &mut World<'_>, port: u16) -> SocketHandle {
    let mut socket = udp::Socket::new(buffer(64), buffer(64));
    socket.bind(port).unwrap();
    world.sockets.add(socket)
}

fn say(world: &mut World<'_>, from: SocketHandle, to: (IpAddr, u16), what: &[u8]) {
    let to = IpEndpoint::new(to.0.into(), to.1);
    let socket: &mut udp::Socket<'_> = world.sockets.get_mut(from);
    socket.send_slice(what, to).unwrap();
    world.moved += 1;
}

/// What a guest's socket hears next, and from whom.
fn hear(world: &mut World<'_>, at: SocketHandle) -> (Vec<u8>, IpEndpoint) {
    let mut heard = None;
    world.until("the guest hears a datagram", |world| {
        let socket: &mut udp::Socket<'_> = world.sockets.get_mut(at);
        heard = socket
            .recv()
            .ok()
            .map(|(data, from)| (data.to_vec(), from.endpoint));
        heard.is_some()
    });
    heard.unwrap()
}

/// What a host's socket hears next, and from whom.
fn hear_at_host(world: &mut World<'_>, at: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let (mut bytes, mut heard) = ([0; 2000], None);
    world.until("the host hears a datagram", |_| {
        heard = at.recv_from(&mut bytes).ok();
        heard.is_some()
    });
    let (n, from) = heard.unwrap();
    (bytes[..n].to_vec(), from)
}

fn host_socket(address: IpAddr) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

#[test]
fn datagrams_go_out_and_their_answers_come_back() {
    for (gateway, loopback) in [(GATEWAY, LOOPBACK), (GATEWAY6, "::1".parse().unwrap())] {
        let host = host_socket(loopback);
        let to = host.local_addr().unwrap();
        Setup::default().open(to).run(|world| {
            let own = world.fresh_port();
            let guest = bound(world, own);
            let long = [7; 1452];
            for what in [&b"one"[..], b"", b"three", &long] {
                say(world, guest, (gateway, to.port()), what);
                let (heard, from) = hear_at_host(world, &host);
                assert_eq!(heard, what);
                host.send_to(&[what, b"!"].concat()[..heard.len()], from)
                    .unwrap();
                let (heard, from) = hear(world, guest);
                assert_eq!(heard, [what, b"!"].concat()[..what.len()]);
                assert_eq!(from, IpEndpoint::new(gateway.into(), to.port()));
            }
            assert_eq!((world.run.flows(), world.counters.udp_flows.get()), (1, 1));
        });
    }
}

#[test]
fn datagrams_for_which_the_guest_s_card_has_no_room_wait_in_the_socket() {
    let host = host_socket(LOOPBACK);
    let to = host.local_addr().unwrap();
    let setup = Setup {
        room: 3,
        ..Setup::default()
    };
    setup.open(to).run(|world| {
        let own = world.fresh_port();
        let guest = bound(world, own);
        say(world, guest, (GATEWAY, to.port()), b"how much?");
        let (_, from) = hear_at_host(world, &host);
        for number in 0..40_u8 {
            host.send_to(&[number], from).unwrap();
        }
        let (mut heard, mut lost) = (0, 0);
        world.until("what was sent came or was lost", |world| {
            let socket: &mut udp::Socket<'_> = world.sockets.get_mut(guest);
            heard += u64::from(socket.recv().is_ok());
            lost = world.counters.dropped_no_room.get();
            heard + lost == 40
        });
        // Only the one that found no room was read in vain, each time that there was none.
        assert!(lost <= 40 / 3, "{lost}");
    });
}

#[test]
fn a_client_s_datagrams_come_in_and_are_answered() {
    let (setup, forward) = Setup::default().forward(Transport::Udp);
    setup.run(|world| {
        let guest = bound(world, SERVICE);
        let clients = [host_socket(LOOPBACK), host_socket(LOOPBACK)];
        for client in &clients {
            client.send_to(b"hello", forward).unwrap();
            let (heard, from) = hear(world, guest);
            assert_eq!(heard, b"hello");
            let seen = IpEndpoint::new(GATEWAY.into(), client.local_addr().unwrap().port());
            assert_eq!(from, seen);
            say(world, guest, (GATEWAY, from.port), b"welcome");
            assert_eq!(hear_at_host(world, client), (b"welcome".to_vec(), forward));
        }
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn datagrams_of_one_size_go_joined_and_arrive_apart() {
    // The guest calls its own forward, by way of the host.
    let free = host_socket(LOOPBACK).local_addr().unwrap();
    for offloads in [false, true] {
        let mut setup = Setup::default().open(free);
        setup.config.forwards.push(Forward {
            transport: Transport::Udp,
            bind: free,
            guest_port: SERVICE,
        });
        let setup = if offloads { setup.offloads() } else { setup };
        setup.run(|world| {
            let own = world.fresh_port();
            let (caller, service) = (bound(world, own), bound(world, SERVICE));
            let said: Vec<Vec<u8>> = (0..20)
                .map(|i| vec![i; 1000 - 7 * (i as usize / 18)])
                .collect();
            for what in &said {
                say(world, caller, (GATEWAY, free.port()), what);
            }
            for what in &said {
                assert_eq!(&hear(world, service).0, what);
            }
        });
    }
}

#[test]
fn a_flow_that_nothing_uses_is_forgotten() {
    let host = host_socket(LOOPBACK);
    let to = host.local_addr().unwrap();
    Setup::default().open(to).run(|world| {
        let own = world.fresh_port();
        let guest = bound(world, own);
        let mut from = None;
        // Each datagram, either way, keeps it for five minutes.
        for _ in 0..3 {
            say(world, guest, (GATEWAY, to.port()), b"x");
            let (_, now) = hear_at_host(world, &host);
            assert_eq!(*from.get_or_insert(now), now, "it is still the same flow");
            world.pass(Duration::from_secs(200), |_| {});
            host.send_to(b"y", now).unwrap();
            hear(world, guest);
            world.pass(Duration::from_secs(200), |_| {});
            assert_eq!(world.run.flows(), 1);
        }
        world.pass(Duration::from_secs(101), |_| {});
        assert_eq!(world.run.flows(), 0);
    });
}

fn icmp_socket(world: &mut World<'_>, endpoint: icmp::Endpoint) -> SocketHandle {
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4000]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(endpoint).unwrap();
    world.sockets.add(socket)
}

/// What ICMP tells the guest.
fn told(world: &mut World<'_>, socket: SocketHandle) -> (Vec<u8>, IpAddress) {
    let mut told = None;
    world.until("the guest is told by ICMP", |world| {
        let socket: &mut icmp::Socket<'_> = world.sockets.get_mut(socket);
        told = socket
            .recv()
            .ok()
            .map(|(bytes, from)| (bytes.to_vec(), from));
        told.is_some()
    });
    told.unwrap()
}

#[test]
fn nobody_at_a_port_is_told_the_guest_by_icmp() {
    let dead = host_socket(LOOPBACK).local_addr().unwrap();
    Setup::default().open(dead).run(|world| {
        let own = world.fresh_port();
        let guest = bound(world, own);
        let errors = icmp_socket(world, icmp::Endpoint::Udp(own.into()));
        say(world, guest, (GATEWAY, dead.port()), b"anybody?");
        let (bytes, from) = told(world, errors);
        let message = Icmpv4Packet::new_checked(&bytes[..]).unwrap();
        assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
        assert_eq!(message.msg_code(), 3);
        assert_eq!(from, GATEWAY.into());
        // Where it may not go, it is told that too.
        say(
            world,
            guest,
            ("169.254.169.254".parse().unwrap(), 80),
            b"secrets?",
        );
    });
}

#[test]
fn the_gateway_answers_echoes() {
    Setup::default().run(|world| {
        let socket = icmp_socket(world, icmp::Endpoint::Ident(77));
        let mut question = vec![0; 8 + 1000];
        let mut packet = Icmpv4Packet::new_unchecked(&mut question[..]);
        packet.set_msg_type(Icmpv4Message::EchoRequest);
        packet.set_msg_code(0);
        packet.set_echo_ident(77);
        packet.set_echo_seq_no(3);
        packet.data_mut().fill(9);
        packet.fill_checksum();
        let guest: &mut icmp::Socket<'_> = world.sockets.get_mut(socket);
        guest.send_slice(&question, GATEWAY.into()).unwrap();
        let (bytes, from) = told(world, socket);
        let answer = Icmpv4Packet::new_checked(&bytes[..]).unwrap();
        assert_eq!(answer.msg_type(), Icmpv4Message::EchoReply);
        assert_eq!((answer.echo_ident(), answer.echo_seq_no()), (77, 3));
        assert!(answer.verify_checksum() && answer.data().iter().all(|byte| *byte == 9));
        assert_eq!((from, world.run.flows()), (GATEWAY.into(), 0));
    });
}

#[test]
fn a_client_of_dhcp_gets_its_lease_and_keeps_it() {
    let mut setup = Setup::default();
    setup.addresses.clear();
    setup.config.resolver = netdev::resolver::Resolver::parse("nameserver 10.96.0.10");
    setup.run(|world| {
        let handle = world.sockets.add(dhcpv4::Socket::new());
        let mut lease = None;
        let mut lost = 0;
        let mut step = |world: &mut World<'_>| {
            let socket: &mut dhcpv4::Socket<'_> = world.sockets.get_mut(handle);
            match socket.poll() {
                Some(dhcpv4::Event::Configured(config)) => {
                    let servers: Vec<_> = config.dns_servers.iter().copied().collect();
                    let told = (config.address, config.router, servers);
                    lease = Some(told);
                    world.interface.update_ip_addrs(|addresses| {
                        addresses.clear();
                        addresses.push(IpCidr::Ipv4(config.address)).unwrap();
                    });
                }
                Some(dhcpv4::Event::Deconfigured) => lost += 1,
                None => {}
            }
            lease.clone()
        };
        world.until("the guest has a lease", |world| step(world).is_some());
        world.pass(Duration::from_secs(4 * 86_400), |world| {
            step(world);
        });
        let (address, router, servers) = lease.unwrap();
        assert_eq!(address.to_string(), "10.0.2.2/24");
        assert_eq!(router.map(IpAddr::V4), Some(GATEWAY));
        assert_eq!(servers, [std::net::Ipv4Addr::new(10, 96, 0, 10)]);
        // smoltcp says so once, at its beginning.
        assert!(lost <= 1, "the lease was lost {lost} times");
    });
}
