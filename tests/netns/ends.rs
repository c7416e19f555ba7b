//! Connections of which the guest's end is a program there, so that the guest may be a VM too: the cases of
//! `streams` and `refused`, with less of everything where it is one.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use peapod_tests::sides::{Family, Way};
use rustix::net::sockopt::{set_socket_linger, set_socket_recv_buffer_size};

use crate::content::{Content, MIB, expect_end};
use crate::programs::Stage;
use crate::site::{NOWHERE, Setup, Site, WORLD, world};
use crate::sockets::{accept, call, listen, port};
use crate::streams::fill;

/// A site whose guest can do what guest.rb says.
struct Talker {
    stage: Stage,
    /// Connections that were to come in.
    came: AtomicU16,
}

/// Each that comes in has a port of its own, for one stays open for a moment when nobody listens any more.
const PORTS: &str = "-p 8080-8083:80-83";

impl Talker {
    fn new(arguments: &str) -> Self {
        Self::of(Setup {
            arguments,
            ..Setup::default()
        })
    }

    fn of(setup: Setup<'_>) -> Self {
        let stage = Stage::of(setup);
        let write = |name, bytes| std::fs::write(stage.path().join(name), bytes).unwrap();
        write("guest.rb", include_bytes!("guest.rb").as_slice());
        write("content", Content::all());
        Self {
            stage,
            came: AtomicU16::new(0),
        }
    }

    fn site(&self) -> &Site {
        &self.stage.site
    }

    /// So much in a namespace, or so much less in a VM.
    fn len(&self, namespace: usize, vm: usize) -> usize {
        if self.site().is_vm() { vm } else { namespace }
    }

    /// What a script of Ruby's prints in the guest.
    #[track_caller]
    fn guest(&self, script: &str) -> String {
        let library = self.stage.path().join("guest.rb");
        self.stage.guest(&format!(
            "ruby -r {} - <<'end-of-ruby'\n{script}\nend-of-ruby",
            library.display()
        ))
    }

    /// A connection, of which the guest does with its end, which is `s`, what the script says, and the world
    /// with its own what `work` does.
    #[track_caller]
    fn connect(&self, way: Way, family: Family, script: &str, work: impl FnOnce(TcpStream)) {
        thread::scope(|scope| match way {
            Way::Out => {
                let listener = listen(&self.site().world, 0);
                let dial = dial(world(family, port(&listener)));
                let guest = scope.spawn(move || self.guest(&format!("s = {dial}\n{script}")));
                work(accept(&listener));
                guest.join().unwrap();
            }
            Way::In => {
                let number = self.came.fetch_add(1, Ordering::Relaxed);
                let accept = format!("TCPServer.new('::', {}).accept", 80 + number);
                let guest = scope.spawn(move || self.guest(&format!("s = {accept}\n{script}")));
                let to = self.site().pod(family, 8080 + number);
                work(call(&self.site().world, to));
                guest.join().unwrap();
            }
        });
    }

    /// One each way by each family.
    #[track_caller]
    fn each(&self, script: &str, work: impl Fn(TcpStream)) {
        for (way, family) in [(Way::Out, Family::V4), (Way::In, Family::V6)] {
            self.connect(way, family, script, &work);
        }
    }
}

/// As the guest dials.
fn dial(to: SocketAddr) -> String {
    format!("TCPSocket.new('{}', {})", to.ip(), to.port())
}

/// Prints why the guest can't have a connection, which it has to know in so many seconds.
fn refusal(to: SocketAddr, limit: f32) -> String {
    format!("puts refusal('{}', {}, {limit})", to.ip(), to.port())
}

pub fn much_arrives_whole_each_way_by_each_family() {
    let talker = Talker::new("");
    let len = talker.len(1 << 30, 48 * MIB);
    for family in Family::BOTH {
        let script = format!("give(s, 1, {len}); take(s, 2, {len})");
        talker.connect(Way::Out, family, &script, |world| {
            Content::new(1).expect(&world, len);
            Content::new(2).send(&world, len);
        });
    }
    talker.site().nothing_sent_again();
}

pub fn both_ways_at_once_arrive_whole() {
    let talker = Talker::new(PORTS);
    let len = talker.len(128 * MIB, 24 * MIB);
    let script = format!("t = Thread.new {{ give(s, 1, {len}) }}; take(s, 2, {len}); t.join");
    talker.each(&script, |world| {
        thread::scope(|scope| {
            scope.spawn(|| Content::new(1).expect(&world, len));
            Content::new(2).send(&world, len);
        });
    });
    talker.site().nothing_sent_again();
}

pub fn a_thousand_connections_at_once_keep_their_bytes_apart() {
    const CONNECTIONS: usize = 1000;
    let talker = Talker::new("");
    let len = talker.len(64 << 10, 8 << 10);
    let listener = listen(&talker.site().world, 0);
    let dial = dial(world(Family::V4, port(&listener)));
    thread::scope(|scope| {
        // Each is answered with what it sent.
        scope.spawn(|| {
            for _ in 0..CONNECTIONS {
                let mut stream = accept(&listener);
                scope.spawn(move || io::copy(&mut stream.try_clone().unwrap(), &mut stream));
            }
        });
        talker.guest(&format!(
            "all = Array.new({CONNECTIONS}) {{ {dial} }}
             # A part of each in turn, so that all are under way at once.
             0.step({len} - 1, {len} / 8) do |at|
               all.each_with_index {{ |s, n| s.write(bytes(n, at, {len} / 8)) }}
             end
             all.each_with_index {{ |s, n| s.close_write; take(s, n, {len}); end_of(s) }}"
        ));
    });
    // With so many a guest in the lab has waited for longer than its 2 s, and asked again.
    if !talker.site().is_vm() {
        talker.site().nothing_sent_again();
    }
}

pub fn each_side_may_end_and_go_on_listening() {
    let talker = Talker::new(PORTS);
    let len = talker.len(8 * MIB, 2 * MIB);
    let script = format!("give(s, 1, 1000); s.close_write; take(s, 2, {len}); end_of(s)");
    talker.each(&script, |world| {
        Content::new(1).expect(&world, 1000);
        expect_end(&world);
        Content::new(2).send(&world, len);
    });
    let script = format!("take(s, 2, 1000); end_of(s); give(s, 1, {len})");
    talker.each(&script, |world| {
        Content::new(2).send(&world, 1000);
        world.shutdown(Shutdown::Write).unwrap();
        Content::new(1).expect(&world, len);
        expect_end(&world);
    });
    talker.site().nothing_sent_again();
}

pub fn a_reset_reaches_the_other_side() {
    let talker = Talker::new(PORTS);
    talker.each("take(s, 2, 1000); reset(s)", |mut world| {
        Content::new(2).send(&world, 1000);
        let error = world.read(&mut [0]).expect_err("not a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
    talker.each("give(s, 1, 1000); reset_of(s)", |world| {
        Content::new(1).expect(&world, 1000);
        set_socket_linger(&world, Some(Duration::ZERO)).unwrap();
    });
}

pub fn a_dead_port_refuses_the_guest_at_once() {
    let talker = Talker::new("");
    for family in Family::BOTH {
        // Less than a SYN waits until it is sent again.
        let said = talker.guest(&refusal(world(family, 9), 0.9));
        assert_eq!(said, format!("{}\n", libc::ECONNREFUSED), "{family}");
    }
}

pub fn a_pod_with_ipv6_only_carries_that_and_refuses_the_other_at_once() {
    let talker = Talker::of(Setup {
        // The guest is told what to do by its own IPv4.
        arguments: &format!("--address 10.0.2.2 --address6 fd10:0:2::2 {PORTS}"),
        only: Some(Family::V6),
        ..Setup::default()
    });
    let len = talker.len(16 * MIB, MIB);
    let script = format!("give(s, 1, {len}); take(s, 2, {len})");
    for way in Way::BOTH {
        talker.connect(way, Family::V6, &script, |world| {
            Content::new(1).expect(&world, len);
            Content::new(2).send(&world, len);
        });
    }
    for address in [WORLD[0], NOWHERE[0]] {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        // A kernel that is told while it sends the first SYN sends another before it listens.
        let said = talker.guest(&refusal(to, 2.7));
        assert_eq!(said, format!("{}\n", libc::ENETUNREACH), "{to}");
    }
}

pub fn a_narrow_path_carries_connections() {
    let talker = Talker::new("");
    let (far, addresses) = talker.site().far();
    let len = talker.len(16 * MIB, 4 * MIB);
    for family in Family::BOTH {
        let listener = listen(&far, 0);
        let dial = dial(SocketAddr::new(family.of(addresses), port(&listener)));
        let script = format!("s = {dial}; give(s, 1, {len}); take(s, 2, {len})");
        thread::scope(|scope| {
            let guest = scope.spawn(|| talker.guest(&script));
            let world = accept(&listener);
            Content::new(1).expect(&world, len);
            Content::new(2).send(&world, len);
            guest.join().unwrap();
        });
    }
    talker.site().nothing_sent_again();
}

pub fn a_slow_reader_makes_nobody_send_again() {
    let talker = Talker::new(PORTS);
    let len = talker.len(4 * MIB, MIB);
    talker.each(&format!("give(s, 1, {len})"), |world| {
        set_socket_recv_buffer_size(&world, 32 << 10).unwrap();
        let pause = || thread::sleep(Duration::from_millis(1));
        Content::new(1).expect_slowly(&world, len, 16 << 10, pause);
    });
    let script = format!(
        "s.setsockopt(:SOCKET, :RCVBUF, 32 << 10); take(s, 2, {len}, 16 << 10, 0.001); end_of(s)"
    );
    talker.each(&script, |world| Content::new(2).send(&world, len));
    talker.site().nothing_sent_again();
}

pub fn a_reader_that_stops_stops_no_other_flow() {
    let talker = Talker::new(PORTS);
    let len = talker.len(16 * MIB, 2 * MIB);
    let listener = listen(&talker.site().world, 0);
    let other = dial(world(Family::V4, port(&listener)));
    // The world reads nothing of the first until the other has come and gone.
    let script = format!(
        "filled = fill(s, 1)
         other = {other}
         give(other, 2, {len}); take(other, 3, {len}); end_of(other)
         other.write([filled].pack('Q<')); other.close"
    );
    talker.each(&script, |first| {
        let mut other = accept(&listener);
        Content::new(2).expect(&other, len);
        Content::new(3).send(&other, len);
        other.shutdown(Shutdown::Write).unwrap();
        let mut filled = [0; 8];
        other.read_exact(&mut filled).unwrap();
        let filled = usize::from_le_bytes(filled);
        assert!(filled > 0);
        Content::new(1).expect(&first, filled);
        expect_end(&first);
    });
    // And one in the guest that doesn't.
    let script = format!(
        "other = {other}
         give(other, 1, {len}); take(other, 3, {len})
         filled = other.read(8).unpack1('Q<')
         take(s, 2, filled)"
    );
    talker.each(&script, |first| {
        let mut other = accept(&listener);
        let filled = fill(&first);
        Content::new(1).expect(&other, len);
        Content::new(3).send(&other, len);
        other.write_all(&filled.to_le_bytes()).unwrap();
    });
    talker.site().nothing_sent_again();
}
