//! Bytes arrive both ways, whole and in order, whatever the wire and the guest are like.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, TcpStream};
use std::time::Duration;

use netdev::config::Transport;
use proptest::prelude::*;
use smoltcp::iface::SocketHandle;
use socket2::SockRef;

use super::talk::{ends, finish};
use super::watch::Watch;
use super::wire::Faults;
use super::world::{GATEWAY, GATEWAY6, LOOPBACK, Setup, World, listener};

/// The guest calls the host, and each says so much.
fn talk(setup: Setup, up: usize, down: usize) -> Watch {
    let listener = listener(LOOPBACK);
    let setup = setup.open(listener.local_addr().unwrap());
    setup.run(|world| {
        let connection = world.connected(GATEWAY, &listener);
        finish(world, &mut ends(connection, up, down));
        std::mem::take(&mut world.wire.borrow_mut().watch)
    })
}

/// The host calls the guest.
fn talk_inward(setup: Setup, up: usize, down: usize) {
    let (setup, forward) = setup.forward(Transport::Tcp);
    setup.run(|world| {
        let connection = world.called(forward);
        finish(world, &mut ends(connection, up, down));
    });
}

#[test]
fn without_faults_nothing_is_sent_twice() {
    let seen = talk(Setup::default(), 3_000_000, 3_000_000);
    assert_eq!((seen.guest_again, seen.engine_again), (0, 0));
    assert!(seen.largest <= 1460);
}

#[test]
fn a_card_that_cuts_is_given_more_than_a_segment_at_once() {
    let seen = talk(Setup::default().offloads(), 300_000, 3_000_000);
    assert_eq!((seen.guest_again, seen.engine_again), (0, 0));
    assert_eq!(seen.largest, 1460);
}

#[test]
fn only_what_was_lost_is_sent_again_and_that_at_once() {
    for lost in [&[1][..], &[5, 15, 25], &[20, 21, 22], &[7, 40]] {
        let listener = listener(LOOPBACK);
        let setup = Setup {
            buffers: (100_000, 100_000),
            ..Setup::default()
        };
        let setup = setup.open(listener.local_addr().unwrap());
        setup.run(|world| {
            let mut both = ends(world.connected(GATEWAY, &listener), 0, 60 * 1460);
            let mut number = 0;
            world.wire.borrow_mut().misses = Box::new(move |frame| {
                let long = frame.len() > 1000;
                number += u32::from(long);
                long && lost.contains(&number)
            });
            let start = world.now();
            finish(world, &mut both);
            assert_eq!(world.wire.borrow().watch.engine_again, lost.len() as u64);
            let took = world.now() - start;
            assert!(took < Duration::from_millis(250), "{took:?}: {lost:?}");
        });
    }
}

#[test]
fn a_card_with_little_room_loses_nothing() {
    for offloads in [false, true] {
        let setup = Setup {
            room: 3,
            ..Setup::default()
        };
        let setup = if offloads { setup.offloads() } else { setup };
        talk(setup, 200_000, 1_000_000);
    }
}

#[test]
fn small_windows_and_small_segments_do() {
    for (buffers, mtu) in [
        ((1, 1), 1500),
        ((100, 100), 1500),
        ((2000, 2000), 1500),
        ((2000, 2000), 128),
        ((100_000, 100_000), 128),
        ((700, 700), 576),
    ] {
        let setup = Setup {
            buffers,
            mtu,
            ..Setup::default()
        };
        let bytes = if buffers.0 == 1 { 300 } else { 40_000 };
        talk(setup, bytes, bytes);
    }
}

#[test]
fn urgent_data_arrives_in_its_place_among_the_rest() {
    let say = |world: &mut World<'_>, (guest, mut host): (SocketHandle, TcpStream)| {
        let mut got = Vec::new();
        for (plain, urgent, rest) in [(&b"ab"[..], &b"c"[..], &b"de"[..]), (b"f", b"gh", b"")] {
            host.write_all(plain).unwrap();
            SockRef::from(&host).send_out_of_band(urgent).unwrap();
            host.write_all(rest).unwrap();
            let wanted = got.len() + plain.len() + urgent.len() + rest.len();
            world.until("the guest has all", |world| {
                let read = |bytes: &mut [u8]| (bytes.len(), got.extend_from_slice(bytes));
                let _ = world.tcp(guest).recv(read);
                got.len() == wanted
            });
        }
        assert_eq!(got, b"abcdefgh");
        world.tcp(guest).close();
    };
    let listener = listener(LOOPBACK);
    let setup = Setup::default().open(listener.local_addr().unwrap());
    setup.run(|world| {
        let connection = world.connected(GATEWAY, &listener);
        say(world, connection);
    });
    let (setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.run(|world| {
        let connection = world.called(forward);
        say(world, connection);
    });
}

#[test]
fn a_guest_that_does_not_scale_windows_is_told_and_believed_plain_ones() {
    let setup = || Setup {
        unscaled: true,
        buffers: (200_000, 200_000),
        ..Setup::default()
    };
    let seen = talk(setup(), 1_000_000, 1_000_000);
    assert_eq!((seen.guest_again, seen.engine_again), (0, 0));
    talk_inward(setup(), 1_000_000, 1_000_000);
}

#[test]
fn ipv6_does_as_ipv4_does() {
    let listener = listener(IpAddr::V6(Ipv6Addr::LOCALHOST));
    for setup in [Setup::default(), Setup::default().offloads()] {
        let setup = setup.open(listener.local_addr().unwrap());
        setup.run(|world| {
            let connection = world.connected(GATEWAY6, &listener);
            finish(world, &mut ends(connection, 300_000, 300_000));
            let watch = &world.wire.borrow().watch;
            assert_eq!((watch.guest_again, watch.engine_again), (0, 0));
            assert!(watch.largest <= 1440);
        });
    }
}

#[test]
fn many_connections_at_once_do() {
    let listener = listener(LOOPBACK);
    let setup = Setup::default().open(listener.local_addr().unwrap());
    setup.run(|world| {
        let mut all: Vec<_> = (0..20)
            .map(|_| ends(world.connected(GATEWAY, &listener), 50_000, 50_000))
            .collect();
        world.until("all have said and heard everything", |world| {
            for (guest, host) in &mut all {
                guest.step(world);
                host.step(world);
            }
            all.iter().all(|(g, h)| g.is_done() && h.is_done())
        });
        for (guest, host) in &all {
            assert_eq!((guest.heard, host.heard), (host.said, guest.said));
        }
    });
}

fn faulty(faults: Faults, offloads: bool) -> Setup {
    let setup = Setup {
        buffers: (20_000, 20_000),
        ..Setup::default()
    };
    let setup = setup.faults(faults);
    if offloads { setup.offloads() } else { setup }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_where_frames_are(seed: u64, loss in 10..20_u64, inward: bool, offloads: bool) {
        let setup = faulty(Faults { loss, seed, ..Faults::default() }, offloads);
        if inward {
            talk_inward(setup, 100_000, 100_000);
        } else {
            talk(setup, 100_000, 100_000);
        }
    }

    #[test]
    fn nothing_changes_where_frames_are_repeated_and_overtaken(seed: u64, offloads: bool) {
        let faults = Faults { duplicates: 20, late: 20, seed, ..Faults::default() };
        talk(faulty(faults, offloads), 100_000, 100_000);
    }

    #[test]
    fn everything_at_once_does(
        seed: u64, loss in 0..15_u64, duplicates in 0..15_u64, late in 0..30_u64, unscaled: bool,
        window in 500..30_000_usize, mtu in 128..1500_usize,
    ) {
        let setup = faulty(Faults { loss, duplicates, late, seed }, false);
        let setup = Setup { unscaled, mtu, buffers: (window, window), ..setup };
        talk(setup, 30_000, 30_000);
    }
}
