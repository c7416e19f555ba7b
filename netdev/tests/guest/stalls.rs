//! Readers that stop, guests that vanish, and connections on which nothing happens.

use std::net::TcpListener;
use std::time::Duration;

use netdev::config::Transport;
use netdev::wire::{ETHERNET, Packet, Segment};

use super::talk::{End, Stream, ends, finish};
use super::world::{GATEWAY, LOOPBACK, SERVICE, Setup, World, call, listener};

fn host() -> (TcpListener, Setup) {
    let listener = listener(LOOPBACK);
    let setup = Setup::default().open(listener.local_addr().unwrap());
    (listener, setup)
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// More than all buffers between the two ends have room for.
const MUCH: usize = 40 << 20;

/// Has the speaker speak until nothing of it has got through for a minute.
fn stall<S: Stream>(world: &mut World<'_>, speaker: &mut End<S>) {
    let mut said = None;
    while said != Some(speaker.said) {
        said = Some(speaker.said);
        world.pass(MINUTE, |world| speaker.step(world));
        assert!(speaker.said < MUCH, "nothing holds it back");
    }
}

#[test]
fn a_host_that_does_not_read_holds_the_guest_back_and_nothing_is_lost_or_sent_twice() {
    let (listener, setup) = host();
    setup.run(|world| {
        let mut both = ends(world.connected(GATEWAY, &listener), MUCH, 1000);
        both.1.listens = false;
        stall(world, &mut both.0);
        // Every now and then it reads a little.
        both.0.to_say = both.0.said + 3_000_000;
        both.1.listens = true;
        both.1.block = 1000;
        for _ in 0..50 {
            world.pass(Duration::from_millis(20), |world| both.0.step(world));
            both.1.step(world);
        }
        both.1.block = 16 << 10;
        finish(world, &mut both);
        assert_eq!(world.wire.borrow().watch.guest_again, 0);
    });
}

#[test]
fn a_guest_that_does_not_read_holds_the_host_back_and_nothing_is_lost() {
    let (listener, setup) = host();
    setup.run(|world| {
        let mut both = ends(world.connected(GATEWAY, &listener), 1000, MUCH);
        both.0.listens = false;
        stall(world, &mut both.1);
        both.1.to_say = both.1.said + 1_000_000;
        both.0.listens = true;
        finish(world, &mut both);
    });
}

#[test]
fn a_guest_may_keep_its_window_shut_as_long_as_it_answers() {
    let (listener, setup) = host();
    setup.run(|world| {
        let mut both = ends(world.connected(GATEWAY, &listener), 1000, 500_000);
        both.0.listens = false;
        world.pass(HOUR, |world| both.1.step(world));
        both.0.listens = true;
        finish(world, &mut both);
    });
}

#[test]
fn a_guest_s_answer_counts_whatever_the_engine_was_about_to_send_again() {
    let (listener, setup) = host();
    setup.run(|world| {
        let mut both = ends(world.connected(GATEWAY, &listener), 0, 300_000);
        (both.0.listens, both.0.ends) = (false, false);
        world.pass(MINUTE, |world| both.1.step(world));
        // The window is shut, and opens; the guest gets what was waiting for that, but its
        // acknowledgements are lost.
        let shut = world.wire.borrow().watch.last_of_guest.clone();
        let known = acknowledged(&shut);
        world.wire.borrow_mut().loses = Box::new(move |frame| acknowledged(frame) != known);
        let before = world.wire.borrow().watch.engine_data;
        both.0.listens = true;
        world.until("the engine goes on", |world| {
            both.0.step(world);
            world.wire.borrow().watch.engine_data > before + 20
        });
        // What comes instead is old: the window seems to be shut again, and is probed.
        world.wire.borrow_mut().repeat(shut);
        world.pass(MINUTE / 60, |world| both.0.step(world));
        world.wire.borrow_mut().loses = Box::new(|_| false);
        both.0.ends = true;
        finish(world, &mut both);
        assert!(world.now() < 3 * MINUTE, "{:?}", world.now());
    });
}

/// What a frame of IPv4 and TCP acknowledges.
fn acknowledged(frame: &[u8]) -> u32 {
    let packet = Packet::parse(&frame[ETHERNET..]).unwrap();
    Segment::parse(packet.payload).unwrap().acknowledgement
}

#[test]
fn a_stalled_flow_does_not_stop_another() {
    let (listener, setup) = host();
    setup.run(|world| {
        let mut up = ends(world.connected(GATEWAY, &listener), MUCH, 0);
        up.1.listens = false;
        let mut down = ends(world.connected(GATEWAY, &listener), 0, MUCH);
        down.0.listens = false;
        stall(world, &mut up.0);
        stall(world, &mut down.1);
        let before = world.now();
        let connection = world.connected(GATEWAY, &listener);
        finish(world, &mut ends(connection, 1_000_000, 1_000_000));
        let took = world.now() - before;
        assert!(took < Duration::from_secs(1), "{took:?}");
        for both in [&mut up, &mut down] {
            (both.0.to_say, both.1.to_say) = (both.0.said, both.1.said);
            (both.0.listens, both.1.listens) = (true, true);
            finish(world, both);
        }
    });
}

/// The guest vanishes; how long it takes until the host learns of that.
fn vanish(world: &mut World<'_>, host: &mut End<std::net::TcpStream>) -> Duration {
    world.wire.borrow_mut().cut = true;
    let before = world.now();
    while !host.was_reset {
        world.pass(MINUTE, |world| host.step(world));
        assert!(world.now() - before < 5 * HOUR, "nobody told the host");
    }
    assert!(!host.heard_end);
    assert_eq!(world.run.flows(), 0);
    world.now() - before
}

#[test]
fn a_guest_that_vanishes_amid_data_has_the_host_reset() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (mut guest, mut host) = ends(world.connected(GATEWAY, &listener), 0, MUCH);
        guest.ends = false;
        world.until("some is heard", |world| {
            host.step(world);
            guest.step(world);
            guest.heard > 300_000
        });
        let took = vanish(world, &mut host);
        assert!(took > MINUTE / 2 && took < 5 * MINUTE, "{took:?}");
    });
}

#[test]
fn a_guest_that_vanishes_behind_a_shut_window_has_the_host_reset() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (guest, mut host) = ends(world.connected(GATEWAY, &listener), 0, 500_000);
        host.ends = false;
        world.pass(MINUTE, |world| host.step(world));
        assert_eq!(world.tcp(guest.stream).recv_queue(), 100_000);
        let took = vanish(world, &mut host);
        assert!(took < 5 * MINUTE, "{took:?}");
    });
}

#[test]
fn a_guest_that_vanishes_from_an_idle_connection_has_the_host_reset() {
    let (listener, setup) = host();
    setup.run(|world| {
        let (_, mut host) = ends(world.connected(GATEWAY, &listener), 0, 0);
        host.ends = false;
        let took = vanish(world, &mut host);
        assert!(took > HOUR && took < 3 * HOUR, "{took:?}");
    });
}

#[test]
fn an_idle_connection_to_a_guest_that_lives_is_kept() {
    let (listener, setup) = host();
    setup.run(|world| {
        let mut both = ends(world.connected(GATEWAY, &listener), 10, 10);
        world.pass(100 * HOUR, |_| {});
        assert_eq!(world.run.flows(), 1);
        finish(world, &mut both);
    });
}

#[test]
fn what_was_lost_before_the_card_was_full_is_sent_again_once_it_has_room() {
    let (listener, setup) = host();
    let (setup, forward) = setup.forward(Transport::Tcp);
    setup.run(|world| {
        // Data and a call, of which the guest hears nothing.
        let mut known = ends(world.connected(GATEWAY, &listener), 0, 50_000);
        let (service, client) = (world.listen(SERVICE), call(forward));
        world.wire.borrow_mut().deaf = true;
        world.pass(MINUTE / 600, |world| known.1.step(world));
        world.wire.borrow_mut().room = 0;
        world.pass(MINUTE / 3, |_| {});
        world.wire.borrow_mut().deaf = false;
        world.wire.borrow_mut().make_room();
        // Neither side says anything that would have the engine look.
        known.0.ends = false;
        world.until("the guest hears all and is called", |world| {
            known.0.step(world);
            known.0.heard == known.1.said && world.tcp(service).may_send()
        });
        known.0.ends = true;
        finish(world, &mut known);
        finish(world, &mut ends((service, client), 10, 10));
        assert!(world.now() < MINUTE, "{:?}", world.now());
    });
}

#[test]
fn a_guest_whose_card_stays_full_has_the_host_reset() {
    let (listener, setup) = host();
    let (setup, forward) = setup.forward(Transport::Tcp);
    setup.run(|world| {
        let (_, speaker) = world.connected(GATEWAY, &listener);
        world.wire.borrow_mut().room = 0;
        let mut peers = [End::new(speaker, 1000, 0), End::new(call(forward), 10, 0)];
        world.pass(5 * MINUTE, |world| {
            peers.iter_mut().for_each(|peer| peer.step(world))
        });
        assert!(peers.iter().all(|peer| peer.was_reset), "{peers:?}");
        assert_eq!(world.run.flows(), 0);
    });
}
