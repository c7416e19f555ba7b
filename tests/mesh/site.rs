//! Where the tests happen: a node with two services. A guest is one, a pod without a sidecar the
//! other, which may call the first.

use std::net::TcpListener;
use std::time::Duration;

use peapod_tests::mesh::{
    Envoy, Guest, Node, Pod, Redirect, SEEN, Server, Service, Sidecar, User, WORLD, is_vm, seen,
};
use peapod_tests::until;
use serde_json::Value;

/// The guest's address in the cluster.
pub const DETAILS: &str = "172.30.0.20";
/// The other's.
pub const RATINGS: &str = "172.30.0.30";

/// What a call takes that nobody waits for.
pub fn at_once() -> Duration {
    // A second of a real machine is ten of the lab's.
    Duration::from_secs(if is_vm() { 30 } else { 5 })
}

/// The pods, with who answers in the other pod and outside.
pub struct Site {
    pub node: Node,
    pub details: Pod,
    pub ratings: Pod,
    pub services: Vec<Service>,
    _servers: [Server; 2],
}

impl Site {
    /// One whose pod with the guest has that redirection.
    pub fn new(redirect: &Redirect) -> Self {
        let node = Node::new();
        let details = node.pod("details", 20);
        let ratings = node.pod("ratings", 30);
        let services = vec![
            Service::new("details", DETAILS, 9080).of(details.address, 9080),
            Service::new("ratings", RATINGS, 9080).of(ratings.address, 9080),
        ];
        node.publish(&services);
        redirect.load(&details);
        let there = ratings.inside(|| TcpListener::bind("0.0.0.0:9080").unwrap());
        let outside = node.inside(|| TcpListener::bind((WORLD, 80)).unwrap());
        Self {
            node,
            details,
            ratings,
            services,
            _servers: [there, outside].map(|listener| Server::start(listener, seen())),
        }
    }

    /// The sidecar that goes with it.
    pub fn sidecar<'a>(&'a self, redirect: &'a Redirect) -> Sidecar<'a> {
        Sidecar {
            name: "details",
            redirect,
            inbound: &[9080],
            services: &self.services,
            registry_only: false,
            identity: None,
            tracing: None,
        }
    }

    /// Starts that sidecar.
    pub fn envoy(&self, sidecar: &Sidecar) -> Envoy {
        let user = sidecar.redirect.proxy();
        Envoy::start(&self.details, user, &sidecar.bootstrap())
    }

    /// Gives the other pod a sidecar of its own, which tries again what Istio has it.
    pub fn client(&self) -> Envoy {
        Redirect::ISTIO.load(&self.ratings);
        let mut sidecar = self.sidecar(&Redirect::ISTIO);
        sidecar.name = "ratings";
        Envoy::start(&self.ratings, User::Istio, &sidecar.bootstrap())
    }

    /// A guest that tells who calls it at a port of the service and at one of none.
    pub fn guest(&self) -> Guest {
        let mut guest = Guest::start(&self.details, &[9080, 9090]);
        guest.serve(SEEN, "9080 9090");
        let address = self.details.address;
        until("the guest does not serve", || {
            let script = format!("curl -sf --interface 127.0.0.6 http://{address}:9090/");
            self.details.attempt(&script).1.then_some(())
        });
        guest
    }
}

/// What somebody was told by who was called.
#[track_caller]
pub fn told(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// The programs that serve in a guest.
pub fn serving(guest: &Guest) -> String {
    let script = "ss -Hltnp 'sport = 9080' | grep -o 'pid=[0-9]*' | cut -d= -f2 | sort -u | xargs";
    guest.run(script).trim().to_owned()
}

/// A request by HTTP in a guest, whose answer's body is printed, after its status.
pub fn request(guest: &Guest, host: &str, port: u16, path: &str) -> (String, String) {
    let script = format!(
        "exec 3<>/dev/tcp/{host}/{port} || exit
         printf 'GET {path} HTTP/1.1\\r\\nHost: {host}:{port}\\r\\nConnection: close\\r\\n\\r\\n' >&3
         cat <&3"
    );
    let said = guest.run(&script);
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
    (head.to_owned(), body.to_owned())
}
