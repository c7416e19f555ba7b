//! What the guest may not do.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use netdev::config::Transport;
use smoltcp::socket::tcp::State;
use smoltcp::wire::IpCidr;

use super::talk::{End, ends, finish};
use super::world::{GATEWAY, LOOPBACK, SERVICE, Setup, World, call, listener};

/// Whether the guest's connection is refused, soon.
pub fn is_refused(world: &mut World<'_>, to: IpAddr, port: u16) -> bool {
    let guest = world.connect(to, port);
    let before = world.now();
    world.until("the connection is made or refused", |world| {
        let state = world.tcp(guest).state();
        state != State::SynSent || world.now() - before > Duration::from_secs(10)
    });
    let state = world.tcp(guest).state();
    world.tcp(guest).abort();
    state == State::Closed
}

#[test]
fn what_claims_another_s_address_is_dropped_and_counted() {
    let listener = listener(LOOPBACK);
    let to = listener.local_addr().unwrap();
    let mut setup = Setup::default().open(to);
    setup.addresses = vec![IpCidr::new(Ipv4Addr::new(10, 0, 2, 9).into(), 24)];
    setup.run(|world| {
        world.connect(GATEWAY, to.port());
        world.pass(Duration::from_secs(10), |_| {});
        assert!(world.counters.dropped_spoofed.get() > 0);
        assert_eq!((world.run.flows(), world.counters.tcp_out.get()), (0, 0));
        assert!(listener.accept().is_err());
    });
}

#[test]
fn closed_destinations_are_refused_and_counted() {
    Setup::default().run(|world| {
        let closed = [
            GATEWAY,
            "169.254.169.254".parse().unwrap(),
            "10.0.2.77".parse().unwrap(),
        ];
        for to in closed {
            assert!(is_refused(world, to, 80), "{to}");
        }
        assert_eq!(world.counters.refused_access.get(), 3);
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn connections_beyond_the_limit_are_refused_and_there_is_room_again_when_one_ends() {
    let listener = listener(LOOPBACK);
    let to = listener.local_addr().unwrap();
    let (setup, forward) = Setup::default().open(to).forward(Transport::Tcp);
    let mut setup = setup;
    setup.config.max_flows = 3;
    setup.run(|world| {
        let mut all: Vec<_> = (0..3)
            .map(|_| ends(world.connected(GATEWAY, &listener), 100, 100))
            .collect();
        assert!(is_refused(world, GATEWAY, to.port()));
        world.listen(SERVICE);
        let mut client = End::new(call(forward), 0, 0);
        client.ends = false;
        world.until("the client is sent away", |world| {
            client.step(world);
            client.was_reset
        });
        assert_eq!(world.counters.refused_limit.get(), 2);
        finish(world, &mut all[1]);
        world.until("one is gone", |world| world.run.flows() == 2);
        all[1] = ends(world.connected(GATEWAY, &listener), 100, 100);
        for both in &mut all {
            finish(world, both);
        }
    });
}

#[test]
fn flows_of_datagrams_count_too() {
    let host = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = host.local_addr().unwrap();
    let mut setup = Setup::default().open(to);
    setup.config.max_flows = 2;
    setup.run(|world| {
        for _ in 0..5 {
            let own = world.fresh_port();
            let buffer = || {
                let slots = vec![smoltcp::socket::udp::PacketMetadata::EMPTY; 4];
                smoltcp::socket::udp::PacketBuffer::new(slots, vec![0; 4000])
            };
            let mut socket = smoltcp::socket::udp::Socket::new(buffer(), buffer());
            socket.bind(own).unwrap();
            socket
                .send_slice(b"x", (smoltcp::wire::IpAddress::from(GATEWAY), to.port()))
                .unwrap();
            world.sockets.add(socket);
            world.pass(Duration::from_secs(1), |_| {});
        }
        assert_eq!(
            (world.run.flows(), world.counters.refused_limit.get()),
            (2, 3)
        );
    });
}
