//! A driver that finds the port, and what goes through it.

use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::devices::terminal::Keyboard;
use crate::devices::virtio::testing::{BUFFERS, Driver, WRITE};

const CONSOLE: usize = 0;
const NAMED: usize = 1;

const MESSAGES: u64 = BUFFERS;
const ANSWERS: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x2000;

struct Guest {
    driver: Driver,
    host: UnixStream,
    open: Arc<AtomicBool>,
    said: u16,
}

/// What a screen was told goes one way, what is typed the other.
struct Ends(mpsc::Sender<u8>, mpsc::Receiver<u8>);

impl Write for Ends {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|byte| self.0.send(*byte).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Keyboard for Ends {
    fn take(&mut self, most: usize) -> Vec<u8> {
        self.1.try_iter().take(most).collect()
    }
}

impl Guest {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(terminal: Option<Terminal>) -> Self {
        let (ours, host) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let console = Console::new(terminal, Some(("org.example.port", ours))).unwrap();
        let open = console.open();
        let mut driver = Driver::new(Arc::new(Mutex::new(console)));
        driver.start();
        for index in 0..8 {
            let at = ANSWERS + 0x100 * u64::from(index);
            driver.request(TELL, index, &[(at, 0x100, WRITE)]);
        }
        Self {
            driver,
            host,
            open,
            said: 0,
        }
    }

    fn say(&mut self, event: u16, value: u16) {
        self.say_of(NAMED as u32, event, value);
    }

    fn say_of(&mut self, port: u32, event: u16, value: u16) {
        let message = Message { port, event, value };
        let at = MESSAGES + 8 * u64::from(self.said);
        let to = GuestAddress(at);
        self.driver
            .memory
            .write_slice(&message.bytes(), to)
            .unwrap();
        self.driver.request(HEAR, self.said, &[(at, 8, 0)]);
        self.driver.kick(HEAR);
        self.said += 1;
    }

    fn heard(&mut self, index: u16) -> (u16, String) {
        self.driver
            .wait("no message", |driver| driver.used(TELL) > index);
        let mut bytes = vec![0; self.driver.written(TELL, index) as usize];
        let at = GuestAddress(ANSWERS + 0x100 * u64::from(index));
        self.driver.memory.read_slice(&mut bytes, at).unwrap();
        let message = Message::from_bytes(bytes[..8].try_into().unwrap());
        let name = String::from_utf8(bytes[8..].to_vec()).unwrap();
        (message.event, name)
    }

    fn opened(mut self) -> Self {
        self.say(event::DEVICE_READY, 1);
        assert_eq!(self.heard(0), (event::DEVICE_ADD, String::new()));
        self.say(event::PORT_READY, 1);
        let name = (event::PORT_NAME, "org.example.port".to_owned());
        assert_eq!(self.heard(1), name);
        assert_eq!(self.heard(2), (event::PORT_OPEN, String::new()));
        self.say(event::PORT_OPEN, 1);
        let open = self.open.clone();
        self.driver
            .wait("not open", |_| open.load(Ordering::Acquire));
        self
    }

    fn write(&mut self, index: u16, text: &[u8]) {
        let to = GuestAddress(DATA);
        self.driver.memory.write_slice(text, to).unwrap();
        let buffer = (DATA, text.len() as u32, 0);
        self.driver.request(TRANSMIT[NAMED], index, &[buffer]);
        self.driver.kick(TRANSMIT[NAMED]);
    }
}

#[test]
fn a_driver_finds_the_port_by_name_and_bytes_go_both_ways() {
    let mut guest = Guest::new().opened();
    guest.write(0, b"from the guest");
    let mut bytes = [0; 14];
    guest.host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    // More than a buffer has room for, and before there is one.
    guest.host.write_all(b"to the guest").unwrap();
    for index in 0..2 {
        let at = DATA + 0x100 + 0x10 * u64::from(index);
        guest
            .driver
            .request(RECEIVE[NAMED], index, &[(at, 8, WRITE)]);
        guest.driver.kick(RECEIVE[NAMED]);
    }
    guest
        .driver
        .wait("nothing came", |driver| driver.used(RECEIVE[NAMED]) == 2);
    let mut parts = [[0; 8]; 2];
    for (index, part) in (0..).zip(&mut parts) {
        let at = GuestAddress(DATA + 0x100 + 0x10 * index);
        guest.driver.memory.read_slice(part, at).unwrap();
    }
    assert_eq!(&parts.concat()[..12], b"to the guest");
    assert_eq!(guest.driver.written(RECEIVE[NAMED], 1), 4);
}

#[test]
fn what_comes_for_a_port_that_nobody_has_open_is_lost() {
    let mut guest = Guest::new();
    guest.host.write_all(b"too early").unwrap();
    let mut guest = guest.opened();
    guest
        .driver
        .request(RECEIVE[NAMED], 0, &[(DATA, 32, WRITE)]);
    guest.driver.kick(RECEIVE[NAMED]);
    guest.host.write_all(b"in time").unwrap();
    guest
        .driver
        .wait("nothing came", |driver| driver.used(RECEIVE[NAMED]) == 1);
    assert_eq!(guest.driver.written(RECEIVE[NAMED], 0), 7);
    guest.say(event::PORT_OPEN, 0);
    let open = guest.open.clone();
    guest.driver.wait("open", |_| !open.load(Ordering::Acquire));
}

#[test]
fn a_host_that_does_not_read_holds_the_guest_back_and_loses_nothing() {
    let mut guest = Guest::new().opened();
    let piece = vec![7; 16 << 10];
    let count = 40;
    for index in 0..count {
        guest.write(index, &piece);
    }
    let (mut read, mut bytes) = (0, vec![0; 64 << 10]);
    while read < usize::from(count) * piece.len() {
        read += guest.host.read(&mut bytes).unwrap();
    }
    guest
        .driver
        .wait("not all", |driver| driver.used(TRANSMIT[NAMED]) == count);
}

#[test]
fn a_reset_closes_the_port_and_it_is_found_again() {
    let mut guest = Guest::new().opened();
    guest.driver.reset();
    assert!(!guest.open.load(Ordering::Acquire));
    guest.driver.start();
    guest.said = 0;
    for index in 0..4 {
        let at = ANSWERS + 0x100 * u64::from(index);
        guest.driver.request(TELL, index, &[(at, 0x100, WRITE)]);
    }
    guest.opened();
}

#[test]
fn a_console_shows_what_the_guest_writes_and_it_reads_what_is_typed() {
    let (shows, shown) = mpsc::channel();
    let (types, typed) = mpsc::channel();
    let (nobody, _) = mpsc::channel();
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut guest = Guest::with(Some(Terminal {
        screen: Box::new(Ends(shows, mpsc::channel().1)),
        keyboard: Box::new(Ends(nobody, typed)),
        typed: bell.try_clone().unwrap(),
    }));
    guest.say(event::DEVICE_READY, 1);
    let added = (event::DEVICE_ADD, String::new());
    assert_eq!((guest.heard(0), guest.heard(1)), (added.clone(), added));
    guest.say_of(CONSOLE as u32, event::PORT_READY, 1);
    assert_eq!(guest.heard(2).0, event::CONSOLE_PORT);
    assert_eq!(guest.heard(3).0, event::PORT_OPEN);
    // A port that there is none of, and one that could be none.
    guest.say_of(2, event::PORT_READY, 1);
    guest.say_of(u32::MAX, event::PORT_OPEN, 1);

    let to = GuestAddress(DATA);
    guest.driver.memory.write_slice(b"login: ", to).unwrap();
    guest.driver.request(TRANSMIT[CONSOLE], 0, &[(DATA, 7, 0)]);
    guest.driver.kick(TRANSMIT[CONSOLE]);
    let shown: Vec<u8> = shown.iter().take(7).collect();
    assert_eq!(shown, b"login: ");

    let at = DATA + 0x100;
    guest.driver.request(RECEIVE[CONSOLE], 0, &[(at, 8, WRITE)]);
    guest.driver.kick(RECEIVE[CONSOLE]);
    b"root\n".iter().for_each(|byte| types.send(*byte).unwrap());
    bell.write(1).unwrap();
    guest.driver.wait("nothing was typed", |driver| {
        driver.used(RECEIVE[CONSOLE]) == 1
    });
    let mut read = [0; 5];
    guest
        .driver
        .memory
        .read_slice(&mut read, GuestAddress(at))
        .unwrap();
    assert_eq!(
        (&read, guest.driver.written(RECEIVE[CONSOLE], 0)),
        (b"root\n", 5)
    );
}
