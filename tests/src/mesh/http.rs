//! Servers of HTTP: one that tells who has called it, and Istio's agent.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Runtime};

/// A server that answers on a thread of its own; ends with this.
#[derive(Debug)]
pub struct Server {
    _runtime: Runtime,
}

impl Server {
    /// Starts one at a socket, which may be of another network than this thread's; what it calls
    /// itself is in this thread's.
    pub fn start(listener: TcpListener, routes: Router) -> Self {
        listener.set_nonblocking(true).unwrap();
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let service = routes.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(listener, service).await
        });
        Self { _runtime: runtime }
    }
}

/// Answers everything by who asks, for what, with which headers: as [`SEEN`] does; /held/SECONDS
/// after so long.
pub fn seen() -> Router {
    Router::new().fallback(tell)
}

async fn tell(ConnectInfo(peer): ConnectInfo<SocketAddr>, uri: Uri, headers: HeaderMap) -> String {
    let held = uri.path().strip_prefix("/held/");
    if let Some(seconds) = held.and_then(|seconds| seconds.parse().ok()) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    let headers: BTreeMap<_, _> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
        .collect();
    let told: Value =
        json!({"peer": peer.ip().to_canonical(), "path": uri.path(), "headers": headers});
    told.to_string()
}

/// Where a container is asked, by the path at which Istio's agent is asked for it: the port, and
/// the path if more is asked than whether it is open.
pub type Probers = BTreeMap<String, (u16, Option<String>)>;

/// What Istio's agent does at its port, 15020: says that the proxy is ready, and asks the containers
/// of the pod at `address` in kubelet's place, by the way that Envoy's own connections into the pod take.
pub fn agent(address: Ipv4Addr, probers: Probers) -> Router {
    let ask = async |workload: SocketAddr, path: Option<String>| {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::new(127, 0, 0, 6), 0).into())?;
        let mut stream = socket.connect(workload).await?;
        let Some(path) = path else {
            return Ok(true);
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer.starts_with("HTTP/1.1 200 "))
    };
    let ready = Router::new().route("/healthz/ready", get(async || StatusCode::OK));
    probers
        .into_iter()
        .fold(ready, |router, (asked, (port, path))| {
            let probe = move || async move {
                match ask((address, port).into(), path).await {
                    Ok(true) => StatusCode::OK,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                }
            };
            router.route(&asked, get(probe))
        })
}

/// The same as [`seen`] in Ruby, for a guest: on each port that it is given.
pub const SEEN: &str = r#"
require 'json'
require 'webrick'
class Quick < WEBrick::HTTPServlet::AbstractServlet
  def service(request, response)
    sleep($1.to_i) if request.path =~ %r{\A/held/(\d+)\z}
    response.body = { peer: request.peeraddr[3].delete_prefix('::ffff:'), path: request.path,
                      headers: request.header.transform_values(&:first) }.to_json
  end
end
BasicSocket.do_not_reverse_lookup = true
server = WEBrick::HTTPServer.new(Port: ARGV[0], DoNotReverseLookup: true)
ARGV.drop(1).each { |port| server.listen('*', port) }
server.mount('/', Quick)
server.start
"#;
