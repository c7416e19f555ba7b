//! What the guest may not reach in a pod with a sidecar, though it be the pod's own root.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, TcpListener};

use peapod_tests::mesh::{ADMIN, Guest, Redirect};

use crate::site::Site;

const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// The pod's own addresses.
const POD: [&str; 2] = ["10.1.0.20", "fd00::20"];
/// A listener of some container's, on the pod's loopback only.
const OTHER: u16 = 7777;
/// The loopback, as programs spell it; the gateway; and the pod itself, for the sidecar's ports.
/// What Linux takes for its own loopback, 0.0.0.0 and ::, and the rest of 0.0.0.0/8, which it knows
/// no way to, never leave a guest: netdev's unit tests have them.
const SPELLINGS: [&str; 18] = [
    "127.0.0.1",
    "127.1",
    "127.0.0.2",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "017700000001",
    "0177.0.0.1",
    "::1",
    "0:0:0:0:0:0:0:1",
    "::ffff:127.0.0.1",
    "::ffff:7f00:1",
    "::ffff:7f00:0001",
    "10.0.2.1",
    "fd10:0:2::1",
    POD[0],
    "::ffff:10.1.0.20",
    POD[1],
];
const METADATA_SPELLINGS: [&str; 8] = [
    METADATA[0],
    "169.254.43518",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "::ffff:169.254.169.254",
    METADATA[1],
    "fd00:0ec2:0:0:0:0:0:254",
];

pub fn no_spelling_of_an_address_leads_to_the_pod_s_loopback_or_the_node_s_metadata() {
    let site = Site::new(&Redirect::ISTIO);
    let pod = &site.details;
    pod.shell("ip address add fd00::20/128 dev eth0 nodad; ip -6 route add default dev eth0");
    let _envoy = site.envoy(&site.sidecar(&Redirect::ISTIO));
    let [metadata, metadata6] = METADATA;
    site.node.shell(&format!(
        "link=$(ip route get {} | sed -n 's/.* dev \\([^ ]*\\) .*/\\1/p')
         ip address add {metadata}/32 dev lo; ip address add {metadata6}/128 dev $link nodad
         ip -6 route add {} dev $link",
        POD[0], POD[1]
    ));
    // Where the sidecar's administration is, somebody is at the pod's own addresses as well.
    let inside = [
        ("127.0.0.1", OTHER),
        ("::1", OTHER),
        (POD[0], ADMIN),
        (POD[1], ADMIN),
    ];
    let outside = METADATA.map(|to| (to, 80));
    let listeners: Vec<TcpListener> = pod
        .inside(|| inside.map(|to| TcpListener::bind(to).unwrap()))
        .into_iter()
        .chain(
            site.node
                .inside(|| outside.map(|to| TcpListener::bind(to).unwrap())),
        )
        .collect();
    let guest = site.guest();
    // Its own loopback would keep these for itself, and its kernel hears no answer from them.
    guest.run(
        "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet
         ip -6 address replace fd10:0:2::2/120 dev eth0 nodad
         ip -6 route replace default via fe80::1 dev eth0
         ip address flush dev lo
         ip route add 127.0.0.0/8 via 10.0.2.1",
    );
    for spelling in SPELLINGS {
        expect_refused(&guest, spelling, ADMIN);
        // The pod's address is for calls to itself, but a loopback's listener is not there.
        expect_refused(&guest, spelling, OTHER);
    }
    for spelling in METADATA_SPELLINGS {
        expect_refused(&guest, spelling, 80);
    }
    for listener in &listeners {
        listener.set_nonblocking(true).unwrap();
        let nobody = listener.accept().expect_err("somebody came");
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
    }
    // All of them are there for the pod.
    pod.curl(&format!("http://127.0.0.1:{ADMIN}/ready"));
    for (to, port) in inside.into_iter().chain(outside) {
        pod.run(&format!(": </dev/tcp/{to}/{port}"));
    }
}

/// By the network, which the question has to have come to.
#[track_caller]
fn expect_refused(guest: &Guest, to: &str, port: u16) {
    let attempt = format!("timeout 2 bash -c ': </dev/tcp/{to}/{port}' && echo open");
    let said = guest.run(&attempt);
    // Linux itself lets nothing go to ::1 on a link; netdev's unit tests do.
    let deaf = to.parse() == Ok(Ipv6Addr::LOCALHOST) && !said.contains("open");
    assert!(
        deaf || said.contains("Connection refused"),
        "{to}:{port}: {said}"
    );
}
