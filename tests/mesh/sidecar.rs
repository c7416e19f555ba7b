//! A guest beside Istio's sidecar: what comes to it and what it calls.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Instant;

use peapod_tests::mesh::{Guest, Redirect, SEEN, Server, WORLD, agent};
use peapod_tests::sides::{GATEWAY, GUEST};
use peapod_tests::space::Process;
use peapod_tests::until;

use crate::site::{DETAILS, RATINGS, Site, at_once, request, serving, told};

/// The seed's: the services' and the pods' networks.
pub const RANGES: Redirect = Redirect::Istio {
    include: "172.30.0.0/16,10.1.0.0/16",
    exclude_inbound: &[],
    exclude_outbound: &[],
    dns: false,
    transparent: false,
};

pub fn a_port_of_a_service_comes_in_through_the_sidecar() {
    let site = Site::new(&RANGES);
    let envoy = site.envoy(&site.sidecar(&RANGES));
    let _guest = site.guest();
    for name in ["details", "details.default", DETAILS] {
        let said = told(&site.ratings.curl(&format!("http://{name}:9080/details/0")));
        assert_eq!(said["peer"], GATEWAY[0]);
        // Which none but Envoy has added.
        assert_eq!(said["headers"]["x-forwarded-proto"], "http");
    }
    assert_eq!(envoy.counter("cluster.inbound|9080||.upstream_rq_200"), 3);
}

pub fn a_port_of_no_service_comes_in_through_the_sidecar_too() {
    let site = Site::new(&RANGES);
    let envoy = site.envoy(&site.sidecar(&RANGES));
    let _guest = site.guest();
    let address = site.details.address;
    let said = told(&site.ratings.curl(&format!("http://{address}:9090/")));
    assert_eq!(said["peer"], GATEWAY[0]);
    let through = "cluster.InboundPassthroughCluster.upstream_cx_total";
    assert_eq!(envoy.counter(through), 1);
}

pub fn an_excluded_port_comes_in_directly() {
    let redirect = Redirect::Istio {
        include: "*",
        exclude_inbound: &[9090],
        exclude_outbound: &[],
        dns: false,
        transparent: false,
    };
    let site = Site::new(&redirect);
    let envoy = site.envoy(&site.sidecar(&redirect));
    let _guest = site.guest();
    let address = site.details.address;
    let said = told(&site.ratings.curl(&format!("http://{address}:9090/")));
    assert_eq!(said["peer"], site.ratings.address.to_string());
    let through = "cluster.InboundPassthroughCluster.upstream_cx_total";
    assert_eq!(envoy.counter(through), 0);
}

pub fn what_is_the_pod_s_own_comes_from_the_gateway() {
    let site = Site::new(&RANGES);
    let pod = &site.details;
    pod.shell(
        "ip address add ::6/128 dev lo; ip address add fd00::20/128 dev lo
         ip -6 route add default dev eth0",
    );
    let guest = site.guest();
    let [v4, v6] = GUEST;
    guest.run(&format!(
        "ip -6 address replace {v6}/120 dev eth0 nodad; ip -6 route replace default via fe80::1 dev eth0"
    ));
    let address = pod.address.to_string();
    for (source, to, gateway) in [
        ("127.0.0.1", "127.0.0.1", GATEWAY[0]),
        ("127.0.0.6", &address, GATEWAY[0]),
        (&address, &address, GATEWAY[0]),
        ("::1", "[::1]", GATEWAY[1]),
        ("::6", "[fd00::20]", GATEWAY[1]),
        ("fd00::20", "[fd00::20]", GATEWAY[1]),
    ] {
        let script = format!("curl -sS --interface {source} http://{to}:9080/");
        // For a moment after the guest has its address it has it for nobody.
        let said = until(&format!("nobody answers {source}"), || {
            let (said, answered) = pod.attempt(&script);
            answered.then_some(said)
        });
        assert_eq!(told(&said)["peer"], gateway, "{source}");
    }
    assert!(guest.run("ip address show dev eth0").contains(v4));
}

/// What kubelet asks Istio's agent for: the guest's HTTP, and its port.
const READY: &str = "/app-health/details/readyz";
/// See [`READY`].
const ALIVE: &str = "/app-health/details/livez";

pub fn kubelet_s_probes_are_answered_by_the_guest() {
    let site = Site::new(&RANGES);
    let pod = &site.details;
    let _envoy = site.envoy(&site.sidecar(&RANGES));
    let _agent = pod.inside(|| {
        let listener = TcpListener::bind("0.0.0.0:15020").unwrap();
        let probers = [
            (READY, (9080, Some("/health".to_owned()))),
            (ALIVE, (9080, None)),
        ];
        let probers = probers.map(|(asked, of)| (asked.to_owned(), of)).into();
        Server::start(listener, agent(pod.address, probers))
    });
    let probe = |port: u16, path: &str| {
        let script = format!(
            "curl -s -o /dev/null -w '%{http_code}' --max-time 20 http://{}:{port}{path}",
            pod.address,
            http_code = "{http_code}"
        );
        site.node.run(&script)
    };
    assert_eq!(probe(15021, "/healthz/ready"), "200");
    // There is no guest, then one that serves nothing, one that does, and one that has ceased to.
    let answered = |status: &str| {
        for asked in [READY, ALIVE] {
            until(&format!("{asked} is not answered {status}"), || {
                (probe(15020, asked) == status).then_some(())
            });
        }
        // As it is before the injector rewrites it, which comes through the sidecar.
        assert_eq!(probe(9080, "/health"), status);
        // Past the sidecar a port is not open that nothing is behind.
        let wanted = match status {
            "200" => "open",
            _ => "Connection refused",
        };
        let script = format!(": </dev/tcp/{}/9080 && echo open", pod.address);
        until(&format!("the port is not: {wanted}"), || {
            pod.attempt(&script).0.contains(wanted).then_some(())
        });
    };
    answered("503");
    let mut guest = Guest::start(pod, &[9080]);
    answered("503");
    guest.serve(SEEN, "9080");
    answered("200");
    guest.run(&format!("kill -9 {}", serving(&guest)));
    answered("503");
    guest.serve(SEEN, "9080");
    answered("200");
}

pub fn the_guest_calls_a_service_by_each_of_its_names_through_the_sidecar() {
    let site = Site::new(&RANGES);
    let envoy = site.envoy(&site.sidecar(&RANGES));
    let guest = site.guest();
    let names = [
        "ratings",
        "ratings.default",
        "ratings.default.svc",
        "ratings.default.svc.cluster.local",
        RATINGS,
    ];
    for name in names {
        let (head, body) = request(&guest, name, 9080, "/ratings/0");
        assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}");
        let said = told(&body);
        assert_eq!(said["peer"], site.details.address.to_string());
        assert_eq!(
            said["headers"]["x-envoy-expected-rq-timeout-ms"],
            serde_json::Value::Null
        );
        assert_eq!(said["headers"]["x-forwarded-proto"], "http");
    }
    let cluster = format!("cluster.{}.upstream_rq_200", site.services[1].outbound());
    assert_eq!(envoy.counter(&cluster), names.len() as u64);
    // A pod by its own address, as of a service without one.
    let address = site.ratings.address.to_string();
    let (head, _) = request(&guest, &address, 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(
        envoy.counter("cluster.PassthroughCluster.upstream_rq_200"),
        1
    );
}

/// The guest calls the world, which sees the pod.
#[track_caller]
fn expect_world(site: &Site, guest: &Guest) {
    for name in ["world.example", WORLD] {
        let (head, body) = request(guest, name, 80, "/");
        assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}");
        assert_eq!(told(&body)["peer"], site.details.address.to_string());
    }
}

/// Connections to nowhere that Envoy has passed on.
pub const PASSED: &str = "cluster.PassthroughCluster.upstream_cx_total";

pub fn what_is_outside_the_ranges_goes_directly() {
    let site = Site::new(&RANGES);
    let envoy = site.envoy(&site.sidecar(&RANGES));
    expect_world(&site, &site.guest());
    assert_eq!(envoy.counter(PASSED), 0);
}

pub fn what_is_in_no_service_goes_through_the_sidecar_where_all_does() {
    let site = Site::new(&Redirect::ISTIO);
    let envoy = site.envoy(&site.sidecar(&Redirect::ISTIO));
    expect_world(&site, &site.guest());
    assert_eq!(envoy.counter(PASSED), 2);
}

pub fn an_excluded_port_goes_directly() {
    let redirect = Redirect::Istio {
        include: "*",
        exclude_inbound: &[],
        exclude_outbound: &[80],
        dns: false,
        transparent: false,
    };
    let site = Site::new(&redirect);
    let envoy = site.envoy(&site.sidecar(&redirect));
    expect_world(&site, &site.guest());
    assert_eq!(envoy.counter(PASSED), 0);
}

pub fn the_guest_reaches_itself_by_its_service() {
    let site = Site::new(&RANGES);
    let guest = site.guest();
    let envoy = site.envoy(&site.sidecar(&RANGES));
    let (head, body) = request(&guest, "details", 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(told(&body)["peer"], GATEWAY[0]);
    let cluster = format!("cluster.{}.upstream_rq_200", site.services[0].outbound());
    assert_eq!(envoy.counter(&cluster), 1);
    assert_eq!(envoy.counter("cluster.inbound|9080||.upstream_rq_200"), 1);
    // Without a mesh it is kube-proxy that masquerades it.
    site.details.shell("iptables -t nat -F");
    let (head, body) = request(&guest, "details", 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(
        told(&body)["peer"]
            .as_str()
            .unwrap()
            .parse::<Ipv4Addr>()
            .is_ok()
    );
}

pub fn what_the_registry_lacks_is_refused_at_once() {
    let site = Site::new(&Redirect::ISTIO);
    let mut sidecar = site.sidecar(&Redirect::ISTIO);
    sidecar.registry_only = true;
    let envoy = site.envoy(&sidecar);
    let guest = site.guest();
    let start = Instant::now();
    let (head, _) = request(&guest, "world.example", 9080, "/");
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    // What is no request is taken and ended: by a plain close or by a reset.
    let (head, _) = request(&guest, "world.example", 80, "/");
    assert!(!head.contains("HTTP/1.1"), "{head}");
    assert!(start.elapsed() < at_once(), "{:?}", start.elapsed());
    assert_eq!(
        envoy.counter("cluster.BlackHoleCluster.upstream_cx_none_healthy"),
        1
    );
    // What it has goes on.
    let (head, _) = request(&guest, "ratings", 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

pub fn names_are_looked_up_at_the_sidecar() {
    let redirect = Redirect::Istio {
        include: "*",
        exclude_inbound: &[],
        exclude_outbound: &[],
        dns: true,
        transparent: false,
    };
    let site = Site::new(&redirect);
    let _envoy = site.envoy(&site.sidecar(&redirect));
    let guest = site.guest();
    // Only the sidecar knows that name; what it does not know it asks the cluster's DNS.
    let mut command = site.details.command(redirect.proxy(), "dnsmasq");
    command.args(["-k", "-C", "/dev/null", "-h", "-p", "15053", "--pid-file"]);
    command.args(["--address=/only.mesh/240.240.0.1", "--bind-interfaces"]);
    let _agent = Process::start(&mut command).unwrap();
    until("the sidecar does not answer", || {
        let found = guest.run("getent ahostsv4 only.mesh");
        found.starts_with("240.240.0.1 ").then_some(())
    });
    // resolv.conf(5); a guest's root need not have dig.
    let by_tcp = "RES_OPTIONS=use-vc getent ahostsv4 only.mesh | cut -d' ' -f1 | sort -u";
    assert_eq!(guest.run(by_tcp), "240.240.0.1\n");
    let found = guest.run("getent ahostsv4 ratings");
    assert!(found.starts_with(RATINGS), "{found}");
}

pub fn by_tproxy_the_guest_sees_its_client_s_own_address() {
    let redirect = Redirect::Istio {
        include: "*",
        exclude_inbound: &[],
        exclude_outbound: &[],
        dns: false,
        transparent: true,
    };
    let site = Site::new(&redirect);
    let envoy = site.envoy(&site.sidecar(&redirect));
    let guest = site.guest();
    for port in [9080, 9090] {
        let address = site.details.address;
        let said = told(&site.ratings.curl(&format!("http://{address}:{port}/")));
        assert_eq!(said["peer"], site.ratings.address.to_string(), "{port}");
    }
    assert_eq!(envoy.counter("cluster.inbound|9080||.upstream_rq_200"), 1);
    let (head, body) = request(&guest, "ratings", 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(told(&body)["peer"], site.details.address.to_string());
    let (head, _) = request(&guest, "details", 9080, "/");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}
