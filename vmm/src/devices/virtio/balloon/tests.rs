//! Pages given and taken by a driver of the tests' own.

use std::sync::Mutex;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::testing::{ABOVE_HOLE, BUFFERS, Driver, HOLE, WRITE};

const MEMORY: u64 = 256 << 20;
const PAGE: u64 = pages::PAGE as u64;
/// Pages of the test's that go.
const PAGES: u64 = ABOVE_HOLE;
const CONFIG: u64 = 0x2000;

fn driver() -> (Driver, Control) {
    let balloon = Balloon::new(MEMORY).unwrap();
    let control = balloon.control();
    let mut driver = Driver::new(Arc::new(Mutex::new(balloon)));
    driver.start();
    (driver, control)
}

fn fill(driver: &Driver, at: u64, len: u64) {
    let bytes = vec![0xaa; len as usize];
    driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}

fn byte(driver: &Driver, at: u64) -> u8 {
    driver.memory.read_obj(GuestAddress(at)).unwrap()
}

fn inflate(driver: &mut Driver, numbers: &[u64]) {
    let used = driver.used(0);
    let bytes: Vec<u8> = numbers
        .iter()
        .flat_map(|n| (*n as u32).to_le_bytes())
        .collect();
    driver
        .memory
        .write_slice(&bytes, GuestAddress(BUFFERS))
        .unwrap();
    driver.request(0, 0, &[(BUFFERS, bytes.len() as u32, 0)]);
    driver.kick(0);
    driver.wait("inflated", |driver| driver.used(0) != used);
}

#[test]
fn pages_in_the_balloon_go_and_their_neighbours_stay() {
    let (mut driver, _) = driver();
    fill(&driver, PAGES, 8 * PAGE);
    let first = PAGES / PAGE;
    // Up, down, and one by itself.
    inflate(
        &mut driver,
        &[first + 1, first + 2, first + 5, first + 4, first + 7],
    );
    let left: Vec<_> = (0..8)
        .map(|i| byte(&driver, PAGES + i * PAGE) != 0)
        .collect();
    assert_eq!(left, [true, false, false, true, false, false, true, false]);
    assert_eq!(byte(&driver, PAGES + PAGE - 1), 0xaa);
}

#[test]
fn pages_that_are_not_the_guest_s_are_counted_and_none_goes() {
    let (mut driver, _) = driver();
    for wrong in [HOLE / PAGE, ABOVE_HOLE / PAGE - 1, u64::from(u32::MAX)] {
        let before = driver.complaints.malformed.get();
        inflate(&mut driver, &[wrong]);
        assert_eq!(driver.complaints.malformed.get(), before + 1);
    }
    assert_eq!(driver.status(), 15);
}

#[test]
fn free_pages_go_when_they_are_reported_unless_their_content_is_kept() {
    for (poison, byte_left) in [(0, 0), (0xaaaa_aaaa_u32, 0xaa)] {
        let (mut driver, _) = driver();
        driver.write(CONFIG + POISON, u64::from(poison), 4);
        fill(&driver, PAGES, 4 * PAGE);
        driver.request(3, 0, &[(PAGES + PAGE, 2 * PAGE as u32, WRITE)]);
        driver.kick(3);
        driver.wait("reported", |driver| driver.used(3) == 1);
        assert_eq!(byte(&driver, PAGES + 2 * PAGE), byte_left);
        assert_eq!(byte(&driver, PAGES + 3 * PAGE), 0xaa);
    }
}

#[test]
fn a_target_is_told_to_the_guest_and_what_it_gave_is_shown() {
    let (mut driver, control) = driver();
    assert!(control.set_target(MEMORY + 1).is_err());
    assert!(control.set_target(1 << 20).is_err());
    control.set_target(192 << 20).unwrap();
    assert_eq!(driver.read(CONFIG), (64 << 20) / PAGE as u32);
    driver.write(CONFIG + ACTUAL, (32 << 20) / PAGE, 4);
    let figures = control.figures(true);
    assert_eq!((figures.target, figures.actual), (192 << 20, 224 << 20));
    // A guest that lies, and one that is gone.
    driver.write(CONFIG + ACTUAL, u64::from(u32::MAX), 4);
    assert_eq!(control.figures(true).actual, 0);
    driver.reset();
    let figures = control.figures(true);
    assert_eq!((figures.target, figures.actual), (192 << 20, MEMORY));
}

#[test]
fn the_guest_is_asked_how_it_fares_and_what_it_says_is_shown() {
    let (mut driver, control) = driver();
    assert_eq!(control.figures(true).guest, None);
    let tell = |driver: &mut Driver, free: u64| {
        let figures = [(4u16, free), (5, 200), (99, 1)];
        let bytes: Vec<u8> = figures
            .iter()
            .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
            .collect();
        driver
            .memory
            .write_slice(&bytes, GuestAddress(BUFFERS))
            .unwrap();
        driver.request(2, 0, &[(BUFFERS, bytes.len() as u32, 0)]);
        driver.kick(2);
    };
    tell(&mut driver, 7);
    driver.wait("told", |_| control.figures(false).guest.is_some());
    assert_eq!(driver.used(2), 0);
    let asker = {
        let control = control.clone();
        std::thread::spawn(move || control.figures(true))
    };
    driver.wait("asked", |driver| driver.used(2) == 1);
    tell(&mut driver, 9);
    asker.join().unwrap();
    driver.wait("told again", |_| {
        control.figures(false).guest.unwrap().free == Some(9)
    });
    let guest = control.figures(false).guest.unwrap();
    assert_eq!((guest.total, guest.caches), (Some(200), None));
}
