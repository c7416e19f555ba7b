//! `peapod-net --vhost-user` under Debian's stock QEMU.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Instant;

use peapod_tests::{Boot, Guest, Resent, peapod_net};

use super::{BOOT, Killed, SOON};
use crate::network::outside;

const MEMORY_MIB: u64 = 512;
/// The shared VM has the guest's own.
const PUBLISHED: u16 = 9199;

#[test]
fn qemu_s_guest_has_the_same_network() {
    let user_data = format!("#!/bin/bash\n{}", Guest::SERVE);
    // The manifest is for peapod, which is not started: its port only has to be free.
    let boot = Boot::new(&user_data, MEMORY_MIB, &[PUBLISHED]);
    let socket = boot.path("net.sock");
    let publish = format!("127.0.0.1:{PUBLISHED}:{}", Guest::PORT);
    let mut net = Command::new(peapod_net());
    net.arg("--vhost-user").arg(&socket);
    net.args(["--publish", &publish, "--addresses", "masquerade"]);
    let _net = Killed(net.stdin(Stdio::null()).spawn().unwrap());
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < SOON, "no socket");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut qemu = boot.qemu_by_vhost_user(&socket);
    let console = boot.path("console");
    qemu.stdin(Stdio::null())
        .stdout(File::create(&console).unwrap());
    let _qemu = Killed(qemu.spawn().unwrap());

    let guest = Guest::at(PUBLISHED);
    let addresses = guest.run(
        "ruby -rsocket -e 'puts Socket.ip_address_list.map(&:ip_address)'",
        BOOT,
    );
    assert!(addresses.contains("10.0.2.2\n"), "{addresses}");

    let listener = std::net::TcpListener::bind((outside(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream.try_clone().unwrap(), &mut stream).unwrap()
    });
    let output = guest.run(
        &format!(
            "ruby -rsocket -e 'data = Random.new(7).bytes(8 << 20); s = TCPSocket.new({:?}, {port}); \
             t = Thread.new {{ s.read }}; s.write(data); s.close_write; puts t.value == data'; \
             {}",
            outside(),
            Resent::TELL
        ),
        BOOT,
    );
    assert_eq!(server.join().unwrap(), 8 << 20);
    assert!(output.starts_with("true\n"), "{output}");
    let resent = Resent::read(&output).expect(&output);
    assert_eq!(resent.but_for_probes(), 0, "{output}");
}
