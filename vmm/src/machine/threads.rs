//! One thread a vCPU, and how they are all brought to an end.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::vcpu::{Buses, Vcpu};
use crate::power::{Duty, Outcome, Power};
use crate::sandbox::{self, Kind};

/// How long between two kicks of a thread that has not heard. One kick may come just before
/// KVM_RUN and be lost, so they are repeated.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// Only there to make KVM_RUN return.
extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Runs the vCPUs, a thread each, until the machine is off. When they are held, `attend` is called.
pub fn run(
    vcpus: Vec<Vcpu>,
    buses: &Arc<Buses>,
    power: &Power,
    attend: impl Fn(),
) -> io::Result<Outcome> {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // The signal is a valid one, so this cannot fail.
        let _ = register_signal_handler(SIGRTMIN(), kicked);
    });
    let mut threads = Vec::new();
    let mut result = Ok(());
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        let (buses, power) = (buses.clone(), power.clone());
        let name = format!("vcpu{id}");
        match sandbox::spawn_named(Kind::Vcpu, &name, move || vcpu.run(&buses, &power)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    if result.is_err() {
        power.end(Outcome::Stopped);
    }
    power.start(threads.len());
    let outcome = loop {
        match power.duty() {
            Duty::Kick => kick(&threads),
            Duty::Attend => attend(),
            Duty::End(outcome) => break outcome,
        }
    };
    while threads.iter().any(|thread| !thread.is_finished()) {
        kick(&threads);
    }
    for thread in threads {
        // A panic has been reported by the panic handler.
        let _ = thread.join();
    }
    result.map(|()| outcome)
}

/// Takes the vCPUs out of the guest, and gives them a moment to see why.
fn kick(threads: &[JoinHandle<()>]) {
    for thread in threads.iter().filter(|thread| !thread.is_finished()) {
        // SAFETY: the thread has not been joined, so its handle is valid; the signal has a handler.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    }
    std::thread::sleep(KICK_INTERVAL);
}
