//! The steps of Linux's driver (drivers/watchdog/i6300esb.c), and others.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const SOON: Duration = Duration::from_secs(60);

fn watchdog() -> (Watchdog, Receiver<()>, Power) {
    let (tell, told) = channel();
    let power = Power::default();
    let act = move || tell.send(()).unwrap();
    let watchdog = Watchdog::new(power.clone(), Fired::default(), 0xc000_0000, act);
    (watchdog.unwrap(), told, power)
}

/// Writes a register behind its two keys.
fn write(watchdog: &mut Watchdog, offset: u64, data: &[u8]) {
    watchdog.bar_write(0, 0xc, &[0x80, 0]);
    watchdog.bar_write(0, 0xc, &[0x86, 0]);
    watchdog.bar_write(0, offset, data);
}

/// Sets both stages, and starts.
fn start(watchdog: &mut Watchdog, preload: u32) {
    watchdog.config_write(0x60, &[3, 0]);
    watchdog.config_write(0x68, &[0]);
    for timer in [0, 4] {
        write(watchdog, timer, &preload.to_le_bytes());
    }
    write(watchdog, 0xc, &[0, 1]);
    watchdog.config_write(0x68, &[2]);
}

fn reload(watchdog: &mut Watchdog) -> u16 {
    let mut data = [0; 2];
    watchdog.bar_read(0, 0xc, &mut data);
    u16::from_le_bytes(data)
}

#[test]
fn a_guest_that_does_not_feed_it_is_told_of_once_and_the_next_can_tell() {
    let (mut watchdog, told, _) = watchdog();
    assert_eq!(reload(&mut watchdog), 0);
    start(&mut watchdog, 5);
    told.recv_timeout(SOON).unwrap();
    watchdog.reset();
    assert_eq!(reload(&mut watchdog), 0x1200);
    write(&mut watchdog, 0xc, &[0, 3]);
    assert_eq!(reload(&mut watchdog), 0);
    assert!(told.try_recv().is_err());
}

#[test]
fn it_runs_as_long_as_both_stages_say() {
    let mut registers = Registers::new(Fired::default());
    let key = |registers: &mut Registers| {
        assert_eq!(registers.write(0xc, 0x80), Wish::Nothing);
        assert_eq!(registers.write(0xc, 0x86), Wish::Nothing);
    };
    for timer in [0, 4] {
        key(&mut registers);
        // Linux's way to say 30 seconds.
        registers.write(timer, 30 << 9);
    }
    let Wish::Run(time) = registers.configure(3, 2) else {
        panic!("it does not run")
    };
    assert_eq!(time.limit.as_secs(), 30);
    assert!(time.acts && !time.again);
    // Without its keys a register stays as it is.
    assert_eq!(registers.write(0xc, 0x100), Wish::Nothing);
    key(&mut registers);
    assert_eq!(registers.write(0xc, 0x100), Wish::Run(time));
    // Its end does nothing, a thousand times sooner, again and again.
    let Wish::Run(time) = registers.configure(0x24, 2 | 4) else {
        panic!("it does not run")
    };
    assert_eq!(time.limit.as_millis(), 29);
    assert!(!time.acts && time.again);
}

#[test]
fn once_locked_it_runs_until_it_is_reset() {
    let (mut watchdog, ..) = watchdog();
    start(&mut watchdog, 0xf_ffff);
    watchdog.config_write(0x68, &[3]);
    watchdog.config_write(0x68, &[0]);
    let mut lock = [0];
    watchdog.config_read(0x68, &mut lock);
    assert_eq!(lock, [3]);
    watchdog.reset();
    watchdog.config_read(0x68, &mut lock);
    assert_eq!(lock, [0]);
}

#[test]
fn a_guest_that_is_paused_need_not_feed_it() {
    let (mut watchdog, told, power) = watchdog();
    power.start(0);
    let paused = std::thread::spawn({
        let power = power.clone();
        move || power.pause()
    });
    while !power.is_paused() {
        std::thread::yield_now();
    }
    start(&mut watchdog, 5);
    assert!(told.recv_timeout(Duration::from_millis(300)).is_err());
    power.resume();
    told.recv_timeout(SOON).unwrap();
    paused.join().unwrap();
}

#[test]
fn one_that_is_stopped_or_fed_says_nothing() {
    let (mut watchdog, told, _) = watchdog();
    start(&mut watchdog, 0xf_ffff);
    watchdog.config_write(0x68, &[0]);
    start(&mut watchdog, 0xf_ffff);
    write(&mut watchdog, 0xc, &[0, 1]);
    drop(watchdog);
    assert!(told.try_recv().is_err());
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics(
        accesses in prop::collection::vec(
            (any::<bool>(), 0u16..0x110, 0u64..0x20, prop::collection::vec(any::<u8>(), 1..9)),
            0..64,
        )
    ) {
        let power = Power::default();
        let mut watchdog = Watchdog::new(power, Fired::default(), 0, || {}).unwrap();
        for (config, at, offset, data) in accesses {
            let mut out = data.clone();
            if config {
                watchdog.config_write(at, &data);
                watchdog.config_read(at, &mut out);
            } else {
                watchdog.bar_write(0, offset, &data);
                watchdog.bar_read(0, offset, &mut out);
            }
        }
    }
}
