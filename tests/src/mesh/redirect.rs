//! What meshes load into a pod's network, chain for chain, so that its connections go through a
//! proxy.

use std::fmt::Write;

use super::{Pod, User};

/// How a pod's connections come to its proxy.
#[derive(Debug, Clone)]
pub enum Redirect {
    /// Istio's init container.
    Istio {
        /// traffic.sidecar.istio.io/includeOutboundIPRanges: networks, or `*`.
        include: &'static str,
        /// excludeInboundPorts.
        exclude_inbound: &'static [u16],
        /// excludeOutboundPorts.
        exclude_outbound: &'static [u16],
        /// Whether names are looked up at the proxy (ISTIO_META_DNS_CAPTURE).
        dns: bool,
        /// Whether what comes in does by TPROXY (interceptionMode).
        transparent: bool,
    },
    /// Istio's ambient mode: its node's agent.
    Ambient,
    /// Linkerd's init container.
    Linkerd,
}

impl Redirect {
    /// What Istio does unless it is told something else.
    pub const ISTIO: Self = Self::Istio {
        include: "*",
        exclude_inbound: &[],
        exclude_outbound: &[],
        dns: false,
        transparent: false,
    };

    /// Who the proxy is that these rules spare.
    pub fn proxy(&self) -> User {
        match self {
            Self::Istio {
                transparent: true, ..
            } => User::IstioTransparent,
            Self::Istio { .. } => User::Istio,
            // Only its sockets' mark tells it from others.
            Self::Ambient => User::Root,
            Self::Linkerd => User::Linkerd,
        }
    }

    /// Loads them for that pod.
    pub fn load(&self, pod: &Pod) {
        match self {
            Self::Istio {
                include,
                exclude_inbound,
                exclude_outbound,
                dns,
                transparent,
            } => {
                let mut rules = nat(
                    include,
                    exclude_inbound,
                    exclude_outbound,
                    *dns,
                    *transparent,
                );
                if *transparent {
                    rules += &mangle(exclude_inbound);
                    route_marked(pod, "1337", "133");
                }
                if *dns {
                    rules += DNS_ZONES;
                }
                pod.load(&rules);
            }
            Self::Ambient => {
                route_marked(pod, "0x111/0xfff", "100");
                pod.load(AMBIENT);
            }
            Self::Linkerd => pod.load(LINKERD),
        }
    }
}

/// What has that mark is for this host, whatever its address.
fn route_marked(pod: &Pod, mark: &str, table: &str) {
    pod.shell(&format!(
        "ip rule add fwmark {mark} lookup {table}
         ip route add local 0.0.0.0/0 dev lo table {table}"
    ));
}

/// The proxy's own ports, which the injector excludes.
const OWN: [u16; 3] = [15090, 15021, 15020];

fn nat(include: &str, inbound: &[u16], outbound: &[u16], dns: bool, transparent: bool) -> String {
    let mut rules = String::from(
        "*nat
:ISTIO_INBOUND -
:ISTIO_REDIRECT -
:ISTIO_IN_REDIRECT -
:ISTIO_OUTPUT -
:ISTIO_OUTPUT_DNS -
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
",
    );
    if !transparent {
        rules += "-A PREROUTING -p tcp -j ISTIO_INBOUND\n";
        for port in OWN.iter().chain(inbound) {
            writeln!(rules, "-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN").unwrap();
        }
        rules += "-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n";
    }
    rules += "-A OUTPUT -j ISTIO_OUTPUT\n";
    for port in outbound {
        writeln!(rules, "-A ISTIO_OUTPUT -p tcp --dport {port} -j RETURN").unwrap();
    }
    rules += "-A ISTIO_OUTPUT -o lo -s 127.0.0.6/32 -j RETURN\n";
    let loops = "-A ISTIO_OUTPUT -o lo ! -d 127.0.0.1/32 -p tcp";
    for owner in ["uid", "gid"] {
        let (own, others) = match (dns, owner) {
            (true, "uid") => ("-m multiport ! --dports 53,15008", "-p tcp ! --dport 53 "),
            (true, _) => ("! --dport 15008", "-p tcp ! --dport 53 "),
            (false, _) => ("! --dport 15008", ""),
        };
        writeln!(
            rules,
            "{loops} {own} -m owner --{owner}-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo {others}-m owner ! --{owner}-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --{owner}-owner 1337 -j RETURN"
        )
        .unwrap();
    }
    if dns {
        rules += "-A ISTIO_OUTPUT -j ISTIO_OUTPUT_DNS
-A ISTIO_OUTPUT_DNS -p tcp --dport 53 -d 172.30.0.10/32 -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 1337 -j RETURN
-A ISTIO_OUTPUT_DNS -p udp --dport 53 -d 172.30.0.10/32 -j REDIRECT --to-port 15053
";
    }
    rules += "-A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n";
    if include == "*" {
        rules += "-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n";
    } else {
        for network in include.split(',') {
            writeln!(rules, "-A ISTIO_OUTPUT -d {network} -j ISTIO_REDIRECT").unwrap();
        }
    }
    rules + "COMMIT\n"
}

fn mangle(exclude: &[u16]) -> String {
    let mut rules = String::from(
        "*mangle
:ISTIO_DIVERT -
:ISTIO_TPROXY -
:ISTIO_INBOUND -
-A ISTIO_DIVERT -j MARK --set-mark 1337
-A ISTIO_DIVERT -j ACCEPT
-A ISTIO_TPROXY ! -d 127.0.0.1/32 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A ISTIO_INBOUND -p tcp -m mark --mark 1337 -j RETURN
-A ISTIO_INBOUND -p tcp -s 127.0.0.6/32 -i lo -j RETURN
-A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark 1338 -j RETURN
",
    );
    for port in OWN.iter().chain(exclude) {
        writeln!(rules, "-A ISTIO_INBOUND -p tcp --dport {port} -j RETURN").unwrap();
    }
    rules
        + "-A ISTIO_INBOUND -p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT
-A ISTIO_INBOUND -p tcp -j ISTIO_TPROXY
-A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark
-A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN
-A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --uid-owner 1337 -j MARK --set-mark 1338
-A OUTPUT ! -d 127.0.0.1/32 -p tcp -o lo -m owner --gid-owner 1337 -j MARK --set-mark 1338
-A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark
COMMIT
"
}

/// The proxy's own questions are told from those that it answers, though all have one port.
const DNS_ZONES: &str = "*raw
:ISTIO_OUTPUT_DNS -
:ISTIO_INBOUND -
-A OUTPUT -j ISTIO_OUTPUT_DNS
-A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1
-A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --uid-owner 1337 -j CT --zone 2
-A ISTIO_OUTPUT_DNS -p udp --dport 53 -m owner --gid-owner 1337 -j CT --zone 1
-A ISTIO_OUTPUT_DNS -p udp --sport 15053 -m owner --gid-owner 1337 -j CT --zone 2
-A PREROUTING -j ISTIO_INBOUND
-A ISTIO_OUTPUT_DNS -p udp --dport 53 -d 172.30.0.10/32 -j CT --zone 2
-A ISTIO_INBOUND -p udp --sport 53 -s 172.30.0.10/32 -j CT --zone 1
COMMIT
";

/// ztunnel's sockets have the mark 0x539, kubelet's probes come from 169.254.7.127.
const AMBIENT: &str = "*mangle
:ISTIO_PRERT -
:ISTIO_OUTPUT -
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT -
:ISTIO_OUTPUT -
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -j ACCEPT
-A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -j ACCEPT
-A ISTIO_OUTPUT ! -o lo -p udp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
*raw
:ISTIO_PRERT -
:ISTIO_OUTPUT -
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p udp --dport 53 -m mark --mark 0x539/0xfff -j CT --zone 1
-A ISTIO_PRERT -p udp --sport 53 -m mark ! --mark 0x539/0xfff -j CT --zone 1
COMMIT
";

const LINKERD: &str = "*nat
:PROXY_INIT_REDIRECT -
:PROXY_INIT_OUTPUT -
-A PREROUTING -j PROXY_INIT_REDIRECT
-A PROXY_INIT_REDIRECT -p tcp -m multiport --dports 4190,4191 -j RETURN
-A PROXY_INIT_REDIRECT -p tcp -j REDIRECT --to-ports 4143
-A OUTPUT -j PROXY_INIT_OUTPUT
-A PROXY_INIT_OUTPUT -m owner --uid-owner 2102 -j RETURN
-A PROXY_INIT_OUTPUT -o lo -j RETURN
-A PROXY_INIT_OUTPUT -p tcp -j REDIRECT --to-ports 4140
COMMIT
";
