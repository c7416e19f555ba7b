//! gRPC over a unix socket: HTTP/2, whose requests tonic's services answer.

use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kubevirt_rpc::cmd::cmd_server::CmdServer;
use kubevirt_rpc::cmd_info::cmd_info_server::CmdInfoServer;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;

use super::Shared;
use super::cmd::{Launcher, refusal};

/// Connections at once, and calls at once on each.
const CONNECTIONS: usize = 64;
const CALLS: u32 = 16;
/// After an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves whoever connects, so many at once; the others wait to be accepted.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Nobody closes the semaphore.
    while let Ok(place) = places.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("virt-handler's door: {error}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let shared = shared.clone();
        let answer = service_fn(move |request| answer(shared.clone(), request));
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(CALLS)
            .serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection at virt-handler's door: {error}");
            }
            drop(place);
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let launcher = Launcher(shared);
    match path.trim_start_matches('/').split_once('/') {
        Some(("kubevirt.cmd.info.CmdInfo", _)) => CmdInfoServer::new(launcher).call(request).await,
        Some(("kubevirt.cmd.v1.Cmd", name)) => match refusal(name) {
            None => CmdServer::new(launcher).call(request).await,
            Some(why) => Ok(Status::unimplemented(format!("{name}: {why}")).into_http()),
        },
        _ => Ok(Status::unimplemented("no such service here").into_http()),
    }
}

/// A connection to somebody's gRPC.
#[derive(Clone)]
pub struct Wire(SendRequest<Body>);

impl Wire {
    /// Whoever listens at `socket`.
    pub async fn connect(socket: &Path) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let stream = UnixStream::connect(socket).await?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// What HTTP/2 wants to be told of a socket that has no name.
    pub fn origin() -> Uri {
        Uri::from_static("http://localhost")
    }
}

impl Service<Request<Body>> for Wire {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
