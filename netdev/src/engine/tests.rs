//! What a guest may do, asked of an engine that is turned by hand.

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Instant;

use super::*;
use crate::config::{Forward, GATEWAY_MAC, Policy, Transport};
use crate::link::fake::{self, Guest};
use crate::wire::{Flags, SegmentHeader, TYPE_IPV4, Udp, ethernet};

/// Has a guest of `policy` do something, and returns the counters. The clock stands still.
fn under(policy: Policy, test: impl FnOnce(&mut Run<'_>, &Guest)) -> Arc<Counters> {
    let config = Config {
        policy,
        ..fake::config()
    };
    let mut engine = Engine::new(config).unwrap();
    let (mut link, guest) = fake::pair();
    let now = Instant::now();
    let clock = move || now;
    let mut run = engine.attach(&mut link, &clock).unwrap();
    test(&mut run, &guest);
    drop(run);
    engine.counters()
}

#[test]
fn a_network_s_lists_are_asked_before_a_socket_is_made() {
    let policy = Policy {
        allow: vec!["192.0.2.0/24".parse().unwrap()],
        deny: vec!["192.0.2.128/25".parse().unwrap()],
        ..Policy::default()
    };
    let counters = under(policy, |run, guest| {
        for closed in ["192.0.2.200:9", "198.51.100.1:9"] {
            guest.datagram(5, closed.parse().unwrap(), b"x");
            run.turn(false).unwrap();
            assert_eq!(run.flows(), 0);
            let answer = guest.receive();
            // ICMP: unreachable, prohibited (RFC 1812, section 5.2.7.1)
            assert_eq!((answer[23], &answer[34..36]), (1, &[3, 13][..]));
        }
    });
    assert_eq!(counters.refused_policy.get(), 2);
}

#[test]
fn a_guest_begins_no_more_flows_than_it_may_and_can_try_again() {
    let policy = Policy {
        new_flows: Some(3),
        ..Policy::default()
    };
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let config = Config {
        policy,
        open_loopback: vec![port],
        ..fake::config()
    };
    let mut engine = Engine::new(config).unwrap();
    let (mut link, guest) = fake::pair();
    let offset = std::cell::Cell::new(Duration::ZERO);
    let start = Instant::now();
    let clock = || start + offset.get();
    let mut run = engine.attach(&mut link, &clock).unwrap();
    let gateway = SocketAddr::new("10.0.2.1".parse().unwrap(), port);
    let ask = |run: &mut Run<'_>| {
        for from in 1..=5 {
            guest.datagram(from, gateway, b"x");
        }
        run.turn(false).unwrap();
        run.flows()
    };
    assert_eq!(ask(&mut run), 3);
    // It was told nothing, for it may try again.
    assert_eq!(guest.waiting(), 0);
    offset.set(Duration::from_millis(300));
    assert_eq!(ask(&mut run), 4);
    drop(run);
    assert_eq!(engine.counters().refused_rate.get(), 3);
}

#[test]
fn a_packet_in_fragments_is_too_big_and_its_first_fragment_is_told_so() {
    let counters = under(Policy::default(), |run, guest| {
        let mut send = |from: &str, place: [u8; 2]| {
            let udp = Udp {
                source: 5,
                destination: 9,
                payload: b"x",
            };
            let to = "192.0.2.1".parse().unwrap();
            let mut packet = udp.packet(from.parse().unwrap(), to);
            packet[6..8].copy_from_slice(&place);
            guest.send([&ethernet(GATEWAY_MAC, [2; 6], TYPE_IPV4)[..], &packet].concat());
            run.turn(false).unwrap();
        };
        send("10.0.2.2", [0x20, 0]);
        let answer = guest.receive();
        // ICMP: unreachable, too big, and the MTU (RFC 1191, section 4)
        assert_eq!((answer[23], &answer[34..36]), (1, &[3, 4][..]));
        assert_eq!(answer[40..42], 1500_u16.to_be_bytes());
        send("10.0.2.2", [0, 185]);
        send("10.0.2.9", [0x20, 0]);
        assert_eq!(guest.waiting(), 0);
    });
    assert_eq!(counters.dropped_fragment.get(), 3);
}

/// A network that forwards a port to the guest's 80, and that port.
fn forwarding() -> (Engine, SocketAddr) {
    let bind = fake::free();
    let config = Config {
        forwards: vec![Forward {
            transport: Transport::Tcp,
            bind,
            guest_port: 80,
        }],
        ..fake::config()
    };
    (Engine::new(config).unwrap(), bind)
}

#[test]
fn a_port_is_asked_for_again_as_soon_as_the_guest_s_card_is_known() {
    let (mut engine, _) = forwarding();
    engine.config.eager = false;
    let (mut link, guest) = fake::pair();
    let now = Instant::now();
    let clock = move || now;
    let mut run = engine.attach(&mut link, &clock).unwrap();
    run.turn(false).unwrap();
    let questions = || {
        let frames = (0..guest.waiting()).map(|_| guest.receive());
        let asks = |frame: &Vec<u8>| fake::segment(frame).is_some();
        let to = |frame: Vec<u8>| frame[..6].to_vec();
        frames.filter(asks).map(to).collect::<Vec<_>>()
    };
    assert_eq!(questions(), [EVERYBODY]);
    for expected in [&[[2_u8; 6]][..], &[]] {
        guest.datagram(5, "10.0.2.1:7".parse().unwrap(), b"x");
        run.turn(false).unwrap();
        assert_eq!(questions(), expected);
    }
}

#[test]
fn memory_that_is_of_no_use_goes_back_though_a_timer_runs_more_often() {
    let (mut engine, _) = forwarding();
    engine.config.eager = false;
    let (mut link, _guest) = fake::pair();
    let mut run = engine.attach(&mut link, &Instant::now).unwrap();
    // What there was before the network.
    assert!(run.pool.has_slack());
    run.turn(true).unwrap();
    assert!(run.pool.has_slack());
    run.pool_used = Instant::now().checked_sub(TRIM_AFTER).unwrap();
    run.turn(true).unwrap();
    assert!(!run.pool.has_slack());
}

#[test]
fn an_open_port_is_asked_for_less_often_while_the_guest_tells_of_it() {
    let (mut engine, _) = forwarding();
    engine.config.eager = false;
    let (mut link, guest) = fake::pair();
    let now = std::cell::Cell::new(Instant::now());
    let clock = || now.get();
    let mut run = engine.attach(&mut link, &clock).unwrap();
    let is_asked = |run: &mut Run<'_>, after: u64, answers: bool| {
        now.set(now.get() + Duration::from_secs(after));
        run.turn(false).unwrap();
        let frames: Vec<_> = (0..guest.waiting()).map(|_| guest.receive()).collect();
        let mut segments = frames.iter().filter_map(|frame| fake::segment(frame));
        let question = segments.find(|(_, segment)| segment.flags.has(Flags::SYN));
        if let (true, Some((far, question))) = (answers, &question) {
            let answer = SegmentHeader {
                source: 80,
                destination: far.port(),
                sequence: 7,
                acknowledgement: question.sequence.wrapping_add(1),
                flags: Flags::SYN.and(Flags::ACK),
                window: 1000,
                options: None,
            };
            guest.segment(*far, &answer, &[]);
            run.turn(false).unwrap();
        }
        question.is_some()
    };
    assert!(is_asked(&mut run, 0, true));
    assert!(!is_asked(&mut run, 0, true) && is_asked(&mut run, 1, true));
    let told = Told {
        udp: Vec::new(),
        unknown: 1..=1,
    };
    run.guest_tells(Some(told));
    assert!(is_asked(&mut run, 0, true));
    assert!(!is_asked(&mut run, 9, true) && is_asked(&mut run, 1, false));
    // What is not answered is asked for as before, and so is all when the guest tells nothing.
    assert!(is_asked(&mut run, 1, true));
    run.guest_tells(None);
    assert!(is_asked(&mut run, 0, true));
    assert!(!is_asked(&mut run, 0, true) && is_asked(&mut run, 1, true));
}

#[test]
fn a_guest_that_remembers_an_older_connection_forgets_it_and_takes_the_new_one() {
    let (mut engine, bind) = forwarding();
    let (mut link, guest) = fake::pair();
    let mut run = engine.attach(&mut link, &Instant::now).unwrap();
    let mut client = TcpStream::connect(bind).unwrap();
    run.turn(true).unwrap();
    let frame = guest.receive();
    let (far, syn) = fake::segment(&frame).unwrap();
    let old = SegmentHeader {
        source: 80,
        destination: far.port(),
        sequence: 7,
        acknowledgement: syn.sequence.wrapping_add(1_000_000),
        flags: Flags::ACK,
        window: 1000,
        options: None,
    };
    guest.segment(far, &old, &[]);
    run.turn(true).unwrap();
    let frame = guest.receive();
    let (_, reset) = fake::segment(&frame).unwrap();
    assert!(reset.flags.has(Flags::RST));
    assert_eq!(reset.sequence, old.acknowledgement);
    // It is asked again at once, but only once so: it may never forget.
    run.turn(false).unwrap();
    assert_eq!(guest.waiting(), 1);
    guest.segment(far, &old, &[]);
    run.turn(true).unwrap();
    run.turn(false).unwrap();
    assert_eq!(guest.waiting(), 2);
    guest.accept();
    client.write_all(b"hello").unwrap();
    run.turn(true).unwrap();
    run.turn(false).unwrap();
    assert_eq!(guest.data(), b"hello");
}

#[test]
fn room_that_is_short_goes_round() {
    let (mut engine, bind) = forwarding();
    let (mut link, guest) = fake::pair();
    let room = link.room.clone();
    let mut run = engine.attach(&mut link, &Instant::now).unwrap();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = TcpStream::connect(bind).unwrap();
        run.turn(true).unwrap();
        let (far, _) = guest.accept();
        run.turn(true).unwrap();
        clients.push((client, far.port(), 0));
    }
    room.set(0);
    for (client, ..) in &mut clients {
        client.write_all(&[b'x'; 20_000]).unwrap();
        run.turn(true).unwrap();
    }
    // A frame at a time: nobody is served twice before all were once.
    for round in 1..=4 {
        for _ in 0..3 {
            room.set(1);
            guest.kick();
            run.turn(true).unwrap();
        }
        while guest.waiting() > 0 {
            let frame = guest.receive();
            let Some((far, segment)) = fake::segment(&frame) else {
                continue;
            };
            let client = clients.iter_mut().find(|client| client.1 == far.port());
            client.unwrap().2 += usize::from(!segment.payload.is_empty());
        }
        let served: Vec<_> = clients.iter().map(|client| client.2).collect();
        assert_eq!(served, [round; 3]);
    }
}
