//! What comes late, ends and comes back: the guest, its network, its sidecar, its pod's address.

use std::time::Instant;

use peapod_tests::mesh::Redirect;
use peapod_tests::until;

use crate::site::{DETAILS, Site, at_once, request, told};

/// The status that the service's client is answered, which it is at once.
#[track_caller]
fn asked(site: &Site) -> String {
    let start = Instant::now();
    let status = "curl -s -o /dev/null -w '%{http_code}' --max-time 20";
    let (said, _) = site
        .ratings
        .attempt(&format!("{status} http://{DETAILS}:9080/"));
    assert!(start.elapsed() < at_once(), "{said}: {:?}", start.elapsed());
    said
}

/// Until the client is answered so: for a moment after a change it may not be.
#[track_caller]
fn becomes(site: &Site, status: &str) {
    until(&format!("the client is not answered {status}"), || {
        (asked(site) == status).then_some(())
    });
}

/// Programs that listen at the guest's ports in its pod.
fn listeners(site: &Site) -> String {
    site.details.run("ss -Hltn 'sport = 9080 or sport = 9090'")
}

/// The guest's call of the other service.
fn calls(guest: &peapod_tests::mesh::Guest) -> bool {
    let start = Instant::now();
    let (head, _) = request(guest, "ratings", 9080, "/");
    assert!(start.elapsed() < at_once(), "{head}: {:?}", start.elapsed());
    head.starts_with("HTTP/1.1 200")
}

pub fn a_guest_may_come_before_its_sidecar_or_after_it() {
    let site = Site::new(&Redirect::ISTIO);
    let sidecar = site.sidecar(&Redirect::ISTIO);
    let first = site.envoy(&sidecar);
    // Nobody is behind the port, and it is not open.
    assert_eq!(listeners(&site), "");
    assert_eq!(asked(&site), "503");
    let guest = site.guest();
    becomes(&site, "200");
    assert!(calls(&guest));
    drop(first);
    // Nothing is taken by the pod in its sidecar's place.
    assert_eq!(asked(&site), "000");
    assert!(!calls(&guest));
    let _second = site.envoy(&sidecar);
    becomes(&site, "200");
    assert!(calls(&guest));
}

pub fn a_sidecar_that_restarts_amid_traffic_leaves_nothing_behind() {
    let site = Site::new(&Redirect::ISTIO);
    let sidecar = site.sidecar(&Redirect::ISTIO);
    let guest = site.guest();
    let connections = || {
        let script = "ss -Htnp state established | grep -c peapod || true";
        site.details.run(script).trim().parse::<u32>().unwrap()
    };
    for _ in 0..3 {
        let envoy = site.envoy(&sidecar);
        // Connections of both directions that last until the sidecar goes.
        guest.run(
            "for i in 1 2 3 4 5 6 7 8; do
                 setsid bash -c 'exec 3<>/dev/tcp/ratings/9080 && exec sleep 60' >/dev/null 2>&1 &
             done",
        );
        until("the guest's connections are not there", || {
            (connections() >= 8).then_some(())
        });
        becomes(&site, "200");
        drop(envoy);
        until("connections are left", || {
            (connections() == 0).then_some(())
        });
    }
    let envoy = site.envoy(&sidecar);
    assert!(calls(&guest));
    becomes(&site, "200");
    assert!(envoy.counter("cluster.inbound|9080||.upstream_rq_200") >= 1);
}

pub fn a_network_that_is_killed_leaves_no_port_open_and_comes_back() {
    let site = Site::new(&Redirect::ISTIO);
    let _envoy = site.envoy(&site.sidecar(&Redirect::ISTIO));
    let mut guest = site.guest();
    becomes(&site, "200");
    for _ in 0..3 {
        guest.crash();
        assert_eq!(listeners(&site), "");
        assert_eq!(asked(&site), "503");
        // The guest's programs have gone on.
        guest.connect(&site.details);
        becomes(&site, "200");
        assert!(calls(&guest));
    }
}

pub fn a_pod_whose_address_goes_and_comes_back_goes_on() {
    let site = Site::new(&Redirect::ISTIO);
    let _envoy = site.envoy(&site.sidecar(&Redirect::ISTIO));
    let guest = site.guest();
    assert!(calls(&guest));
    site.details.disconnect();
    // Whoever looks up a name now waits for it; an address has no way, which is known at once.
    let start = Instant::now();
    let (head, _) = request(&guest, "203.0.113.9", 9080, "/");
    assert!(!head.contains("200"), "{head}");
    assert!(start.elapsed() < at_once(), "{:?}", start.elapsed());
    site.details.connect();
    becomes(&site, "200");
    until("the guest cannot call", || calls(&guest).then_some(()));
    let said = site.ratings.curl(&format!("http://{DETAILS}:9080/"));
    assert!(told(&said)["peer"].is_string());
}
