//! Every device against a driver that lies. Whatever it writes, the process goes on, the mischief is
//! told of (the driver is asked for a reset, or it is counted), and once it is reset the device does
//! its work again.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netdev::config::{Config, GATEWAY_MAC, Network};
use netdev::control::Control;
use netdev::engine::Engine;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::balloon::Balloon;
use super::block::Block;
use super::block::disk::RawDisk;
use super::console::{Console, Terminal};
use super::net::Net;
use super::rng::Rng;
use super::testing::{ABOVE_HOLE, BUFFERS, Descriptor, Driver, HOLE, INDIRECT, NEXT, WRITE};
use super::transport::SharedVirtio;
use super::vsock::{Ports, Vsock};

const NEEDS_RESET: u8 = 64;
const PAGE: u64 = 0x1000;
/// Of a header that a device takes and a place for its answer.
const HEADER: u64 = BUFFERS;
const ANSWER: u64 = BUFFERS + 0x1_0000;

/// Pages that the guest has no use for.
const GIVEN: u64 = BUFFERS + 0x4_0000;

/// A device, and what an honest driver does with it.
struct Case {
    name: &'static str,
    device: SharedVirtio,
    /// The queues that the device looks into when the driver has done its work.
    queues: &'static [usize],
    /// Asks for a piece of work.
    work: fn(&mut Driver),
    /// The queue on which the work comes back, and what shows that it was done.
    done: (usize, fn(&Driver) -> bool),
    /// What the device counts by itself.
    control: Option<Control>,
}

impl Case {
    fn counted(&self, driver: &Driver) -> u64 {
        let network = self.control.as_ref().map(Control::counters);
        let frames = network.map_or(0, |counters| counters.dropped_malformed.get());
        driver.complaints.malformed.get() + frames
    }

    /// Shows that the device works, from its reset on.
    fn prove(&self, driver: &mut Driver) {
        driver.start();
        assert_eq!(driver.status(), 15, "{}", self.name);
        let (queue, done) = self.done;
        (self.work)(driver);
        driver.wait(self.name, |driver| driver.used(queue) > 0);
        assert!(done(driver), "{} does not do its work", self.name);
        assert_eq!(driver.status(), 15, "{}", self.name);
    }
}

fn case<D: super::VirtioDevice + 'static>(name: &'static str, device: D) -> Case {
    Case {
        name,
        device: Arc::new(Mutex::new(device)),
        queues: &[0],
        work: |_| {},
        done: (0, |_| true),
        control: None,
    }
}

/// Every device there is.
fn cases() -> Vec<Case> {
    vec![rng(), block(), vsock(), net(), balloon(), console()]
}

fn rng() -> Case {
    Case {
        work: |driver| {
            driver.request(0, 0, &[(ANSWER, 64, WRITE)]);
            driver.kick(0);
        },
        done: (0, |driver| driver.written(0, 0) == 64),
        ..case("rng", Rng::default())
    }
}

fn block() -> Case {
    let disk = RawDisk::from_bytes("disk", &[7; 4096]).unwrap();
    Case {
        queues: &[0, 1],
        work: |driver| {
            let header = [0; 16];
            let at = GuestAddress(HEADER);
            driver.memory.write_slice(&header, at).unwrap();
            driver.request(0, 0, &[(HEADER, 16, 0), (ANSWER, 512 + 1, WRITE)]);
            driver.kick(0);
        },
        done: (0, |driver| {
            let mut sector = [0; 512 + 1];
            let at = GuestAddress(ANSWER);
            driver.memory.read_slice(&mut sector, at).unwrap();
            sector[..512] == [7; 512] && sector[512] == 0
        }),
        ..case(
            "block",
            Block::new(Box::new(disk), "serial", None).with_queues(2),
        )
    }
}

fn balloon() -> Case {
    Case {
        queues: &[0, 1, 2, 3],
        work: |driver| {
            let page = GIVEN as u32 / PAGE as u32;
            let bytes = page.to_le_bytes();
            driver.memory.write_obj(7_u8, GuestAddress(GIVEN)).unwrap();
            driver
                .memory
                .write_slice(&bytes, GuestAddress(HEADER))
                .unwrap();
            driver.request(0, 0, &[(HEADER, 4, 0)]);
            driver.request(1, 0, &[(HEADER, 4, 0)]);
            driver.request(2, 0, &[(HEADER, 10, 0)]);
            driver.request(3, 0, &[(GIVEN + PAGE, PAGE as u32, WRITE)]);
            (0..4).for_each(|queue| driver.kick(queue));
        },
        done: (0, |driver| {
            let first: u8 = driver.memory.read_obj(GuestAddress(GIVEN)).unwrap();
            first == 0
        }),
        ..case("balloon", Balloon::new(256 << 20).unwrap())
    }
}

fn console() -> Case {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // It is there for as long as the tests run.
    std::mem::forget(theirs);
    let terminal = Terminal {
        screen: Box::new(io::sink()),
        keyboard: Box::new(io::empty()),
        typed: EventFd::new(EFD_NONBLOCK).unwrap(),
    };
    let console = Console::new(Some(terminal), Some(("name", ours))).unwrap();
    Case {
        // Not those by which it gives what the host has for the guest: nothing.
        queues: &[1, 2, 3, 5],
        work: |driver| {
            // "I am there", which is answered by a port.
            let message = [0, 0, 0, 0, 0, 0, 1, 0];
            let at = GuestAddress(HEADER);
            driver.memory.write_slice(&message, at).unwrap();
            driver.request(2, 0, &[(ANSWER, 64, WRITE)]);
            driver.request(3, 0, &[(HEADER, 8, 0)]);
            driver.kick(2);
            driver.kick(3);
        },
        done: (2, |driver| {
            let event: u16 = driver.memory.read_obj(GuestAddress(ANSWER + 4)).unwrap();
            event == 1
        }),
        ..case("console", console)
    }
}

struct Nobody;

impl Ports for Nobody {
    fn connect(&mut self, _: u32, _: u32) -> io::Result<UnixStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

fn vsock() -> Case {
    Case {
        queues: &[0, 1],
        work: |driver| {
            // A request for a port where nobody is, which is refused by a packet.
            let ids = [3u64, 2].map(u64::to_le_bytes).concat();
            let ports = [700u32, 9].map(u32::to_le_bytes).concat();
            let kind = [0, 0, 0, 0, 1, 0, 1, 0];
            let packet = [&ids[..], &ports, &kind, &[0; 12]].concat();
            let at = GuestAddress(HEADER);
            driver.memory.write_slice(&packet, at).unwrap();
            driver.request(0, 0, &[(ANSWER, 4096, WRITE)]);
            driver.request(1, 0, &[(HEADER, packet.len() as u32, 0)]);
            driver.kick(0);
            driver.kick(1);
        },
        done: (0, |driver| {
            let op: u16 = driver.memory.read_obj(GuestAddress(ANSWER + 30)).unwrap();
            op == 3
        }),
        ..case("vsock", Vsock::new(Box::new(Nobody), None).unwrap())
    }
}

fn net() -> Case {
    let engine = Engine::new(Config {
        v4: Some(Network::<Ipv4Addr>::MASQUERADE),
        v6: None,
        mtu: 1500,
        hostname: "vm".to_owned(),
        resolver: Default::default(),
        forwards: Vec::new(),
        eager: false,
        open_loopback: Vec::new(),
        max_flows: 10,
        memory: 128 << 20,
        policy: Default::default(),
    })
    .unwrap();
    let control = engine.control();
    Case {
        queues: &[0, 1, 2],
        work: |driver| {
            // Who has the gateway's address?
            let mac = [2; 6];
            let ethernet = [&[0xff; 6][..], &mac, &[8, 6]].concat();
            let arp = [0, 1, 8, 0, 6, 4, 0, 1];
            let addresses = [&mac[..], &[10, 0, 2, 2], &[0; 6], &[10, 0, 2, 1]].concat();
            let frame = [&[0; 12][..], &ethernet, &arp, &addresses].concat();
            let at = GuestAddress(HEADER);
            driver.memory.write_slice(&frame, at).unwrap();
            for i in 0..16 {
                let place = ANSWER + u64::from(i) * PAGE;
                driver.request(0, i, &[(place, PAGE as u32, WRITE)]);
            }
            driver.request(1, 0, &[(HEADER, frame.len() as u32, 0)]);
            // A command that the device does not know, and answers so.
            driver.request(2, 0, &[(HEADER, 2, 0), (ANSWER + 0x2_0000, 1, WRITE)]);
            (0..3).for_each(|queue| driver.kick(queue));
        },
        done: (0, |driver| {
            let mut sender = [0; 6];
            let at = GuestAddress(ANSWER + 12 + 6);
            driver.memory.read_slice(&mut sender, at).unwrap();
            sender == GATEWAY_MAC
        }),
        control: Some(control),
        ..case("net", Net::new(engine, [2; 6], 1500))
    }
}

/// Has each queue of each device attacked: `attack` spoils the queue, then the driver asks for work.
/// That must be told of, and the device must work when it was reset.
fn told_of(what: &str, attack: impl Fn(&mut Driver, usize)) {
    each_queue(what, |case, driver, queue| {
        let before = case.counted(driver);
        attack(driver, queue);
        driver.spoilt = Some(queue);
        (case.work)(driver);
        let name = format!("{what}: queue {queue} of {}", case.name);
        driver.wait(&name, |driver| {
            driver.status() & NEEDS_RESET != 0 || case.counted(driver) > before
        });
    });
}

/// Has each queue of each device attacked, which the device need not notice. It must work when it
/// was reset.
fn survived(what: &str, attack: impl Fn(&mut Driver, usize)) {
    each_queue(what, |case, driver, queue| {
        attack(driver, queue);
        driver.spoilt = Some(queue);
        (case.work)(driver);
    });
}

fn each_queue(what: &str, attack: impl Fn(&Case, &mut Driver, usize)) {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        for queue in case.queues {
            driver.start();
            assert_eq!(driver.status(), 15, "{what}: {}", case.name);
            attack(&case, &mut driver, *queue);
            case.prove(&mut driver);
        }
    }
}

/// Makes a chain available whose descriptors are these, from number 0 on.
fn chain(driver: &mut Driver, queue: usize, descriptors: &[Descriptor]) {
    driver.describe(Driver::places(queue)[0], 0, descriptors);
    driver.offer(queue, 0);
}

/// The same, each way: buffers to read and buffers to write.
fn told_of_chain(what: &str, descriptors: &[Descriptor]) {
    for direction in [0, WRITE] {
        let turned: Vec<_> = descriptors
            .iter()
            .map(|(at, len, flags, next)| match flags & INDIRECT {
                0 => (*at, *len, flags | direction, *next),
                _ => (*at, *len, *flags, *next),
            })
            .collect();
        let what = format!("{what}, direction {direction}");
        told_of(&what, |driver, queue| chain(driver, queue, &turned));
    }
}

#[test]
fn each_device_works() {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        for _ in 0..3 {
            case.prove(&mut driver);
        }
        assert_eq!(case.counted(&driver), 0, "{}", case.name);
    }
}

#[test]
fn rings_outside_memory_ask_for_a_reset() {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        for queue in 0..driver.sizes.len() {
            for ring in 0..3 {
                // Past the end, over the edge of a piece of memory, in its hole, at the top, and
                // where no ring may begin.
                let wrong = [1 << 40, HOLE - 16, HOLE, 2 * HOLE - 16, !0xfff, u64::MAX];
                for at in wrong {
                    let before = driver.complaints.broken.get();
                    driver.begin();
                    for other in 0..driver.sizes.len() {
                        driver.clear(other);
                        let mut places = Driver::places(other);
                        if other == queue {
                            places[ring] = at;
                        }
                        driver.place(other, places);
                    }
                    driver.add_status(4);
                    (case.work)(&mut driver);
                    let name = format!("{}: ring {ring} of queue {queue} at {at:#x}", case.name);
                    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "{name}");
                    assert_eq!(driver.complaints.broken.get(), before + 1, "{name}");
                }
            }
        }
        case.prove(&mut driver);
    }
}

#[test]
fn an_index_that_runs_wild_asks_for_a_reset() {
    for ahead in [1, 0x4000, 0x8000, u16::MAX] {
        told_of("a wild index", |driver, queue| {
            let index = driver.sizes[queue].saturating_add(ahead);
            driver.set_index(queue, index);
        });
    }
}

#[test]
fn a_head_that_is_no_descriptor_is_told_of() {
    for beyond in [0, 1, 0x7000] {
        told_of("no such head", |driver, queue| {
            driver.offer(queue, driver.sizes[queue] + beyond);
        });
    }
    told_of_chain("no such next", &[(HEADER, 64, NEXT, 0x7fff)]);
}

#[test]
fn chains_that_go_round_in_a_circle_are_told_of() {
    told_of_chain("a loop of one", &[(HEADER, 8, NEXT, 0)]);
    let two = [(HEADER, 8, NEXT, 1), (ANSWER, 8, NEXT, 0)];
    told_of_chain("a loop of two", &two);
    told_of("a loop in a table", |driver, queue| {
        driver.describe(BUFFERS + 0x2_0000, 0, &two);
        chain(driver, queue, &[(BUFFERS + 0x2_0000, 32, INDIRECT, 0)]);
    });
    told_of("a table in a table", |driver, queue| {
        let table = BUFFERS + 0x2_0000;
        driver.describe(table, 0, &[(table, 16, INDIRECT, 0)]);
        chain(driver, queue, &[(table, 16, INDIRECT, 0)]);
    });
    told_of("a table that is its own ring", |driver, queue| {
        let [ring, ..] = Driver::places(queue);
        chain(driver, queue, &[(ring, 16, INDIRECT, 0)]);
    });
}

#[test]
fn tables_of_a_wrong_length_or_place_are_told_of() {
    let table = BUFFERS + 0x2_0000;
    for (at, len) in [
        (table, 0),
        (table, 17),
        (table, u32::MAX),
        (table, 0xffff_fff0),
        (1 << 40, 32),
        (u64::MAX, 32),
        (HOLE - 8, 16),
    ] {
        let what = format!("a table of {len} bytes at {at:#x}");
        told_of(&what, |driver, queue| {
            chain(driver, queue, &[(at, len, INDIRECT, 0)]);
        });
    }
}

#[test]
fn buffers_outside_memory_are_told_of_or_swallow_what_goes_there() {
    for (at, len) in [
        (1 << 40, 4096),
        (HOLE - 1, 4096),
        (HOLE, 4096),
        (ABOVE_HOLE - 1, 4096),
        (u64::MAX, 1),
        (u64::MAX - 8, u32::MAX),
        (0, u32::MAX),
    ] {
        let buffer = [(at, len, 0, 0)];
        for direction in [0, WRITE] {
            let buffer = buffer.map(|(at, len, ..)| (at, len, direction, 0));
            survived("a buffer outside memory", |driver, queue| {
                chain(driver, queue, &buffer);
            });
        }
    }
}

#[test]
fn chains_without_a_byte_are_survived() {
    for direction in [0, WRITE] {
        survived("one of nothing", |driver, queue| {
            chain(driver, queue, &[(HEADER, 0, direction, 0)]);
        });
        survived("a ring of nothing", |driver, queue| {
            let size = driver.sizes[queue];
            let all: Vec<_> = (0..size).map(|_| (HEADER, 0, direction, 0)).collect();
            driver.describe(Driver::places(queue)[0], 0, &all);
            (0..size).for_each(|head| driver.offer(queue, head));
        });
    }
}

#[test]
fn the_longest_chains_are_survived() {
    let table = ABOVE_HOLE;
    for direction in [0, WRITE] {
        survived("a ring that is one chain", |driver, queue| {
            let size = driver.sizes[queue];
            let all: Vec<_> = (1..=size)
                .map(|next| {
                    let link = if next < size { NEXT } else { 0 };
                    (ABOVE_HOLE, HOLE as u32, direction | link, next)
                })
                .collect();
            chain(driver, queue, &all);
        });
        told_of("a table as long as can be", |driver, queue| {
            let all: Vec<_> = (1..u16::MAX)
                .map(|next| (HEADER, 1, direction | NEXT, next))
                .chain([(HEADER, 1, direction, 0)])
                .collect();
            driver.describe(table, 0, &all);
            let len = all.len() as u32 * 16;
            chain(driver, queue, &[(table, len, INDIRECT, 0)]);
        });
    }
}

#[test]
fn buffers_over_the_rings_themselves_are_survived() {
    for ring in 0..3 {
        for direction in [0, WRITE] {
            survived("a buffer over a ring", |driver, queue| {
                let at = Driver::places(queue)[ring];
                let size = driver.sizes[queue];
                let own = (at, PAGE as u32, direction, 0);
                let all = vec![own; usize::from(size)];
                driver.describe(Driver::places(queue)[0], 0, &all);
                (0..size).for_each(|head| driver.offer(queue, head));
            });
        }
    }
}

#[test]
fn rings_over_one_another_are_survived() {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        driver.begin();
        for queue in 0..driver.sizes.len() {
            driver.place(queue, [0x1000; 3]);
        }
        driver.add_status(4);
        for index in [1, 2, 64, 0x8000] {
            driver.set_index(0, index);
            (case.work)(&mut driver);
        }
        case.prove(&mut driver);
    }
}

#[test]
fn a_reset_midway_stops_the_device_and_it_starts_anew() {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        for _ in 0..20 {
            driver.start();
            (case.work)(&mut driver);
            driver.reset();
            let used: Vec<_> = (0..driver.sizes.len()).map(|q| driver.used(q)).collect();
            // What was stopped writes no more.
            driver.kick(0);
            let now: Vec<_> = (0..driver.sizes.len()).map(|q| driver.used(q)).collect();
            assert_eq!(used, now, "{}", case.name);
        }
        case.prove(&mut driver);
    }
}

#[test]
fn features_that_were_not_offered_start_no_device() {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        let offered = driver.offered();
        for features in [u64::MAX, !offered, offered | 1 << 63, offered | 1 << 40] {
            driver.reset();
            driver.add_status(3);
            assert_eq!(driver.accept(features) & 8, 0, "{}", case.name);
            for queue in 0..driver.sizes.len() {
                driver.place(queue, Driver::places(queue));
            }
            driver.add_status(4);
            assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "{}", case.name);
        }
        case.prove(&mut driver);
    }
}

#[test]
fn steps_out_of_order_are_survived() {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        // Kicks before there is a ring, a start without queues, a start twice, with one queue only.
        (case.work)(&mut driver);
        driver.begin();
        driver.add_status(4);
        (case.work)(&mut driver);
        driver.write(20, 15, 1);
        driver.write(20, 4, 1);
        for only in 0..driver.sizes.len() {
            driver.begin();
            driver.place(only, Driver::places(only));
            driver.add_status(4);
            (case.work)(&mut driver);
            // A queue is not moved while it is in use.
            driver.place(only, [1 << 40; 3]);
        }
        driver.write(22, u64::from(u16::MAX), 2);
        driver.write(28, 1, 2);
        case.prove(&mut driver);
    }
}

#[test]
fn a_ring_without_end_does_not_keep_a_device_from_its_reset() {
    for case in cases() {
        let mut driver = Driver::new(case.device.clone());
        for queue in case.queues.iter().copied() {
            driver.start();
            let (size, memory) = (driver.sizes[queue], driver.memory.clone());
            let [_, available, used] = Driver::places(queue);
            chain(&mut driver, queue, &[(HEADER, 64, WRITE, 0)]);
            driver.spoilt = Some(queue);
            let over = Arc::new(AtomicBool::new(false));
            let stop = over.clone();
            // Another of the guest's CPUs fills the ring as fast as it is emptied.
            let filler = std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let done: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
                    let index = done.wrapping_add(size);
                    memory
                        .write_obj(index, GuestAddress(available + 2))
                        .unwrap();
                }
            });
            (case.work)(&mut driver);
            let (tell, told) = channel();
            let stopper = std::thread::spawn(move || {
                driver.reset();
                let _ = tell.send(driver);
            });
            let reset = told.recv_timeout(Duration::from_secs(60));
            over.store(true, Ordering::Relaxed);
            filler.join().unwrap();
            driver = reset.unwrap_or_else(|_| panic!("queue {queue} of {}", case.name));
            stopper.join().unwrap();
        }
        case.prove(&mut driver);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_rings_panic(
        device in 0usize..5,
        descriptors in prop::collection::vec(
            (0u64..0x32_0000, prop_oneof![0u32..0x40, any::<u32>()], 0u16..8, 0u16..20),
            1..16,
        ),
        heads in prop::collection::vec(0u16..20, 1..16),
    ) {
        let case = &cases()[device];
        let mut driver = Driver::new(case.device.clone());
        driver.start();
        for queue in case.queues {
            let [table, ..] = Driver::places(*queue);
            driver.describe(table, 0, &descriptors);
            heads.iter().for_each(|head| driver.offer(*queue, *head));
        }
        case.queues.iter().for_each(|queue| driver.kick(*queue));
        case.prove(&mut driver);
    }
}
