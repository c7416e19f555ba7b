//! Bookinfo in the cluster: each service in its pod with its sidecar, by TLS between them, behind a
//! gateway; its details are in a guest.

use std::net::{SocketAddr, TcpListener};

use super::{
    Authority, Collector, Envoy, Gateway, Guest, Node, Pod, Redirect, Service, Sidecar, User,
    WORLD, bookinfo,
};
use crate::space::Process;

/// What the guest serves: the repository's own.
pub const DETAILS: &str = include_str!("../../../images/details/details.rb");
/// Each service with its workloads.
const SERVICES: [(&str, &[&str]); 4] = [
    ("details", &["details"]),
    ("ratings", &["ratings"]),
    ("reviews", &["v1", "v2", "v3"]),
    ("productpage", &["productpage"]),
];
/// The gateway's name in the cluster.
pub const GATEWAY: &str = "ingressgateway";

/// All of it; ends with this.
#[derive(Debug)]
pub struct Bookinfo {
    /// Details, ratings, reviews, productpage.
    pub services: Vec<Service>,
    /// Who calls the gateway, without a sidecar.
    pub client: Pod,
    /// The guest with details.
    pub guest: Guest,
    /// The guest's pod.
    pub details: Pod,
    /// The sidecar of the guest's pod.
    pub details_proxy: Envoy,
    /// That of productpage.
    pub productpage_proxy: Envoy,
    /// The gateway.
    pub gateway: Envoy,
    /// Where the gateway is, at port 8080.
    pub edge: Pod,
    /// Everybody's spans.
    pub collector: Collector,
    _workloads: Vec<Process>,
    _proxies: Vec<Envoy>,
    _pods: Vec<Pod>,
    _node: Node,
}

impl Bookinfo {
    /// Starts it, with this for the details' Ruby. The calling program has to [serve] the others.
    ///
    /// [serve]: super::bookinfo::serve
    pub fn start(details: &str) -> Self {
        let node = Node::new();
        let mut services = Vec::new();
        let mut pods: Vec<(&str, Pod)> = Vec::new();
        for (name, workloads) in SERVICES {
            let address = format!("172.30.0.{}", 20 + services.len());
            let mut service = Service::new(name, &address, 9080);
            for workload in workloads {
                let pod = node.pod(workload, 20 + pods.len() as u8);
                service = service.of(pod.address, 9080);
                pods.push((name, pod));
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
        let mut proxies: Vec<Envoy> = pods
            .iter()
            .map(|(name, pod)| {
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

        let mut guest = Guest::start(&pods[0].1, &[9080]);
        guest.serve(details, "9080");
        let workloads = pods[1..].iter().map(|(_, pod)| bookinfo::start(pod));
        let workloads = workloads.collect();
        let (_, details) = pods.remove(0);
        Self {
            services,
            client,
            guest,
            details,
            details_proxy: proxies.remove(0),
            productpage_proxy: proxies.pop().unwrap(),
            gateway,
            edge,
            collector,
            _workloads: workloads,
            _proxies: proxies,
            _pods: pods.into_iter().map(|(_, pod)| pod).collect(),
            _node: node,
        }
    }
}
