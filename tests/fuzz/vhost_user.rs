//! What another VMM says at a vhost-user socket, without descriptors, so that no ring ever runs.
#![no_main]

use std::cell::Cell;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::thread;

use libfuzzer_sys::fuzz_target;
use netdev::config::{Config, Network, Policy};
use netdev::engine::Engine;
use netdev::resolver::Resolver;
use netdev::vhost_user::serve;

fn engine() -> Engine {
    let config = Config {
        v4: Some(Network::<Ipv4Addr>::MASQUERADE),
        v6: Some(Network::<Ipv6Addr>::MASQUERADE),
        mtu: 1500,
        hostname: String::new(),
        resolver: Resolver::default(),
        forwards: Vec::new(),
        eager: false,
        open_loopback: Vec::new(),
        max_flows: 16,
        memory: 1 << 20,
        policy: Policy::default(),
    };
    Engine::new(config).unwrap()
}

thread_local! {
    /// The one that the VMM before has left.
    static ENGINE: Cell<Option<Engine>> = const { Cell::new(None) };
}

fuzz_target!(|bytes: &[u8]| {
    let (ours, theirs) = UnixStream::pair().unwrap();
    // All of it has room in the socket.
    (&theirs).write_all(bytes).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    let engine = ENGINE.take().unwrap_or_else(engine);
    let (left, _) = thread::scope(|scope| {
        // It reads the answers, however many they are.
        scope.spawn(|| io::copy(&mut &theirs, &mut io::sink()));
        serve(ours, engine)
    });
    assert!(left.is_some());
    ENGINE.set(left);
});
