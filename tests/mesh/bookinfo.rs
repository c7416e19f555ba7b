//! Bookinfo, whose details are in the guest: each service in its pod with its sidecar, by TLS
//! between them, behind a gateway.

use std::net::{SocketAddr, TcpListener};

use peapod_tests::mesh::bookinfo::SERVICE;
use peapod_tests::mesh::{
    Authority, Collector, Envoy, Gateway, Guest, Node, Pod, Redirect, Service, Sidecar, User, WORLD,
};
use peapod_tests::space::Process;
use peapod_tests::{PATIENCE, until};
use serde_json::Value;

/// What the guest serves: the repository's own.
const DETAILS: &str = include_str!("../../images/details/details.rb");
/// Each service with its workloads.
const SERVICES: [(&str, &[&str]); 4] = [
    ("details", &["details"]),
    ("ratings", &["ratings"]),
    ("reviews", &["v1", "v2", "v3"]),
    ("productpage", &["productpage"]),
];
const GATEWAY: &str = "ingressgateway";

pub fn what_the_guest_says_comes_out_at_the_gateway_and_in_one_trace() {
    let node = Node::new();
    let mut services = Vec::new();
    let mut pods: Vec<(&str, &str, Pod)> = Vec::new();
    for (name, workloads) in SERVICES {
        let address = format!("172.30.0.{}", 20 + services.len());
        let mut service = Service::new(name, &address, 9080);
        for workload in workloads {
            let pod = node.pod(workload, 20 + pods.len() as u8);
            service = service.of(pod.address, 9080);
            pods.push((name, workload, pod));
        }
        services.push(service);
    }
    let (edge, client) = (node.pod(GATEWAY, 10), node.pod("client", 11));
    let ingress = Service::new(GATEWAY, "172.30.0.80", 80).of(edge.address, 8080);
    let all: Vec<Service> = services.iter().chain([&ingress]).cloned().collect();
    node.publish(&all);

    let at: SocketAddr = format!("{WORLD}:9411").parse().unwrap();
    let collector = Collector::start(node.inside(|| TcpListener::bind(at).unwrap()));
    let authority = Authority::new();
    let envoys: Vec<Envoy> = pods
        .iter()
        .map(|(name, _, pod)| {
            Redirect::ISTIO.load(pod);
            let sidecar = Sidecar {
                name,
                redirect: &Redirect::ISTIO,
                inbound: &[9080],
                services: &services,
                registry_only: true,
                identity: Some(&authority.identity(name)),
                tracing: Some(at),
            };
            Envoy::start(pod, User::Istio, &sidecar.bootstrap())
        })
        .collect();
    let gateway = Gateway {
        exact: &["/productpage", "/login", "/logout"],
        prefixes: &["/static", "/api/v1/products"],
        service: &services[3],
        identity: Some(&authority.identity(GATEWAY)),
        tracing: Some(at),
    };
    let gateway = Envoy::start(&edge, User::Istio, &gateway.bootstrap());

    let pages = format!("{}", std::process::id() * 7919 + 100_003);
    let guest = Guest::start(&pods[0].2, "-p 9080:9080");
    guest.serve(
        &DETAILS.replace("pages: 200", &format!("pages: {pages}")),
        "9080",
    );
    let program = std::env::current_exe().unwrap();
    let _workloads: Vec<Process> = pods[1..]
        .iter()
        .map(|(_, workload, pod)| {
            let mut command = pod.command(User::Root, program.to_str().unwrap());
            let process = Process::start(command.args([SERVICE, workload])).unwrap();
            assert_eq!(process.line(PATIENCE).unwrap(), "ready");
            process
        })
        .collect();

    let ask = |path: &str| client.run(&format!("curl -s --max-time 20 http://{GATEWAY}{path}"));
    let page = until("the page has no details", || {
        let page = ask("/productpage");
        (page.contains(&pages) && page.contains("Book Reviews")).then_some(page)
    });
    assert!(page.contains("William Shakespeare"), "{page}");
    let book: Value = serde_json::from_str(&ask("/api/v1/products/0")).unwrap();
    assert_eq!(book["pages"].to_string(), pages);

    // Each version of the reviews has its turn.
    let mut seen = [false; 3];
    until("some version of the reviews has no turn", || {
        let said: Value = serde_json::from_str(&ask("/api/v1/products/0/reviews")).ok()?;
        let color = said["reviews"][0]["rating"]["color"].as_str();
        seen[["black", "red"]
            .iter()
            .position(|c| Some(*c) == color)
            .map_or(0, |i| i + 1)] = true;
        (seen == [true; 3]).then_some(())
    });

    // The gateway serves nothing else.
    for (path, status) in [
        ("/static/style.css", "200"),
        ("/logout", "302"),
        ("/", "404"),
        ("/details/0", "404"),
        ("/health", "404"),
    ] {
        let script = "-s -o /dev/null -w '%{http_code}' --max-time 20";
        let got = client.run(&format!("curl {script} http://{GATEWAY}{path}"));
        assert_eq!(got, status, "{path}");
    }

    // Who has no certificate gets nowhere.
    let plain = format!(
        "curl -s --max-time 20 http://{}:9080/details/0",
        pods[0].2.address
    );
    assert_eq!(client.attempt(&plain), (String::new(), false));

    // Envoys' counters tell of the guest's calls.
    let (details, productpage) = (&envoys[0], &envoys[5]);
    let inbound = details.counter("cluster.inbound|9080||.upstream_rq_200");
    let called = format!("cluster.{}.upstream_rq_200", services[0].outbound());
    assert!(inbound >= 2);
    assert_eq!(inbound, productpage.counter(&called));
    let served = format!("cluster.{}.upstream_rq_200", services[3].outbound());
    assert!(gateway.counter(&served) >= 3);

    one_trace(&collector, &client);
}

/// One request through all of them is one trace, in which details is asked by productpage.
fn one_trace(collector: &Collector, client: &Pod) {
    let id = "463ac35c9f6413ad48485a3953bb6124";
    client.run(&format!(
        "curl -sSf --max-time 20 -o /dev/null -H 'x-b3-traceid: {id}' \
         -H 'x-b3-spanid: 0020000000000001' -H 'x-b3-sampled: 1' http://{GATEWAY}/api/v1/products/0"
    ));
    let span = |service: &str, kind: &str| {
        let name = format!("{service}.default");
        until(&format!("no span of {service}, {kind}"), || {
            let trace = collector.trace(id);
            trace
                .into_iter()
                .find(|span| span["localEndpoint"]["serviceName"] == *name && span["kind"] == *kind)
        })
    };
    let details = span("details", "SERVER");
    let call = span("productpage", "CLIENT");
    let productpage = span("productpage", "SERVER");
    assert_eq!(details["parentId"], call["id"], "{details} {call}");
    assert_eq!(call["parentId"], productpage["id"], "{call} {productpage}");
}
