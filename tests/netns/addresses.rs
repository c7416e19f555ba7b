//! How a guest comes by its addresses, routes and names.

use std::fs;
use std::path::Path;

use peapod_tests::sides::{Family, Way};
use peapod_tests::space::Process;

use crate::content::pass;
use crate::site::{Setup, Site, WORLD, output, settle, sh};
use crate::sockets::{PATIENCE, until, wait_for};

/// What dhclient runs with what it was told.
const LEASE: &str = r#"#!/bin/sh -e
case $reason in
PREINIT) ip link set "$interface" up ;;
BOUND)
    ip address add "$new_ip_address/$new_subnet_mask" dev "$interface"
    ip link set "$interface" mtu "$new_interface_mtu"
    ip route add default via "$new_routers"
    echo "$new_domain_name_servers, $new_domain_search"
    ;;
BOUND6)
    ip address add "$new_ip6_address/128" dev "$interface"
    echo "$new_dhcp6_name_servers, $new_dhcp6_domain_search"
    ;;
esac
"#;

const CONFIGURATION: &str = "
request subnet-mask, routers, domain-name-servers, domain-search, interface-mtu;
also request dhcp6.name-servers, dhcp6.domain-search;
";

/// dhclient in the site's guest, and the names that it was told.
fn ask(site: &Site, folder: &Path, flag: &str) -> (Process, String) {
    let here = folder.display();
    fs::write(folder.join("configuration"), CONFIGURATION).unwrap();
    fs::write(folder.join("lease"), LEASE).unwrap();
    sh(&site.guest, &format!("chmod +x {here}/lease"));
    let mut command = site.guest.command("dhclient").unwrap();
    command.args([flag, "-d", "-q", "-cf", &format!("{here}/configuration")]);
    command.args(["-sf", &format!("{here}/lease")]);
    command.args(["-lf", &format!("{here}/leases{flag}")]);
    command.args(["-pf", &format!("{here}/id{flag}"), "eth0"]);
    let client = Process::start(&mut command).unwrap();
    let names = client.line(PATIENCE).unwrap();
    settle(&site.guest);
    (client, names)
}

fn expect_all_goes(site: &Site, family: Family) {
    for way in Way::BOTH {
        let ends = site.connect(way, family);
        pass(&ends.guest, &ends.world, 100_000);
    }
}

pub fn a_guest_that_asks_by_dhcp_has_what_it_needs() {
    let site = Setup {
        asks: true,
        arguments: "--mtu 1400 -p 8080:80",
        resolver: "nameserver 203.0.113.53\nnameserver 127.0.0.53\nsearch one.test two.test",
        ..Setup::default()
    }
    .site();
    let folder = tempfile::tempdir_in("/run").unwrap();
    let (_client, names) = ask(&site, folder.path(), "-4");
    assert_eq!(names, "203.0.113.53 10.0.2.1, one.test. two.test.");
    assert!(output(&site.guest, "ip link show eth0").contains("mtu 1400"));
    expect_all_goes(&site, Family::V4);
}

pub fn a_guest_with_the_kernel_s_ipv6_and_a_client_of_dhcpv6_has_what_it_needs() {
    let site = Setup {
        asks: true,
        arguments: "--mtu 1400 -p 8080:80",
        resolver: "nameserver 2001:db8::53\nnameserver ::1\nsearch one.test",
        ..Setup::default()
    }
    .site();
    sh(
        &site.guest,
        "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra; ip link set eth0 up",
    );
    let routed =
        || output(&site.guest, "ip -6 route show default").contains("via fe80::1 dev eth0");
    until("nobody advertises a router", || routed().then_some(()));
    let mtu = output(&site.guest, "cat /proc/sys/net/ipv6/conf/eth0/mtu");
    assert_eq!(mtu, "1400\n");
    let folder = tempfile::tempdir_in("/run").unwrap();
    let (_client, names) = ask(&site, folder.path(), "-6");
    assert_eq!(names, "2001:db8::53 fd10:0:2::1, one.test.");
    expect_all_goes(&site, Family::V6);
    // The gateway is the router only while the pod has one.
    let route = output(&site.pod, "ip -6 route show default");
    sh(
        &site.pod,
        "ip -6 route delete default; ip -6 address flush dev eth0 scope global",
    );
    until("it stays the router", || (!routed()).then_some(()));
    let address = site.address(Family::V6);
    sh(
        &site.pod,
        &format!("ip address add {address}/64 dev eth0; ip -6 route add {route}"),
    );
    wait_for(&site.pod, Family::V6.of(WORLD));
    until("it does not come again", || routed().then_some(()));
    expect_all_goes(&site, Family::V6);
}
