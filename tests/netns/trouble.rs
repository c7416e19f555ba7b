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

use crate::bound::Bound;
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

/// A connection of which nobody reads either end, and what each has sent.
struct Unread {
    guest: TcpStream,
    world: TcpStream,
    there: usize,
    back: usize,
}

/// What each of them sends.
const UNREAD: usize = 9;

impl Unread {
    fn new(guest: TcpStream, world: TcpStream) -> Self {
        for stream in [&guest, &world] {
            set_socket_send_buffer_size(stream, 16 << 10).unwrap();
            stream.set_nonblocking(true).unwrap();
        }
        Self {
            guest,
            world,
            there: 0,
            back: 0,
        }
    }

    /// Sends all that either end takes; whether that was anything.
    fn fill(&mut self) -> bool {
        let fill = |mut stream: &TcpStream, sent: &mut usize| {
            let before = *sent;
            while let Ok(n) = stream.write(Content::new(UNREAD).bytes(*sent, 64 << 10)) {
                *sent += n;
            }
            *sent > before
        };
        fill(&self.guest, &mut self.there) | fill(&self.world, &mut self.back)
    }

    /// Reads what was sent.
    fn read(&self) {
        for (stream, sent) in [(&self.world, self.there), (&self.guest, self.back)] {
            stream.set_nonblocking(false).unwrap();
            Content::new(UNREAD).expect(stream, sent);
        }
    }
}

/// Reads what was sent by all of them at once, for each may wait for a probe of its window.
fn read_all(all: &[Unread]) {
    thread::scope(|scope| {
        for unread in all {
            scope.spawn(|| unread.read());
        }
    });
}

/// Sends all that anybody takes, until nobody has taken any for a while.
fn fill(all: &mut [Unread], quiet: Duration, mut look: impl FnMut()) {
    let mut last = Instant::now();
    while last.elapsed() < quiet {
        for unread in &mut *all {
            if unread.fill() {
                last = Instant::now();
            }
        }
        look();
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
    let mut both: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let unread = Unread::new(dial(&site.guest, to), accept(&listener));
            for stream in [&unread.guest, &unread.world] {
                // Less than what was told at first: the kernel drops what it gets, and takes the window back.
                set_socket_recv_buffer_size(stream, 16 << 10).unwrap();
            }
            unread
        })
        .collect();
    fill(&mut both, Duration::from_millis(300), || {
        let resident = site.resident();
        assert!(resident < MOST, "{} MiB in memory", resident / MIB);
    });
    // Others go on.
    let ends = site.connect(Way::In, Family::V6);
    pass(&ends.world, &ends.guest, MIB);
    read_all(&both);
    site.nothing_sent_again();
}

pub fn a_pod_with_the_memory_that_its_limits_want_is_never_killed() {
    const FLOWS: usize = 100;
    const BUFFERS: usize = 8;
    /// Of a socket, each way.
    const SOCKET: usize = 128 << 10;
    /// As docs/network.md has it.
    const LIMIT: usize = 3 * BUFFERS * MIB + FLOWS * 2 * SOCKET;
    let bound = Bound::new(LIMIT);
    let site = Setup {
        arguments: &format!("--buffers {BUFFERS} --max-flows {FLOWS}"),
        group: Some(&bound),
        ..Setup::default()
    };
    let mut site = site.site();
    let sizes = format!("4096 65536 {SOCKET}");
    sh(
        &site.pod,
        &format!("for way in r w; do echo {sizes} >/proc/sys/net/ipv4/tcp_${{way}}mem; done"),
    );
    let idle = bound.used();
    let listener = listen(&site.world, 0);
    let to = world(Family::V4, port(&listener));
    for _ in 0..2 {
        let before = site.counter("refused_limit");
        let mut both = Vec::new();
        // Each is told of a window while there are few, and that stays told.
        let error = loop {
            match try_dial(&site.guest, to) {
                Ok(guest) => both.push(Unread::new(guest, accept(&listener))),
                Err(error) => break error,
            }
            let last = both.len() - 1;
            fill(&mut both[last..], Duration::from_millis(5), || {});
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(both.len(), FLOWS);
        fill(&mut both, Duration::from_millis(300), || {});
        // It takes what it is said to.
        let used = bound.used();
        assert!(used > LIMIT / 2, "{} MiB", used / MIB);
        // Those that nobody reads hold up nobody else.
        let one = both.pop().unwrap();
        one.read();
        pass(&one.guest, &one.world, MIB);
        pass(&one.world, &one.guest, MIB);
        read_all(&both);
        drop((both, one));
        assert_eq!(site.counter("refused_limit"), before + 1);
        // Others have their place, and their memory.
        until("its memory stays taken", || {
            (bound.used() < idle + 4 * MIB).then_some(())
        });
    }
    assert!(!site.network.ended());
    assert_eq!((bound.killed(), bound.reached()), (0, 0));
    site.nothing_sent_again();
}
