//! A driver that finds the port, and what goes through it.

use std::sync::Mutex;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::testing::{BUFFERS, Driver, WRITE};

const MESSAGES: u64 = BUFFERS;
const ANSWERS: u64 = BUFFERS + 0x1000;
const DATA: u64 = BUFFERS + 0x2000;

struct Guest {
    driver: Driver,
    host: UnixStream,
    open: Arc<AtomicBool>,
    said: u16,
}

impl Guest {
    fn new() -> Self {
        let (ours, host) = UnixStream::pair().unwrap();
        host.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let console = Console::new("org.example.port", ours).unwrap();
        let open = console.open();
        let mut driver = Driver::new(Arc::new(Mutex::new(console)));
        driver.start();
        for index in 0..4 {
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
        let message = Message {
            port: PORT,
            event,
            value,
        };
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
        self.driver.request(TRANSMIT, index, &[buffer]);
        self.driver.kick(TRANSMIT);
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
        guest.driver.request(RECEIVE, index, &[(at, 8, WRITE)]);
        guest.driver.kick(RECEIVE);
    }
    guest
        .driver
        .wait("nothing came", |driver| driver.used(RECEIVE) == 2);
    let mut parts = [[0; 8]; 2];
    for (index, part) in (0..).zip(&mut parts) {
        let at = GuestAddress(DATA + 0x100 + 0x10 * index);
        guest.driver.memory.read_slice(part, at).unwrap();
    }
    assert_eq!(&parts.concat()[..12], b"to the guest");
    assert_eq!(guest.driver.written(RECEIVE, 1), 4);
}

#[test]
fn what_comes_for_a_port_that_nobody_has_open_is_lost() {
    let mut guest = Guest::new();
    guest.host.write_all(b"too early").unwrap();
    let mut guest = guest.opened();
    guest.driver.request(RECEIVE, 0, &[(DATA, 32, WRITE)]);
    guest.driver.kick(RECEIVE);
    guest.host.write_all(b"in time").unwrap();
    guest
        .driver
        .wait("nothing came", |driver| driver.used(RECEIVE) == 1);
    assert_eq!(guest.driver.written(RECEIVE, 0), 7);
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
        .wait("not all", |driver| driver.used(TRANSMIT) == count);
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
