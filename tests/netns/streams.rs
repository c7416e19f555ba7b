//! Connections: what one side sends is what the other gets, whoever is slow, stops or ends.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use peapod_tests::sides::{Family, Way};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};

use crate::content::{Content, MIB, expect_end, pass};
use crate::site::{Site, world};
use crate::sockets::{PATIENCE, accept, call, dial, listen, port};

fn a_gibibyte_each_way(family: Family, mtu: u16) {
    let site = Site::new(&format!("--mtu {mtu}"));
    let ends = site.connect(Way::Out, family);
    pass(&ends.guest, &ends.world, 1 << 30);
    pass(&ends.world, &ends.guest, 1 << 30);
    site.nothing_sent_again();
}

pub fn a_gibibyte_each_way_arrives_whole_by_ipv4() {
    a_gibibyte_each_way(Family::V4, 1500);
}

pub fn a_gibibyte_each_way_arrives_whole_by_ipv6() {
    a_gibibyte_each_way(Family::V6, 1500);
}

pub fn a_gibibyte_each_way_arrives_whole_by_ipv4_in_long_packets() {
    a_gibibyte_each_way(Family::V4, 65520);
}

pub fn a_gibibyte_each_way_arrives_whole_by_ipv6_in_long_packets() {
    a_gibibyte_each_way(Family::V6, 65520);
}

pub fn both_ways_at_once_arrive_whole() {
    let site = Site::new("-p 8080:80");
    for (way, family) in [(Way::Out, Family::V4), (Way::In, Family::V6)] {
        let ends = site.connect(way, family);
        thread::scope(|scope| {
            scope.spawn(|| pass(&ends.guest, &ends.world, 128 * MIB));
            pass(&ends.world, &ends.guest, 128 * MIB);
        });
    }
    site.nothing_sent_again();
}

pub fn a_thousand_connections_at_once_keep_their_bytes_apart() {
    const CONNECTIONS: usize = 1000;
    const LEN: usize = 64 << 10;
    let site = Site::new("-p 8080:80");
    for (way, family) in [(Way::Out, Family::V4), (Way::In, Family::V6)] {
        let (listener, caller, to) = match way {
            Way::Out => {
                let listener = listen(&site.world, 0);
                let to = world(family, port(&listener));
                (listener, &site.guest, to)
            }
            Way::In => {
                let listener = listen(&site.guest, 80);
                let to = site.pod(family, 8080);
                // One goes before the others, until the port is open.
                drop(call(&site.world, to));
                drop(accept(&listener));
                (listener, &*site.world, to)
            }
        };
        thread::scope(|scope| {
            // The callee answers each with what it got.
            scope.spawn(|| {
                for _ in 0..CONNECTIONS {
                    let mut stream = accept(&listener);
                    scope.spawn(move || {
                        let mut bytes = vec![0; LEN];
                        stream.read_exact(&mut bytes).unwrap();
                        stream.write_all(&bytes).unwrap();
                    });
                }
            });
            let callers: Vec<TcpStream> = (0..CONNECTIONS).map(|_| dial(caller, to)).collect();
            // A little of each in turn, so that all are under way at once.
            const PART: usize = 8 << 10;
            for at in (0..LEN).step_by(PART) {
                for (number, mut stream) in callers.iter().enumerate() {
                    let bytes = Content::new(number).bytes(at, PART);
                    stream.write_all(bytes).unwrap();
                }
            }
            for (number, stream) in callers.iter().enumerate() {
                Content::new(number).expect(stream, LEN);
                expect_end(stream);
            }
        });
    }
    site.nothing_sent_again();
}

/// A connection each way by each family, of which either end comes first.
fn each_connection(site: &Site, mut test: impl FnMut(TcpStream, TcpStream)) {
    for way in Way::BOTH {
        for family in Family::BOTH {
            let ends = site.connect(way, family);
            test(ends.guest, ends.world);
            let ends = site.connect(way, family);
            test(ends.world, ends.guest);
        }
    }
}

pub fn each_side_may_end_and_go_on_listening() {
    let site = Site::new("-p 8080:80");
    each_connection(&site, |first, second| {
        pass(&first, &second, MIB);
        first.shutdown(Shutdown::Write).unwrap();
        expect_end(&second);
        pass(&second, &first, 8 * MIB);
        second.shutdown(Shutdown::Write).unwrap();
        expect_end(&first);
    });
}

pub fn a_reset_reaches_the_other_side() {
    let site = Site::new("-p 8080:80");
    each_connection(&site, |resetter, mut other| {
        pass(&other, &resetter, 1000);
        set_socket_linger(&resetter, Some(Duration::ZERO)).unwrap();
        drop(resetter);
        let error = other.read(&mut [0]).expect_err("not a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

pub fn a_slow_reader_makes_nobody_send_again() {
    let site = Site::new("-p 8080:80");
    each_connection(&site, |from, to| {
        let len = 4 * MIB;
        set_socket_recv_buffer_size(&to, 32 << 10).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| Content::new(1).send(&from, len));
            let pause = || thread::sleep(Duration::from_millis(1));
            Content::new(1).expect_slowly(&to, len, 16 << 10, pause);
        });
    });
    site.nothing_sent_again();
}

/// Sends content 2 to a reader that doesn't read until nothing has gone on for a while; how much that was.
pub fn fill(mut from: &TcpStream) -> usize {
    from.set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut at = 0;
    while let Ok(n) = from.write(Content::new(2).bytes(at, 64 << 10)) {
        at += n;
    }
    from.set_write_timeout(Some(PATIENCE)).unwrap();
    at
}

pub fn a_reader_that_stops_stops_no_other_flow() {
    let site = Site::new("-p 8080:80");
    each_connection(&site, |from, to| {
        let alone = Instant::now();
        pass(&from, &to, 16 * MIB);
        let alone = alone.elapsed();
        let filled = fill(&from);
        let other = site.connect(Way::Out, Family::V4);
        let beside = Instant::now();
        pass(&other.guest, &other.world, 16 * MIB);
        pass(&other.world, &other.guest, 16 * MIB);
        let beside = beside.elapsed();
        assert!(
            beside < 20 * alone + Duration::from_secs(2),
            "{beside:?} beside one that stopped, {alone:?} alone"
        );
        Content::new(2).expect(&to, filled);
    });
    site.nothing_sent_again();
}
