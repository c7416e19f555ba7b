//! Envoy's bootstrap in the shape that Istio gives it, for a sidecar and for a gateway.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::node::DOMAIN;
use super::{ADMIN, Redirect, Service};

/// Who a proxy is to others: by a certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Where `ca.pem`, `NAME.pem` and `NAME.key` are.
    pub folder: PathBuf,
    /// The workload's service account.
    pub name: String,
}

/// The name by which a service's pods, or who calls them, are known in certificates.
pub fn spiffe(name: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{name}")
}

/// Where spans are sent.
pub type Tracing = SocketAddr;

/// A sidecar.
#[derive(Debug, Clone)]
pub struct Sidecar<'a> {
    /// The workload, as spans name it.
    pub name: &'a str,
    /// How connections come to it.
    pub redirect: &'a Redirect,
    /// The pod's ports that are in a service.
    pub inbound: &'a [u16],
    /// All services.
    pub services: &'a [Service],
    /// Whether it refuses what is in no service (outboundTrafficPolicy REGISTRY_ONLY).
    pub registry_only: bool,
    /// Whether it speaks TLS with others, and with no one else (STRICT).
    pub identity: Option<&'a Identity>,
    /// The collector.
    pub tracing: Option<Tracing>,
}

/// An ingress gateway: plain HTTP on 8080.
#[derive(Debug, Clone)]
pub struct Gateway<'a> {
    /// The paths that it serves: exact ones, and beginnings.
    pub exact: &'a [&'a str],
    /// See `exact`.
    pub prefixes: &'a [&'a str],
    /// Who answers them.
    pub service: &'a Service,
    /// As a sidecar's.
    pub identity: Option<&'a Identity>,
    /// The collector.
    pub tracing: Option<Tracing>,
}

const TYPES: &str = "type.googleapis.com/envoy";
const PASSTHROUGH: &str = "PassthroughCluster";
const BLACKHOLE: &str = "BlackHoleCluster";
const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";
/// What Envoy's connections into the pod come from.
const INBOUND_SOURCE: &str = "127.0.0.6";

impl Sidecar<'_> {
    /// Its bootstrap.
    pub fn bootstrap(&self) -> Value {
        let mut listeners = vec![self.outbound(), self.virtual_inbound(), self.health()];
        let mut ports: BTreeMap<u16, Vec<&Service>> = BTreeMap::new();
        for service in self.services {
            ports.entry(service.port).or_default().push(service);
        }
        for (port, services) in ports {
            listeners.push(self.outbound_http(port, &services));
        }
        let to_agent: SocketAddr = ([127, 0, 0, 1], 15020).into();
        let mut clusters = vec![
            original(PASSTHROUGH),
            fixed(BLACKHOLE, &[]),
            inbound(INBOUND_PASSTHROUGH),
            fixed("agent", &[to_agent.to_string()]),
        ];
        clusters.extend(
            self.inbound
                .iter()
                .map(|port| inbound(&inbound_name(*port))),
        );
        clusters.extend(self.services.iter().map(|s| outbound(s, self.identity)));
        bootstrap(self.name, listeners, clusters, self.tracing)
    }

    fn unknown(&self) -> &'static str {
        if self.registry_only {
            BLACKHOLE
        } else {
            PASSTHROUGH
        }
    }

    /// What goes out, by the address that it was for.
    fn outbound(&self) -> Value {
        let mut listener = listener("virtualOutbound", "0.0.0.0", 15001);
        listener["use_original_dst"] = json!(true);
        listener["filter_chains"] = json!([{"filters": [tcp(self.unknown())]}]);
        listener
    }

    /// Requests to services of that port, told apart by the name in them.
    fn outbound_http(&self, port: u16, services: &[&Service]) -> Value {
        let mut hosts: Vec<Value> = services
            .iter()
            .map(|service| {
                let (name, address) = (&service.name, &service.address);
                let domains: Vec<String> = [
                    name.clone(),
                    format!("{name}.default"),
                    format!("{name}.default.svc"),
                    service.full_name(),
                    address.clone(),
                ]
                .into_iter()
                .flat_map(|name| [format!("{name}:{port}"), name])
                .collect();
                json!({
                    "name": format!("{}:{port}", service.full_name()),
                    "domains": domains,
                    "routes": [{"match": {"prefix": "/"}, "route": route(&service.outbound())}],
                })
            })
            .collect();
        hosts.push(if self.registry_only {
            json!({"name": "block_all", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "direct_response": {"status": 502}}]})
        } else {
            json!({"name": "allow_any", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": PASSTHROUGH, "timeout": "0s"}}]})
        });
        let name = format!("0.0.0.0_{port}");
        let mut listener = listener(&name, "0.0.0.0", port);
        listener["bind_to_port"] = json!(false);
        listener["traffic_direction"] = json!("OUTBOUND");
        let manager = http(&format!("outbound_{name}"), hosts, self.tracing.is_some());
        listener["filter_chains"] = json!([{"filters": [manager]}]);
        listener
    }

    /// What comes in: to a port of a service as requests, to another as it is.
    fn virtual_inbound(&self) -> Value {
        let mut listener = listener("virtualInbound", "0.0.0.0", 15006);
        listener["traffic_direction"] = json!("INBOUND");
        let mut filters = vec![
            original_dst(),
            json!({"name": "tls_inspector", "typed_config": {
                "@type": format!("{TYPES}.extensions.filters.listener.tls_inspector.v3.TlsInspector")}}),
        ];
        if let Redirect::Istio {
            transparent: true, ..
        } = self.redirect
        {
            listener["transparent"] = json!(true);
            filters.push(original_src());
        }
        listener["listener_filters"] = json!(filters);
        let mut chains: Vec<Value> = self.inbound.iter().map(|port| {
            let cluster = inbound_name(*port);
            let host = json!({"name": "inbound", "domains": ["*"], "routes": [
                {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}]});
            let mut manager = http(&format!("inbound_{port}"), vec![host], self.tracing.is_some());
            if self.identity.is_some() {
                manager["typed_config"]["forward_client_cert_details"] = json!("APPEND_FORWARD");
                manager["typed_config"]["set_current_client_cert_details"] = json!({"uri": true});
            }
            json!({"name": cluster, "filter_chain_match": {"destination_port": port}, "filters": [manager]})
        }).collect();
        chains.push(json!({"name": "passthrough", "filters": [tcp(INBOUND_PASSTHROUGH)]}));
        if let Some(identity) = self.identity {
            let socket = downstream_tls(identity, "istio");
            for chain in &mut chains {
                chain["transport_socket"] = socket.clone();
            }
        }
        listener["filter_chains"] = json!(chains);
        listener
    }

    /// Whether it is ready, which its agent knows.
    fn health(&self) -> Value {
        let mut listener = listener("health", "0.0.0.0", 15021);
        let host = json!({"name": "agent", "domains": ["*"], "routes": [
            {"match": {"path": "/healthz/ready"}, "route": {"cluster": "agent"}}]});
        listener["filter_chains"] = json!([{"filters": [http("agent", vec![host], false)]}]);
        listener
    }
}

impl Gateway<'_> {
    /// Its bootstrap.
    pub fn bootstrap(&self) -> Value {
        let cluster = self.service.outbound();
        let exact = self.exact.iter().map(|path| json!({"path": path}));
        let prefixes = self.prefixes.iter().map(|prefix| json!({"prefix": prefix}));
        let routes: Vec<Value> = exact
            .chain(prefixes)
            .map(|paths| json!({"match": paths, "route": route(&cluster)}))
            .collect();
        let host = json!({"name": "bookinfo", "domains": ["*"], "routes": routes});
        let mut listener = listener("0.0.0.0_8080", "0.0.0.0", 8080);
        listener["traffic_direction"] = json!("OUTBOUND");
        let manager = http("outbound_0.0.0.0_8080", vec![host], self.tracing.is_some());
        listener["filter_chains"] = json!([{"filters": [manager]}]);
        let clusters = vec![outbound(self.service, self.identity)];
        bootstrap(
            "istio-ingressgateway",
            vec![listener],
            clusters,
            self.tracing,
        )
    }
}

/// The mark of a proxy's sockets: Istio's sidecar's by TPROXY, and each of ztunnel's.
const MARK: i32 = 0x539;

/// In ztunnel's place: what comes in, by a tunnel or without one, goes on from its client's own
/// address, and all of its sockets are marked. What goes out does by a tunnel (HBONE: CONNECT by
/// HTTP/2 in the mesh's TLS) if it is `tunnelled`. Who may call whom is not asked, beyond that both
/// are of the mesh.
pub fn ztunnel(identity: &Identity, tunnelled: bool) -> Value {
    let mut inside = listener("inbound", "0.0.0.0", 15006);
    inside["listener_filters"] = json!([original_dst(), original_src()]);
    inside["filter_chains"] = json!([{"filters": [tcp("inbound")]}]);
    let mut outside = relay("outbound", 15001);
    let mut out = original("outbound");
    // SO_MARK, before the socket is bound.
    let mark = json!({"level": libc::SOL_SOCKET, "name": libc::SO_MARK, "int_value": MARK,
        "state": "STATE_PREBIND"});
    out["upstream_bind_config"] = json!({"source_address": {"address": "0.0.0.0", "port_value": 0},
        "socket_options": [mark]});
    if tunnelled {
        let proxy = &mut outside["filter_chains"][0]["filters"][0]["typed_config"];
        proxy["tunneling_config"] = json!({"hostname": "%DOWNSTREAM_LOCAL_ADDRESS%"});
        out["original_dst_lb_config"] = json!({"upstream_port_override": HBONE});
        out["transport_socket"] = tls("Upstream", identity, "h2", &in_mesh());
        out["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}}}});
    }
    let mut tunnel = original("tunnel");
    tunnel["original_dst_lb_config"] =
        json!({"use_http_header": true, "http_header_name": ":authority"});
    let listeners = vec![inside, outside, tunnel_end(identity)];
    let clusters = vec![original("inbound"), out, tunnel];
    bootstrap("ztunnel", listeners, clusters, None)
}

/// Where tunnels end.
const HBONE: u16 = 15008;

/// What comes by a tunnel goes on to where its CONNECT says.
fn tunnel_end(identity: &Identity) -> Value {
    let connect = json!([{"upgrade_type": "CONNECT", "connect_config": {}}]);
    let host = json!({"name": "tunnel", "domains": ["*"], "routes": [{
        "match": {"connect_matcher": {}},
        "route": {"cluster": "tunnel", "upgrade_configs": connect}}]});
    let mut manager = http("tunnel", vec![host], false);
    let settings = &mut manager["typed_config"];
    settings["codec_type"] = json!("HTTP2");
    settings["http2_protocol_options"] = json!({"allow_connect": true});
    settings["upgrade_configs"] = json!([{"upgrade_type": "CONNECT"}]);
    let source = json!({"name": "original_src", "typed_config": {
        "@type": format!("{TYPES}.extensions.filters.http.original_src.v3.OriginalSrc"),
        "mark": MARK}});
    if let Some(filters) = settings["http_filters"].as_array_mut() {
        filters.insert(0, source);
    }
    let mut listener = listener("tunnel", "0.0.0.0", HBONE);
    let socket = downstream_tls(identity, "h2");
    listener["filter_chains"] = json!([{"filters": [manager], "transport_socket": socket}]);
    listener
}

/// In Linkerd's proxy's place: what comes in and what goes out goes on to where it was going.
pub fn linkerd() -> Value {
    let listeners = vec![relay("inbound", 4143), relay("outbound", 4140)];
    let clusters = vec![original("inbound"), original("outbound")];
    bootstrap("linkerd", listeners, clusters, None)
}

/// Connections to that port go on to where they were going.
fn relay(name: &str, port: u16) -> Value {
    let mut listener = listener(name, "0.0.0.0", port);
    listener["listener_filters"] = json!([original_dst()]);
    listener["filter_chains"] = json!([{"filters": [tcp(name)]}]);
    listener
}

fn original_dst() -> Value {
    json!({"name": "original_dst", "typed_config": {
        "@type": format!("{TYPES}.extensions.filters.listener.original_dst.v3.OriginalDst")}})
}

/// Connections go on from their client's own address.
fn original_src() -> Value {
    json!({"name": "original_src", "typed_config": {
        "@type": format!("{TYPES}.extensions.filters.listener.original_src.v3.OriginalSrc"),
        "mark": MARK}})
}

fn bootstrap(
    name: &str,
    listeners: Vec<Value>,
    mut clusters: Vec<Value>,
    tracing: Option<Tracing>,
) -> Value {
    if let Some(collector) = tracing {
        clusters.push(fixed("zipkin", &[collector.to_string()]));
    }
    json!({
        "node": {"id": name, "cluster": format!("{name}.default")},
        "admin": {"address": address("127.0.0.1", ADMIN)},
        // Each span is sent when it ends.
        "layered_runtime": {"layers": [{"name": "static", "static_layer": {
            "tracing.zipkin.min_flush_spans": 1}}]},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn address(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn listener(name: &str, at: &str, port: u16) -> Value {
    json!({"name": name, "address": address(at, port)})
}

fn inbound_name(port: u16) -> String {
    format!("inbound|{port}||")
}

fn tcp(cluster: &str) -> Value {
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": format!("{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": cluster, "cluster": cluster}})
}

/// Requests, by hosts and routes.
fn http(prefix: &str, hosts: Vec<Value>, traced: bool) -> Value {
    let mut manager = json!({
        "@type": format!("{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": prefix,
        "route_config": {"name": prefix, "virtual_hosts": hosts, "validate_clusters": false},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {
            "@type": format!("{TYPES}.extensions.filters.http.router.v3.Router")}}],
        "upgrade_configs": [{"upgrade_type": "websocket"}],
    });
    if traced {
        manager["tracing"] = json!({"provider": {"name": "zipkin", "typed_config": {
            "@type": format!("{TYPES}.config.trace.v3.ZipkinConfig"),
            "collector_cluster": "zipkin", "collector_endpoint": "/api/v2/spans",
            "collector_endpoint_version": "HTTP_JSON",
            "trace_id_128bit": true, "shared_span_context": false}}});
    }
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager})
}

/// What Istio does with a request for a service: it is tried again where nobody can have got it.
fn route(cluster: &str) -> Value {
    json!({"cluster": cluster, "timeout": "0s", "retry_policy": {
        "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
        "num_retries": 2, "retriable_status_codes": [503],
        "host_selection_retry_max_attempts": "5",
        "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": format!(
                "{TYPES}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")}}]}})
}

/// Connections go where they were going.
fn original(name: &str) -> Value {
    json!({"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s"})
}

/// The same into the pod.
fn inbound(name: &str) -> Value {
    let mut cluster = original(name);
    cluster["upstream_bind_config"] = json!({"source_address": {
        "address": INBOUND_SOURCE, "port_value": 0}});
    cluster
}

fn fixed(name: &str, to: &[String]) -> Value {
    let endpoints: Vec<Value> = to
        .iter()
        .map(|to| {
            let to: SocketAddr = to.parse().unwrap();
            json!({"endpoint": {"address": address(&to.ip().to_string(), to.port())}})
        })
        .collect();
    json!({"name": name, "type": "STATIC", "connect_timeout": "10s", "load_assignment": {
        "cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
}

/// A service's pods, which it calls itself.
fn outbound(service: &Service, identity: Option<&Identity>) -> Value {
    let to: Vec<String> = service
        .endpoints
        .iter()
        .map(|(to, port)| format!("{to}:{port}"))
        .collect();
    let mut cluster = fixed(&service.outbound(), &to);
    // Istio bounds nothing unless a DestinationRule does; Envoy has three requests at a time tried
    // again.
    cluster["circuit_breakers"] = json!({"thresholds": [{"max_connections": u32::MAX,
        "max_pending_requests": u32::MAX, "max_requests": u32::MAX, "max_retries": u32::MAX}]});
    if let Some(identity) = identity {
        cluster["transport_socket"] = upstream_tls(identity, service);
    }
    cluster
}

/// Whoever is of the mesh.
fn in_mesh() -> Value {
    json!({"prefix": "spiffe://cluster.local/"})
}

fn downstream_tls(identity: &Identity, protocol: &str) -> Value {
    let mut socket = tls("Downstream", identity, protocol, &in_mesh());
    socket["typed_config"]["require_client_certificate"] = json!(true);
    socket
}

fn upstream_tls(identity: &Identity, service: &Service) -> Value {
    let whom = json!({"exact": spiffe(&service.name)});
    let mut socket = tls("Upstream", identity, "istio", &whom);
    let name = format!("outbound_.{}_._.{}.{DOMAIN}", service.port, service.name);
    socket["typed_config"]["sni"] = json!(name);
    socket
}

/// One side of Istio's TLS for that protocol, with whom the other side has to be.
fn tls(side: &str, identity: &Identity, protocol: &str, other: &Value) -> Value {
    let file =
        |end: &str| json!({"filename": identity.folder.join(format!("{}.{end}", identity.name))});
    json!({"name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.{side}TlsContext"),
        "common_tls_context": {
            "tls_certificates": [{"certificate_chain": file("pem"), "private_key": file("key")}],
            "alpn_protocols": [protocol],
            "validation_context": {
                "trusted_ca": {"filename": identity.folder.join("ca.pem")},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": other}]}}}})
}
