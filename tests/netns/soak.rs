//! What has to hold however often it is tried: so often in `make test`, and for long in
//! `make soak`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use peapod_tests::sides::{Family, Way};
use peapod_tests::soak;
use peapod_tests::space::Process;
use rustix::net::sockopt::{set_socket_linger, set_socket_send_buffer_size};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::content::{Chance, Content, MIB, expect_end};
use crate::site::{Site, sh, world};
use crate::sockets::{PATIENCE, accept, call, dial, listen, port, until};

/// Opens a connection, gets a byte's answer, and closes it, so many times.
fn one_after_another(site: &Site, listener: &TcpListener, times: u32) {
    let port = port(listener);
    let answer = |mut stream: TcpStream| {
        let mut byte = [0];
        if let Ok(1) = stream.read(&mut byte) {
            stream.write_all(&byte).unwrap();
            // Until the other end is closed.
            let _ = stream.read(&mut byte);
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| (0..times).for_each(|_| answer(accept(listener))));
        let work = || {
            for number in 0..times {
                // One address would have too few ports for all that linger.
                let [_, _, high, low] = number.to_be_bytes();
                let to = Ipv4Addr::new(198, 18, high % 100, low);
                let to = SocketAddr::new(to.into(), port);
                let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.write_all(&[7]).unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                assert_eq!(byte, [7]);
                if number % 3 == 0 {
                    set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                }
            }
        };
        site.guest.inside(work).unwrap();
    });
}

/// Has both sides send something, and then the connection end in one way or another.
fn live_and_end(one: TcpStream, other: TcpStream, chance: &mut Chance) {
    let mut len = || match chance.below(8) {
        0 => 0,
        1 => 2 << 20,
        _ => chance.below(200_000),
    };
    let (there, back) = ((Content::new(len()), len()), (Content::new(len()), len()));
    thread::scope(|scope| {
        scope.spawn(|| there.0.send(&one, there.1));
        scope.spawn(|| back.0.send(&other, back.1));
        scope.spawn(|| there.0.expect(&other, there.1));
        back.0.expect(&one, back.1);
    });
    match chance.below(3) {
        0 => {
            one.shutdown(Shutdown::Write).unwrap();
            expect_end(&other);
            drop(other);
            expect_end(&one);
        }
        1 => {
            set_socket_linger(&one, Some(Duration::ZERO)).unwrap();
            drop(one);
            let error = (&other).read(&mut [0]).expect_err("not a reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
        // Both at once.
        _ => drop((one, other)),
    }
}

pub fn connections_that_end_in_any_way_lose_nothing_before() {
    const WORKERS: u16 = 4;
    let times = soak(100, 20_000);
    let site = Site::new("-p 8000:8000 -p 8001:8001 -p 8002:8002 -p 8003:8003");
    let work = |number: u16| {
        let mut chance = Chance(1 + u64::from(number));
        let outside = listen(&site.world, 0);
        let inside = listen(&site.guest, 8000 + number);
        let forwarded = |family| site.pod(family, 8000 + number);
        for family in Family::BOTH {
            drop(call(&site.world, forwarded(family)));
            drop(accept(&inside));
        }
        for _ in 0..times {
            let family = Family::BOTH[chance.below(2)];
            let (guest, world) = if chance.below(2) == 0 {
                let guest = dial(&site.guest, world(family, port(&outside)));
                (guest, accept(&outside))
            } else {
                let world = dial(&site.world, forwarded(family));
                (accept(&inside), world)
            };
            if chance.below(2) == 0 {
                live_and_end(guest, world, &mut chance);
            } else {
                live_and_end(world, guest, &mut chance);
            }
        }
    };
    let files = site.kept_descriptors();
    thread::scope(|scope| {
        for number in 0..WORKERS {
            scope.spawn(move || work(number));
        }
    });
    site.nothing_sent_again();
    assert_eq!(site.kept_descriptors(), files);
}

pub fn connections_one_after_another_leave_nothing_behind() {
    let site = Site::new("");
    // The world is all of these addresses.
    sh(&site.world, "ip route add local 198.18.0.0/15 dev lo");
    let listener = listen(&site.world, 0);
    one_after_another(&site, &listener, 1000);
    let files = site.kept_descriptors();
    let memory = site.resident();
    one_after_another(&site, &listener, soak(10_000, 1_000_000));
    let grown = site.resident().saturating_sub(memory);
    assert_eq!(site.kept_descriptors(), files);
    assert!(
        grown < 1 << 20,
        "{grown} bytes more than after the first 1000"
    );
}

/// The longest that a reader may wait for its next bytes.
const STALL: Duration = Duration::from_millis(200);

/// Has the process, or this thread, run where everything else does that is starved.
fn starve(process: Option<Pid>) {
    let mut one = CpuSet::new();
    let all = sched_getaffinity(None).unwrap();
    one.set(
        (0..CpuSet::MAX_CPU)
            .rev()
            .find(|cpu| all.is_set(*cpu))
            .unwrap(),
    );
    sched_setaffinity(process, &one).unwrap();
}

pub fn streams_between_slow_ends_on_a_starved_core_never_stall() {
    let len = soak(256, 10 << 10) as usize * MIB;
    let site = Site::new("");
    let ends = site.connect(Way::Out, Family::V4);
    // A program that never rests is there too.
    let mut busy = Command::new("sh");
    let busy = Process::start(busy.args(["-c", "while :; do :; done"])).unwrap();
    for process in [&site.network, &busy] {
        starve(Pid::from_raw(process.id() as i32));
    }
    thread::scope(|scope| {
        for (from, to) in [(&ends.guest, &ends.world), (&ends.world, &ends.guest)] {
            set_socket_send_buffer_size(from, 16 << 10).unwrap();
            let content = Content::new(len);
            scope.spawn(move || {
                starve(None);
                content.send(from, len);
            });
            scope.spawn(move || {
                starve(None);
                let (mut waited, mut late) = (Duration::ZERO, Duration::ZERO);
                let mut last = Instant::now();
                content.expect_slowly(to, len, 256 << 10, || {
                    waited = waited.max(last.elapsed());
                    last = Instant::now();
                    thread::sleep(Duration::from_millis(1));
                    late = late.max(last.elapsed());
                    last = Instant::now();
                });
                // The machine may have been busy with something else altogether.
                assert!(waited < STALL + late, "{waited:?}, and a pause of {late:?}");
            });
        }
    });
    site.nothing_sent_again();
}

pub fn peers_that_vanish_are_forgotten() {
    const SILENT: u8 = 50;
    let site = Site::new("-p 8080:80");
    // The pod's kernel gives up after 3 s.
    sh(
        &site.pod,
        "echo 1 >/proc/sys/net/ipv4/tcp_syn_retries; echo 3 >/proc/sys/net/ipv4/tcp_retries2",
    );
    sh(&site.world, "ip route add blackhole 198.19.0.0/24");
    let idle = site.kept_descriptors();
    for number in 0..SILENT {
        let to = SocketAddr::from(([198, 19, 0, number], 80));
        let patience = Duration::from_millis(1);
        let call = || TcpStream::connect_timeout(&to, patience);
        let error = site.guest.inside(call).unwrap().expect_err("an answer");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
    let mut answered = Way::BOTH.map(|way| site.connect(way, Family::V4));
    site.cut();
    for ends in &mut answered {
        ends.guest.write_all(b"?").unwrap();
        let error = ends.guest.read(&mut [0]).expect_err("an answer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    until("descriptors stay open", || {
        (site.descriptors() <= idle).then_some(())
    });
    assert_eq!(site.counter("failed_timed_out"), u64::from(SILENT));
}

pub fn a_guest_that_vanishes_is_forgotten() {
    if soak(0, 1) == 0 {
        return;
    }
    let site = Site::new("-p 8080:80");
    let idle = site.kept_descriptors();
    let mut ends = Way::BOTH.map(|way| site.connect(way, Family::V4));
    sh(&site.guest, "ip link set eth0 down");
    for ends in &mut ends {
        ends.world.write_all(b"?").unwrap();
        ends.world.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        let error = ends.world.read(&mut [0]).expect_err("an answer");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    assert!(site.kept_descriptors() <= idle);
}
