//! What goes wrong around a network: links that go down, paths that are narrow, descriptors that
//! run out. What can go on goes on, and what can't is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use peapod_tests::sides::{Family, Way};
use rustix::net::sockopt::{
    Timeout, set_socket_recv_buffer_size, set_socket_send_buffer_size, set_socket_timeout,
};

use crate::content::{Content, MIB, pass};
use crate::site::{Ends, Setup, Site, sh, world};
use crate::sockets::{accept, call, dial, listen, port, try_dial, until};

/// Passes much both ways while `happening` happens.
fn pass_amid(ends: &Ends, happening: impl FnOnce()) {
    const LEN: usize = 64 * MIB;
    let (out, back) = (Content::new(1), Content::new(2));
    thread::scope(|scope| {
        scope.spawn(|| out.send(&ends.guest, LEN));
        scope.spawn(|| back.send(&ends.world, LEN));
        // Not so fast that it is over before.
        let pause = || sleep(Duration::from_millis(2));
        scope.spawn(move || out.expect_slowly(&ends.world, LEN, 128 << 10, pause));
        scope.spawn(move || back.expect_slowly(&ends.guest, LEN, 128 << 10, pause));
        sleep(Duration::from_millis(200));
        happening();
    });
}

pub fn a_connection_outlives_the_pod_s_link() {
    let site = Site::new("-p 8080:80");
    for way in Way::BOTH {
        let ends = site.connect(way, Family::V4);
        pass_amid(&ends, || site.interrupt(Duration::from_millis(500)));
    }
    // That was between the pod and the world.
    site.nothing_sent_again();
}

pub fn a_connection_outlives_the_guest_s_link() {
    let site = Site::new("-p 8080:80");
    for way in Way::BOTH {
        pass_amid(&site.connect(way, Family::V4), || {
            sh(&site.guest, "ip link set eth0 down");
            sleep(Duration::from_millis(500));
            sh(
                &site.guest,
                "ip link set eth0 up; ip route add default via 10.0.2.1",
            );
        });
    }
}

pub fn a_guest_whose_network_ends_resets_its_peers() {
    let mut site = Site::new("-p 8080:80");
    for way in Way::BOTH {
        let mut ends = site.connect(way, Family::V4);
        pass(&ends.guest, &ends.world, 100);
        site.restart();
        let error = ends.world.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    // The next one does it all again.
    let ends = site.connect(Way::In, Family::V6);
    pass(&ends.guest, &ends.world, 100);
}

pub fn a_narrow_path_carries_connections() {
    let site = Site::new("--mtu 65520");
    let (far, addresses) = site.far();
    for family in Family::BOTH {
        let listener = listen(&far, 0);
        let to = SocketAddr::new(family.of(addresses), port(&listener));
        let guest = dial(&site.guest, to);
        let world = accept(&listener);
        pass(&guest, &world, 16 * MIB);
        pass(&world, &guest, 16 * MIB);
    }
    site.nothing_sent_again();
}

pub fn descriptors_that_run_out_refuse_what_is_new_until_some_are_free() {
    let setup = Setup {
        files: Some(64),
        ..Setup::default()
    };
    run_out(setup, 40..64, "refused_shortage");
}

pub fn flows_at_their_limit_refuse_what_is_new_until_some_have_ended() {
    let setup = Setup {
        arguments: "--max-flows 50",
        ..Setup::default()
    };
    run_out(setup, 50..51, "refused_limit");
}

/// Has a guest of such a site open connections until it is refused one more, which is `most`.
fn run_out(setup: Setup<'_>, most: Range<usize>, counter: &str) {
    let arguments = format!("{} -p 8080:80", setup.arguments);
    let site = Setup {
        arguments: &arguments,
        ..setup
    }
    .site();
    let listener = listen(&site.world, 0);
    let guest_s = listen(&site.guest, 80);
    let to = world(Family::V4, port(&listener));
    let forwarded = site.pod(Family::V4, 8080);
    drop(call(&site.world, forwarded));
    drop(accept(&guest_s));
    let patience = Some(Duration::from_millis(100));
    set_socket_timeout(&guest_s, Timeout::Recv, patience).unwrap();
    let idle = site.kept_descriptors();
    for _ in 0..3 {
        let before = site.counter(counter);
        let mut open: Vec<(TcpStream, TcpStream)> = Vec::new();
        let error = loop {
            match try_dial(&site.guest, to) {
                Ok(stream) => open.push((stream, accept(&listener))),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(most.contains(&open.len()), "{}", open.len());
        // Who calls in is sent away likewise, however many they are.
        const CALLERS: u64 = 20;
        for _ in 0..CALLERS {
            let sent_away = match try_dial(&site.world, forwarded) {
                Ok(mut stream) => stream.read(&mut [0]).map(|_| ()),
                Err(error) => Err(error),
            };
            let error = sent_away.expect_err("there is one more");
            let kinds = [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused];
            assert!(kinds.contains(&error.kind()), "{error}");
        }
        // Those that there are go on.
        for (number, (guest, world)) in open.iter().enumerate() {
            Content::new(number).send(guest, 10_000);
            Content::new(number).expect(world, 10_000);
            Content::new(number).send(world, 10_000);
            Content::new(number).expect(guest, 10_000);
        }
        // One that ends makes room for one.
        open.pop();
        until("nothing got free", || try_dial(&site.guest, to).ok());
        accept(&listener);
        drop(open);
        until("a forwarded port stays shut", || {
            let call = try_dial(&site.world, forwarded).ok()?;
            let there = guest_s.accept().ok()?;
            Some((call, there))
        });
        until("descriptors stay open", || {
            // It may have been in vain at first, and there after all.
            while guest_s.accept().is_ok() {}
            (site.descriptors() <= idle).then_some(())
        });
        let refused = site.counter(counter) - before;
        assert!(refused > CALLERS, "{refused} counted");
    }
}

pub fn connections_that_nobody_reads_take_bounded_memory_and_lose_nothing() {
    const CONNECTIONS: usize = 500;
    /// 24 MiB, what was promised before there were so many, the least that each has, and what there is
    /// besides. Without a bound it would be half a MiB for each, each way.
    const MOST: usize = 64 * MIB;
    let site = Site::new("-p 8080:80 --buffers 24");
    let listener = listen(&site.world, 0);
    let to = world(Family::V4, port(&listener));
    // Less than what was told at first: the kernel drops what it gets, and takes the window back.
    let small = |stream: &TcpStream| {
        set_socket_recv_buffer_size(stream, 16 << 10).unwrap();
        set_socket_send_buffer_size(stream, 16 << 10).unwrap();
        stream.set_nonblocking(true).unwrap();
    };
    let mut both: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let guest = dial(&site.guest, to);
            let world = accept(&listener);
            small(&guest);
            small(&world);
            (guest, world, 0, 0)
        })
        .collect();
    let content = Content::new(9);
    let fill = |mut stream: &TcpStream, sent: &mut usize| {
        let before = *sent;
        while let Ok(n) = stream.write(content.bytes(*sent, 64 << 10)) {
            *sent += n;
        }
        *sent > before
    };
    // All that anybody takes, until nobody has taken any for a while.
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) {
        for (guest, world, there, back) in &mut both {
            if fill(guest, there) | fill(world, back) {
                quiet = Instant::now();
            }
        }
        let resident = site.resident();
        assert!(resident < MOST, "{} MiB in memory", resident / MIB);
    }
    // Others go on.
    let ends = site.connect(Way::In, Family::V6);
    pass(&ends.world, &ends.guest, MIB);
    thread::scope(|scope| {
        for (guest, world, there, back) in &both {
            guest.set_nonblocking(false).unwrap();
            world.set_nonblocking(false).unwrap();
            scope.spawn(move || {
                content.expect(world, *there);
                content.expect(guest, *back);
            });
        }
    });
    site.nothing_sent_again();
}
