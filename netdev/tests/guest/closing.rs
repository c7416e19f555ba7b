//! Connections end in every order, and each side learns what the other did.

use std::net::TcpListener;
use std::time::Duration;

use proptest::prelude::*;
use smoltcp::socket::tcp::State;

use super::talk::{End, ends, finish};
use super::wire::Faults;
use super::world::{GATEWAY, LOOPBACK, Setup, World, listener, reset};

fn host() -> (TcpListener, Setup) {
    let listener = listener(LOOPBACK);
    let setup = Setup::default().open(listener.local_addr().unwrap());
    (listener, setup)
}

/// One side says a little and ends; the other then says much, and ends.
fn half_close(world: &mut World<'_>, listener: &TcpListener, guest_first: bool) {
    let (mut guest, mut host) = ends(world.connected(GATEWAY, listener), 1000, 1000);
    world.until("the second has heard the first's end", |world| {
        guest.ends = guest_first || guest.heard_end;
        host.ends = !guest_first || host.heard_end;
        guest.step(world);
        host.step(world);
        if guest_first {
            host.heard_end
        } else {
            guest.heard_end
        }
    });
    guest.to_say += if guest_first { 0 } else { 300_000 };
    host.to_say += if guest_first { 300_000 } else { 0 };
    (guest.ends, host.ends) = (true, true);
    assert!(!(guest.ended && host.ended));
    finish(world, &mut (guest, host));
}

#[test]
fn a_guest_that_ends_first_still_hears_the_rest() {
    let (listener, setup) = host();
    setup.run(|world| half_close(world, &listener, true));
}

#[test]
fn a_host_that_ends_first_still_hears_the_rest() {
    let (listener, setup) = host();
    setup.run(|world| half_close(world, &listener, false));
}

#[test]
fn both_may_end_at_once_or_say_nothing_at_all() {
    for (up, down) in [(0, 0), (1000, 1000), (0, 1000), (1000, 0)] {
        let (listener, mut setup) = host();
        setup.latency = Duration::from_millis(5);
        setup.run(|world| {
            let connection = world.connected(GATEWAY, &listener);
            finish(world, &mut ends(connection, up, down));
        });
    }
}

#[test]
fn the_guest_may_end_before_the_host_has_answered() {
    let (listener, setup) = host();
    setup.run(|world| {
        let guest = world.connect(GATEWAY, listener.local_addr().unwrap().port());
        let mut guest = End::new(guest, 10, b'g');
        world.until("the guest has said all", |world| {
            guest.step(world);
            guest.ended
        });
        let mut host = End::new(world.accept(&listener), 10, !b'g');
        world.until("both are done", |world| {
            guest.step(world);
            host.step(world);
            guest.is_done() && host.is_done()
        });
    });
}

#[test]
fn a_guest_s_reset_reaches_the_host() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (guest, host) = world.connected(GATEWAY, &listener);
        world.tcp(guest).abort();
        let mut host = End::new(host, 0, 0);
        host.ends = false;
        world.until("the host is reset", |world| {
            host.step(world);
            assert!(!host.heard_end);
            host.was_reset
        });
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn a_host_s_reset_reaches_the_guest() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (guest, host) = world.connected(GATEWAY, &listener);
        reset(host);
        let mut guest = End::new(guest, 0, 0);
        guest.ends = false;
        world.until("the guest is reset", |world| {
            guest.step(world);
            assert!(!guest.heard_end);
            guest.was_reset
        });
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn a_host_that_closes_while_the_guest_speaks_resets_it() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (guest, host) = world.connected(GATEWAY, &listener);
        drop(host);
        let mut guest = End::new(guest, usize::MAX, 0);
        world.until("the guest is reset", |world| {
            guest.step(world);
            guest.was_reset
        });
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn a_guest_that_resets_amid_its_own_data_leaves_no_flow() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (mut guest, mut host) =
            ends(world.connected(GATEWAY, &listener), usize::MAX, usize::MAX);
        world.until("both speak", |world| {
            guest.step(world);
            host.step(world);
            guest.heard > 100_000 && host.heard > 100_000
        });
        world.tcp(guest.stream).abort();
        world.until("the host is reset", |world| {
            host.step(world);
            host.was_reset
        });
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn a_dead_port_is_refused_within_a_round_trip() {
    // Bound, but nobody listens.
    let dead = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    dead.bind(&std::net::SocketAddr::new(LOOPBACK, 0).into())
        .unwrap();
    let to = dead.local_addr().unwrap().as_socket().unwrap();
    let mut setup = Setup::default().open(to);
    setup.latency = Duration::from_millis(10);
    setup.run(|world| {
        // The first asks for the gateway's MAC address too.
        for trips in [2, 1] {
            let before = world.now();
            let guest = world.connect(GATEWAY, to.port());
            world.until("the guest is refused", |world| {
                world.tcp(guest).state() == State::Closed
            });
            let took = world.now() - before;
            assert!(took <= trips * Duration::from_millis(20), "{took:?}");
        }
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn what_is_over_is_answered_by_a_reset() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (guest, host) = world.connected(GATEWAY, &listener);
        // The guest does not hear of the reset.
        world.wire.borrow_mut().cut = true;
        reset(host);
        world.until("the flow is gone", |world| world.run.flows() == 0);
        world.wire.borrow_mut().cut = false;
        let mut guest = End::new(guest, 10, 0);
        world.until("the guest is reset", |world| {
            guest.step(world);
            guest.was_reset
        });
        assert!(world.counters.dropped_stray.get() > 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_order_does_where_frames_are_lost(
        seed: u64, loss in 0..20_u64, duplicates in 0..20_u64, late in 0..20_u64,
        guest_first: bool, offloads: bool,
    ) {
        let (listener, setup) = host();
        let setup = setup.faults(Faults { loss, duplicates, late, seed });
        let setup = if offloads { setup.offloads() } else { setup };
        setup.run(|world| {
            half_close(world, &listener, guest_first);
        });
    }
}
