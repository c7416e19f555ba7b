//! Services of the cluster, and what kube-proxy loads for them.

use std::fmt::Write;

use super::node::DOMAIN;

/// A service with one port.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name in its namespace.
    pub name: String,
    /// Its virtual address.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Who answers, and at which port.
    pub endpoints: Vec<(String, u16)>,
}

impl Service {
    /// One that nobody answers.
    pub fn new(name: &str, address: &str, port: u16) -> Self {
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            port,
            endpoints: Vec::new(),
        }
    }

    /// The same with one more endpoint.
    pub fn of(mut self, address: impl ToString, port: u16) -> Self {
        self.endpoints.push((address.to_string(), port));
        self
    }

    /// Its name in the cluster.
    pub fn full_name(&self) -> String {
        format!("{}.{DOMAIN}", self.name)
    }

    /// The name of Envoy's cluster for those who call it.
    pub fn outbound(&self) -> String {
        format!("outbound|{}||{}", self.port, self.full_name())
    }
}

/// The pods' addresses.
const PODS: &str = "10.1.0.0/16";

/// kube-proxy's rules, in its iptables mode: each service a chain that chooses an endpoint, each
/// endpoint a chain; a pod that gets to itself is masqueraded, as who comes from outside is.
pub fn rules<'a>(services: impl Iterator<Item = &'a Service>) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for service in services {
        let (name, address, port) = (service.name.to_uppercase(), &service.address, service.port);
        writeln!(chains, ":KUBE-SVC-{name} -").unwrap();
        for protocol in ["tcp", "udp"] {
            let to = format!("-d {address}/32 -p {protocol} --dport {port}");
            writeln!(
                rules,
                "-A KUBE-SERVICES {to} -j KUBE-SVC-{name}
-A KUBE-SVC-{name} ! -s {PODS} {to} -j KUBE-MARK-MASQ"
            )
            .unwrap();
        }
        for (number, (endpoint, port)) in service.endpoints.iter().enumerate() {
            let left = service.endpoints.len() - number;
            let chance = if left == 1 {
                String::new()
            } else {
                format!(
                    "-m statistic --mode random --probability {:.5} ",
                    1.0 / left as f64
                )
            };
            writeln!(chains, ":KUBE-SEP-{name}-{number} -").unwrap();
            writeln!(
                rules,
                "-A KUBE-SVC-{name} {chance}-j KUBE-SEP-{name}-{number}
-A KUBE-SEP-{name}-{number} -s {endpoint}/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-{name}-{number} -p tcp -j DNAT --to-destination {endpoint}:{port}
-A KUBE-SEP-{name}-{number} -p udp -j DNAT --to-destination {endpoint}:{port}"
            )
            .unwrap();
        }
    }
    format!(
        "*nat
:KUBE-SERVICES -
:KUBE-POSTROUTING -
:KUBE-MARK-MASQ -
{chains}-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
{rules}COMMIT
"
    )
}
