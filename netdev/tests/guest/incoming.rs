//! Clients of a forwarded port.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use netdev::config::Transport;
use smoltcp::socket::tcp::State;

use super::limits::is_refused;
use super::talk::{End, finish};
use super::world::{GATEWAY, SERVICE, Setup, call, reset};

/// A client that only listens.
fn silent(stream: TcpStream) -> End<TcpStream> {
    let mut client = End::new(stream, 0, !b'g');
    client.ends = false;
    client
}

#[test]
fn a_client_is_served() {
    let (setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.run(|world| {
        let (guest, host) = world.called(forward);
        let from = world.tcp(guest).remote_endpoint().unwrap();
        assert_eq!(from.addr.to_string(), "10.0.2.1");
        assert_eq!(from.port, host.local_addr().unwrap().port());
        let (guest, host) = (End::new(guest, 10, b'g'), End::new(host, 10, !b'g'));
        finish(world, &mut (guest, host));
        assert_eq!(world.counters.tcp_in.get(), 1);
    });
}

#[test]
fn what_a_client_says_before_the_guest_answers_is_not_lost() {
    let (mut setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.latency = Duration::from_millis(50);
    setup.run(|world| {
        let mut client = End::new(call(forward), 100_000, !b'g');
        world.until("the client has said all", |world| {
            client.step(world);
            client.ended
        });
        let guest = End::new(world.listen(SERVICE), 100_000, b'g');
        finish(world, &mut (guest, client));
    });
}

#[test]
fn a_guest_that_is_late_is_asked_again() {
    let (setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.run(|world| {
        let client = End::new(call(forward), 1000, !b'g');
        world.wire.borrow_mut().cut = true;
        world.pass(Duration::from_secs(20), |_| {});
        world.wire.borrow_mut().cut = false;
        let guest = End::new(world.listen(SERVICE), 1000, b'g');
        finish(world, &mut (guest, client));
    });
}

#[test]
fn a_guest_that_refuses_has_the_client_reset_at_once() {
    let (mut setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.latency = Duration::from_millis(10);
    setup.run(|world| {
        // A guest that must ask for the gateway's MAC address first forgets what it had to say.
        assert!(is_refused(world, GATEWAY, 1));
        let before = world.now();
        let mut client = silent(call(forward));
        world.until("the client is reset", |world| {
            client.step(world);
            assert!(!client.heard_end);
            client.was_reset
        });
        let took = world.now() - before;
        assert!(took <= Duration::from_millis(20), "{took:?}");
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn a_guest_that_never_answers_has_the_client_reset_in_the_end() {
    let (setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.run(|world| {
        world.wire.borrow_mut().cut = true;
        let mut client = silent(call(forward));
        world.until("the client is reset", |world| {
            client.step(world);
            assert!(!client.heard_end);
            client.was_reset
        });
        let took = world.now().as_secs();
        assert!((30..180).contains(&took), "{took} s");
        assert_eq!(world.run.flows(), 0);
    });
}

#[test]
fn a_client_that_leaves_before_the_guest_answers_leaves_nothing() {
    let (mut setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.latency = Duration::from_millis(50);
    setup.run(|world| {
        let guest = world.listen(SERVICE);
        let client = call(forward);
        world.until("the client is accepted", |world| world.run.flows() == 1);
        reset(client);
        world.until("it is over", |world| {
            let state = world.tcp(guest).state();
            world.run.flows() == 0 && matches!(state, State::Closed | State::Listen)
        });
        assert!(world.now() < Duration::from_secs(1), "{:?}", world.now());
    });
}

#[test]
fn a_port_is_open_to_clients_while_the_guest_listens() {
    let (mut setup, forward) = Setup::default().forward(Transport::Tcp);
    setup.config.eager = false;
    setup.run(|world| {
        world.pass(Duration::from_secs(1), |_| {});
        let refused = TcpStream::connect(forward).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let before = world.now();
        let guest = world.listen(SERVICE);
        let mut client = None;
        world.until("a client is let in", |_| {
            client = TcpStream::connect(forward).ok();
            client.is_some()
        });
        let took = world.now() - before;
        assert!(took < Duration::from_millis(200), "{took:?}");
        // The program heard nothing of the questions whether it listens.
        let client = client.unwrap();
        client.set_nonblocking(true).unwrap();
        let (guest, client) = (End::new(guest, 10, b'g'), End::new(client, 10, !b'g'));
        finish(world, &mut (guest, client));
        world.until("clients are refused again", |_| {
            TcpStream::connect(forward).is_err()
        });
    });
}
