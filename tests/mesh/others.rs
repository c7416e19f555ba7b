//! A guest in other meshes than beside Istio's sidecar.

use std::time::Instant;

use peapod_tests::mesh::{Authority, Envoy, Guest, Pod, Redirect, linkerd, ztunnel};
use peapod_tests::sides::GATEWAY;
use peapod_tests::space::Process;
use peapod_tests::until;

use crate::site::{DETAILS, Site, at_once, request, told};

/// The guest is called by its service and calls another, both through that proxy.
#[track_caller]
fn expect_both_ways(site: &Site, guest: &Guest, envoy: &Envoy, seen: &str) {
    let said = told(&site.ratings.curl(&format!("http://{DETAILS}:9080/")));
    assert_eq!(said["peer"], seen);
    let inbound = envoy.counter("cluster.inbound.upstream_cx_total");
    assert_eq!(inbound, 1);
    let (head, body) = request(guest, "ratings", 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(told(&body)["peer"], site.details.address.to_string());
    assert_eq!(envoy.counter("cluster.outbound.upstream_cx_total"), 1);
}

pub fn in_ambient_mode_the_guest_is_called_and_calls_through_ztunnel_s_sockets() {
    let site = Site::new(&Redirect::Ambient);
    let pod = &site.details;
    let authority = Authority::new();
    let bootstrap = ztunnel(&authority.identity("details"), false);
    let envoy = Envoy::start(pod, Redirect::Ambient.proxy(), &bootstrap);
    // ztunnel answers names too.
    let mut names = pod.command(Redirect::Ambient.proxy(), "dnsmasq");
    names.args(["-k", "-C", "/dev/null", "-h", "-R", "-p", "15053"]);
    names.args(["--user=root", "--pid-file", "--local=/#/"]);
    let _names = Process::start(names.args(["--addn-hosts", &site.node.names()])).unwrap();
    until("nobody answers names", || {
        pod.attempt("getent hosts ratings").1.then_some(())
    });
    let client = site.ratings.address.to_string();
    let guest = site.guest();
    expect_both_ways(&site, &guest, &envoy, &client);

    // kubelet's probes go past ztunnel, by an address that the guest has no way to.
    let address = pod.address;
    site.node.shell(&format!(
        "iptables -t nat -I POSTROUTING -d {address} -p tcp -m owner --socket-exists \
         -j SNAT --to-source 169.254.7.127"
    ));
    let probe = site.node.run(&format!(
        "curl -sS --max-time 20 http://{address}:9080/health"
    ));
    assert_eq!(told(&probe)["peer"], GATEWAY[0]);
    assert_eq!(envoy.counter("cluster.inbound.upstream_cx_total"), 1);
}

pub fn by_a_tunnel_between_ztunnels_the_guest_sees_its_client_s_own_address() {
    let site = Site::new(&Redirect::Ambient);
    Redirect::Ambient.load(&site.ratings);
    let authority = Authority::new();
    let start = |pod: &Pod| {
        let bootstrap = ztunnel(&authority.identity(&pod.name), true);
        Envoy::start(pod, Redirect::Ambient.proxy(), &bootstrap)
    };
    let (to, from) = (start(&site.details), start(&site.ratings));
    let guest = site.guest();
    // ztunnel knows the pods of a service, and these stand-ins only where a connection was going.
    for port in [9080, 9090] {
        let address = site.details.address;
        let said = told(&site.ratings.curl(&format!("http://{address}:{port}/")));
        assert_eq!(said["peer"], site.ratings.address.to_string(), "{port}");
    }
    assert_eq!(to.counter("cluster.tunnel.upstream_cx_total"), 2);
    // Nothing has come without a tunnel.
    assert_eq!(to.counter("cluster.inbound.upstream_cx_total"), 0);
    // And by one to another pod.
    let address = site.ratings.address.to_string();
    let (head, body) = request(&guest, &address, 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(told(&body)["peer"], site.details.address.to_string());
    assert_eq!(from.counter("cluster.tunnel.upstream_cx_total"), 1);
    // Where nobody in the guest listens, a tunnel ends at once.
    let closed = format!("curl -sS http://{}:9091/", site.details.address);
    let start = Instant::now();
    assert!(!site.ratings.attempt(&closed).1);
    assert!(start.elapsed() < at_once(), "{:?}", start.elapsed());
    // Who has no certificate gets into none.
    let status = "curl -sk -o /dev/null -w '%{http_code}' --max-time 20";
    let stranger = format!("{status} https://{}:15008/", site.details.address);
    assert_eq!(site.node.run(&stranger), "000");
    assert_eq!(
        to.counter("listener.0.0.0.0_15008.ssl.fail_verify_no_cert"),
        1
    );
}

pub fn beside_linkerd_s_proxy_the_guest_is_called_and_calls() {
    let site = Site::new(&Redirect::Linkerd);
    let envoy = Envoy::start(&site.details, Redirect::Linkerd.proxy(), &linkerd());
    expect_both_ways(&site, &site.guest(), &envoy, GATEWAY[0]);
}
