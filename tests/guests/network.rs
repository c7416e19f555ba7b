//! The guest's network: addresses, names, connections out, and what it may not reach.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use peapod_tests::space::Space;
use peapod_tests::{Guest, Manifest, Vm, peapod, until};

use super::watchdog::run_on_13;
use super::{BOOT, SOON, shared};

/// An address of this machine that is not loopback, on an interface made for the tests.
pub fn outside() -> &'static str {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let script = "ip link show peapod-test >/dev/null 2>&1 || \
            ip link add peapod-test type dummy && \
            ip addr replace 198.51.100.1/24 dev peapod-test && ip link set peapod-test up";
        assert!(
            Command::new("sh")
                .args(["-c", script])
                .status()
                .unwrap()
                .success()
        );
    });
    "198.51.100.1"
}

#[test]
fn the_guest_has_kubevirt_s_masquerade_address_and_gateway() {
    let output = shared::run(
        "ruby -rsocket -e 'puts Socket.ip_address_list.map(&:ip_address)'; cat /proc/net/route",
    );
    assert!(output.contains("10.0.2.2\n"), "{output}");
    // 10.0.2.1 as the kernel prints it
    assert!(output.contains("0102000A"), "{output}");
}

#[test]
fn slirp_s_addresses_are_qemu_s() {
    let directory = tempfile::tempdir().unwrap();
    let script = "ruby -rsocket -e 'puts Socket.ip_address_list.map(&:ip_address)'; \
        cat /etc/resolv.conf; echo done-here; busybox poweroff -f || poweroff -f\n";
    let manifest = Manifest::new("slirp", script)
        .binding("slirp")
        .write(directory.path());
    let vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console("done-here", 1, BOOT);
    let console = vm.console();
    assert!(console.contains("10.0.2.15"), "{console}");
    assert!(console.contains("nameserver 10.0.2.3"), "{console}");
}

#[test]
fn bound_by_passt_the_guest_has_the_pod_s_own_address() {
    let (pod, other) = (Space::new("passt").unwrap(), Space::new("passt").unwrap());
    let link = format!(
        "ip link add eth0 type veth peer name eth0 netns {}",
        other.name
    );
    let up = "ip link set eth0 up; ip address add";
    pod.shell(&format!("{link}; {up} 10.77.0.7/24 dev eth0"))
        .unwrap();
    other
        .shell(&format!(
            "{up} 10.77.0.9/24 dev eth0; ip address add 10.77.0.1/24 dev eth0"
        ))
        .unwrap();
    pod.shell("ip route add default via 10.77.0.1").unwrap();
    let server = other.inside(|| TcpListener::bind("10.77.0.1:7000").unwrap());
    let server = server.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let script = "ruby -rsocket -e 's = TCPServer.new(9080); $stdout.sync = true
        puts \"has #{Socket.ip_address_list.map(&:ip_address)}\"
        puts \"hears #{TCPSocket.new(\"10.77.0.1\", 7000).read}\"
        puts \"called by #{s.accept.peeraddr(false)[3]}\"' >/dev/console
        poweroff -f || busybox poweroff -f\n";
    let manifest = Manifest::new("passt", script).binding("passtBinding");
    let manifest = manifest.write(directory.path());
    let mut command = pod.command(peapod().to_str().unwrap()).unwrap();
    command.args(["run", "-p0.0.0.0:9080:9080"]).arg(manifest);
    let vm = Vm::start(&mut command);
    let (mut stream, from) = server.accept().unwrap();
    assert_eq!(from.ip().to_string(), "10.77.0.7");
    stream.write_all(b"hello").unwrap();
    drop(stream);
    vm.wait_console("hears hello", 1, BOOT);
    until("the guest is not called", || {
        other.shell("bash -c ': </dev/tcp/10.77.0.7/9080'").ok()
    });
    vm.wait_console("called by 10.77.0.9", 1, BOOT);
    assert!(vm.console().contains("\"10.77.0.7\""), "{}", vm.console());
}

#[test]
fn a_mebibyte_each_way_over_the_guest_s_own_connection_arrives_whole() {
    let listener = TcpListener::bind((outside(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        stream.write_all(&data).unwrap();
        data
    });
    let output = shared::run(&format!(
        "ruby -rsocket -rdigest -e 'data = Random.new(7).bytes(1 << 20); s = TCPSocket.new({:?}, {port}); \
         t = Thread.new {{ s.read }}; s.write(data); s.close_write; back = t.value; \
         puts back == data, Digest::SHA256.hexdigest(data)'",
        outside()
    ));
    let seen = server.join().unwrap();
    assert_eq!(seen.len(), 1 << 20);
    assert!(output.starts_with("true\n"), "{output}");
}

#[test]
fn of_a_frame_in_several_buffers_the_guest_never_finds_a_part() {
    const LEN: u64 = 256 << 20;
    let listener = TcpListener::bind((outside(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::copy(&mut std::io::repeat(7).take(LEN), &mut stream).unwrap()
    });
    let output = shared::run(&format!(
        "wc -c </dev/tcp/{}/{port}; cat /sys/class/net/eth0/statistics/rx_length_errors",
        outside()
    ));
    assert_eq!(server.join().unwrap(), LEN);
    assert_eq!(output, format!("{LEN}\n0\n"));
}

/// Since 6.11 Linux counts the bytes that a card of virtio has of it, and sends nothing at all while they
/// are too many.
#[test]
fn a_reader_that_stops_stops_no_other_connection_of_a_kernel_that_counts_what_its_card_has() {
    let listener = TcpListener::bind((outside(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        // The first says a byte and hears one; the others are not read.
        let (mut first, _) = listener.accept().unwrap();
        std::thread::spawn(move || {
            let mut others = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                others.push(stream);
            }
        });
        let mut byte = [0];
        while first.read(&mut byte).unwrap() == 1 {
            first.write_all(&byte).unwrap();
        }
    });
    let script = format!(
        r#"ruby -rsocket << 'script' > /dev/console 2>&1
to, longest = [{:?}, {port}], 0
asked = TCPSocket.new(*to)
now = -> {{ Process.clock_gettime(Process::CLOCK_MONOTONIC) }}
3.times do
  other = TCPSocket.new(*to)
  Thread.new {{ loop {{ other.write("x" * 65536) }} }}
  30.times do
    start = now.call
    asked.write("x")
    asked.read(1)
    longest = [longest, now.call - start].max
  end
end
limit = File.read(Dir["/sys/class/net/e*/queues/tx-0/byte_queue_limits/limit"].first)
puts "longest #{{(longest * 1000).to_i}} limit #{{limit.to_i}} end"
script
"#,
        outside()
    );
    let directory = tempfile::tempdir().unwrap();
    let vm = run_on_13(directory.path(), Manifest::new("counted", &script));
    vm.wait_console(" end", 1, BOOT);
    let console = vm.console();
    let said = console.split_once("longest ").unwrap().1;
    let mut numbers = said
        .split_whitespace()
        .filter_map(|word| word.parse::<u32>().ok());
    let (longest, limit) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(limit > 0, "this kernel does not count");
    // Frames that the card keeps until it takes them for lost, a second later, hold up all that come after.
    assert!(longest < 900, "{longest} ms");
}

#[test]
fn a_published_udp_port_answers_once_somebody_in_the_guest_listens() {
    shared::run("true");
    let vm = shared::vm().pid().to_string();
    let ports = |what, port| {
        let output = Command::new(peapod())
            .args(["port", what, &vm, port])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect("127.0.0.1:5354").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    let asked = || {
        // The answer to the last may be an error that this send is told.
        let _ = client.send(b"ping");
        let mut bytes = [0; 8];
        client.recv(&mut bytes).map(|n| bytes[..n].to_vec())
    };
    let port = "127.0.0.1:5354:5354/udp";
    ports("add", port);
    let refused = std::io::ErrorKind::ConnectionRefused;
    assert_eq!(asked().unwrap_err().kind(), refused);
    shared::run(
        "setsid ruby -rsocket -e 's = UDPSocket.new; s.bind(\"0.0.0.0\", 5354)
         loop { d, (_, port, _, at) = s.recvfrom(9); s.send(d, 0, at, port); exit if d == \"end\" }' \
         >/dev/null 2>&1 &",
    );
    until("nobody answers", || asked().ok());
    client.send(b"end").unwrap();
    until("the port stays open", || {
        (asked().err()?.kind() == refused).then_some(())
    });
    ports("rm", port);
}

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    let socket = UdpSocket::bind((outside(), 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..n], from).unwrap();
    });
    let output = shared::run(&format!(
        "ruby -rsocket -e 's = UDPSocket.new; s.connect({:?}, {port}); s.send(\"ping\", 0); puts s.recv(9)'",
        outside()
    ));
    server.join().unwrap();
    assert_eq!(output, "ping\n");
}

#[test]
fn a_port_that_nobody_listens_on_refuses_the_guest_at_once() {
    let port = TcpListener::bind((outside(), 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let output = shared::run(&format!(
        "ruby -rsocket -e 'begin; TCPSocket.new({:?}, {port}); rescue => e; puts e.class; end'",
        outside()
    ));
    assert_eq!(output, "Errno::ECONNREFUSED\n");
}

#[test]
fn the_host_s_loopback_is_closed_to_the_guest() {
    let listener = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let output = shared::run(&format!(
        "for a in 10.0.2.1 169.254.169.254; do ruby -rsocket -e 'begin; \
         Socket.tcp(ARGV[0], {port}, connect_timeout: 20); puts :open; rescue => e; puts e.class; end' $a; done"
    ));
    assert!(!output.contains("open"), "{output}");
    assert!(
        !output.contains("TimedOut"),
        "refused, not dropped: {output}"
    );
    assert!(listener.accept().is_err());
}

#[test]
fn a_root_without_a_network_of_its_own_has_the_one_that_its_network_config_says() {
    let directory = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((outside(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "cat /sys/class/net/enp1s0/mtu /etc/resolv.conf /proc/net/route\n\
         ruby -rsocket -e 'puts Socket.ip_address_list.map(&:ip_address)
         s = TCPSocket.new({:?}, {port}); s.write \"hello\"'\n\
         echo done-here; busybox poweroff\n",
        outside()
    );
    let manifest = Manifest::new("static", &script)
        .network_data(
            "version: 2\nethernets:\n  enp1s0:\n    addresses: [10.0.2.2/25, 10.77.0.2/16]\n    \
             mtu: 1400\n    nameservers: {addresses: [192.0.2.53], search: [one.example]}\n    \
             routes:\n    - {to: default, via: 10.0.2.1}\n    \
             - {to: 198.18.0.0/15, via: 10.0.2.1, metric: 7}\nbridges: {br0: {}}\n",
        )
        .write(directory.path());
    let vm = Vm::run(&manifest, [""; 0]);
    vm.wait_console("done-here", 1, BOOT);
    let console = vm.console().replace('\r', "");
    for said in [
        "\n1400\n",
        "nameserver 192.0.2.53\nsearch one.example\n",
        "\n10.0.2.2\n",
        "\n10.77.0.2\n",
        // /proc/net/route's: whereto, by whom, flags, metric, mask
        "enp1s0\t00000000\t0102000A\t0003\t0\t0\t0\t00000000",
        "enp1s0\t000012C6\t0102000A\t0003\t0\t0\t7\t0000FEFF",
    ] {
        assert!(console.contains(said), "{said:?}: {console}");
    }
    let mut said = String::new();
    listener
        .accept()
        .unwrap()
        .0
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "hello");
    // What it cannot do is told, and the rest is done.
    vm.wait_log(
        "network-config failed: br0: a VLAN, a bond and a bridge need",
        SOON,
    );
}

#[test]
fn a_guest_has_ipv6_where_its_pod_has_a_way_out_by_it() {
    let directory = tempfile::tempdir().unwrap();
    let script = "until grep ^fd1000000002 /proc/net/if_inet6; do sleep 0.2; done\n\
        cat /etc/resolv.conf\n\
        ruby -rsocket -e 'begin; TCPSocket.new(\"2001:db8::1\", 9); rescue => e; puts e.class; end'\n\
        busybox poweroff\n";
    let manifest = Manifest::new("six", script).write(directory.path());
    let pod = "ip link set lo up; ip link add out type dummy; ip link set out up; \
        ip addr add 2001:db8::1/64 dev out nodad; ip -6 route add default dev out; exec \"$@\"";
    let mut vm = Vm::start(
        Command::new("unshare")
            .args(["--net", "--", "sh", "-c", pod, "sh"])
            .args([peapod().as_os_str(), "run".as_ref(), manifest.as_os_str()]),
    );
    assert_eq!(vm.wait(2 * BOOT), 0);
    // The pod's connect() was refused: there it came.
    assert!(vm.console().contains("ECONNREFUSED"));
}

#[test]
fn where_no_port_is_declared_those_that_the_guest_listens_on_are_published() {
    let directory = tempfile::tempdir().unwrap();
    let script = "ruby -rsocket -e 's = TCPServer.new(9123); t = TCPServer.new(\"127.0.0.1\", 9124); \
        s.accept.tap { |c| c.puts(\"hello\"); c.close }; s.close; sleep' &\n";
    let manifest = Manifest::new("undeclared", script).write(directory.path());
    let vm = Vm::run(&manifest, [""; 0]);
    vm.wait_log("127.0.0.1:9123/tcp is the guest's port 9123", BOOT);
    let hello = || {
        let mut answer = String::new();
        let mut stream = TcpStream::connect("127.0.0.1:9123")?;
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    // Published, it still has to be seen to listen.
    let answer = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        hello().ok()
    });
    assert_eq!(answer.as_deref(), Some("hello\n"));
    vm.wait_log("127.0.0.1:9123 is not the guest's any more", SOON);
    assert!(!vm.log().contains("9124"));
}

#[test]
fn the_client_s_own_address_reaches_the_guest() {
    // Published on 127.0.0.1, so the client is the gateway there.
    let output = Guest::default().run("true", BOOT);
    assert_eq!(output, "");
    let seen = shared::run("cat /proc/net/tcp");
    // a connection from 10.0.2.1 to port 9099 (0x238b)
    let from_gateway = |line: &str| line.contains(":238B 0102000A:");
    assert!(seen.lines().any(from_gateway), "{seen}");
}
