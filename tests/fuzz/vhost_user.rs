//! What another VMM says at a vhost-user socket, without descriptors, so that no ring ever runs.
#![no_main]

mod network;

use std::cell::Cell;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use libfuzzer_sys::fuzz_target;
use netdev::engine::Engine;
use netdev::vhost_user::serve;

thread_local! {
    /// The one that the VMM before has left.
    static ENGINE: Cell<Option<Engine>> = const { Cell::new(None) };
}

fuzz_target!(|bytes: &[u8]| {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // All of it has room in the socket.
    (&theirs).write_all(bytes).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let engine = ENGINE.take();
    let engine = engine.unwrap_or_else(|| Engine::new(network::config()).unwrap());
    let (left, _) = thread::scope(|scope| {
        // It reads the answers, however many they are.
        scope.spawn(|| io::copy(&mut &theirs, &mut io::sink()));
        serve(ours, engine)
    });
    assert!(left.is_some());
    ENGINE.set(left);
});
