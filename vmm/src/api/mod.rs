//! A VM's API: HTTP/1.1 on a unix socket of its state directory, for its user alone; what a
//! kubelet's probes ask is answered on a TCP port as well, where one is given. docs/api.yaml
//! describes it.
//!
//! Only here is anything asynchronous. Two threads serve it, so that a call that waits for the
//! network's next turn does not hold up a probe.

mod client;
mod console;
pub mod door;
mod guest;
mod health;
mod metrics;
mod network;
mod snapshot;
#[cfg(test)]
mod tests;
mod vm;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

pub use client::{Client, Error};

use crate::running::Running;
use crate::sandbox::{self, Kind};
use console::LogFile;

/// The socket's name in the state directory.
pub const SOCKET: &str = "api.sock";

const THREADS: usize = 2;
/// Connections at once, of the socket and of the probes' port each.
const CONNECTIONS: usize = 64;
/// How long a request's head may take, and a connection be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// A VM's API, until it is dropped.
pub struct Api {
    runtime: Option<Runtime>,
    log: Option<LogFile>,
}

impl Api {
    /// Serves at `socket`, the probes' part at `probes`, and the serial console itself at `console`,
    /// whose output goes to the file too.
    pub fn start(
        running: Arc<Running>,
        socket: &UnixListener,
        probes: Option<std::net::TcpListener>,
        console: Option<(&UnixListener, File)>,
    ) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name(Kind::Api.name())
            .thread_stack_size(sandbox::STACK)
            .on_thread_start(|| sandbox::confine(Kind::Api))
            .enable_io()
            .enable_time()
            .build()?;
        let inside = runtime.enter();
        let listener = |socket: &UnixListener| {
            let socket = socket.try_clone()?;
            socket.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(socket)
        };
        runtime.spawn(serve(listener(socket)?, router(all(), running.clone())));
        let mut log = None;
        if let Some((console, file)) = console {
            let console = listener(console)?;
            runtime.spawn(console::serve(console, running.console.clone()));
            let file = LogFile::new(&running.console, file);
            runtime.spawn(file.clone().follow());
            log = Some(file);
        }
        if let Some(probes) = probes {
            probes.set_nonblocking(true)?;
            let probes = tokio::net::TcpListener::from_std(probes)?;
            runtime.spawn(serve(probes, router(for_probes(), running)));
        }
        drop(inside);
        Ok(Self {
            runtime: Some(runtime),
            log,
        })
    }

    /// Has its threads do something besides.
    pub fn spawn(&self, errand: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(errand);
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever still asks hears that the VM is gone by the end of the connection.
            runtime.shutdown_background();
        }
        if let Some(log) = &self.log {
            log.finish();
        }
    }
}

type Routes = Vec<(&'static str, MethodRouter<Arc<Running>>)>;

/// What a kubelet and a Prometheus ask.
fn for_probes() -> Routes {
    vec![
        ("/healthz", get(health::healthz)),
        ("/readyz", get(health::readyz)),
        ("/metrics", get(metrics::metrics)),
    ]
}

/// Everything.
fn all() -> Routes {
    let mut routes = for_probes();
    routes.extend([
        ("/v1/vm", get(vm::status)),
        ("/v1/vm/memory", get(vm::memory).put(vm::set_memory)),
        ("/v1/vm/pause", post(vm::pause)),
        ("/v1/vm/resume", post(vm::resume)),
        ("/v1/vm/stop", post(vm::stop)),
        ("/v1/vm/kill", post(vm::kill)),
        ("/v1/vm/snapshot", post(snapshot::take)),
        ("/v1/vm/log", get(console::log)),
        ("/v1/vm/console", get(console::console)),
        ("/v1/guest", get(guest::info)),
        ("/v1/guest/freeze", post(guest::freeze)),
        ("/v1/guest/thaw", post(guest::thaw)),
        ("/v1/guest/password", put(guest::set_password)),
        (
            "/v1/guest/keys",
            get(guest::keys)
                .post(guest::add_keys)
                .delete(guest::remove_keys),
        ),
        (
            "/v1/network/ports",
            get(network::ports)
                .post(network::publish)
                .delete(network::unpublish),
        ),
        ("/v1/network/flows", get(network::flows)),
        ("/v1/network/counters", get(network::counters)),
        (
            "/v1/network/capture",
            get(network::capture)
                .put(network::start_capture)
                .delete(network::stop_capture),
        ),
    ]);
    routes
}

fn router(routes: Routes, running: Arc<Running>) -> Router {
    let add = |router: Router<_>, (path, methods)| router.route(path, methods);
    let nowhere = || async { Refusal(StatusCode::NOT_FOUND, "there is nothing here".to_owned()) };
    let wrong = || async {
        Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "not by that method".to_owned(),
        )
    };
    routes
        .into_iter()
        .fold(Router::new(), add)
        .method_not_allowed_fallback(wrong)
        .fallback(nowhere)
        .with_state(running)
}

/// Serves whoever connects, so many at once; the others wait to be accepted.
async fn serve<L: Listener>(mut listener: L, router: Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Nobody closes the semaphore.
    while let Ok(place) = places.clone().acquire_owned().await {
        let (stream, _) = listener.accept().await;
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection to the API: {error}");
            }
            drop(place);
        });
    }
}

/// Why something was not done, for whoever asked: a status and a sentence.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}
