//! virt-handler's part towards a launcher: it asks by `Cmd` and hears by `Notify`, with tonic's own
//! transport.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use kubevirt_rpc::cmd::cmd_client::CmdClient;
use kubevirt_rpc::cmd::{EmptyRequest, Vmi, VmiRequest};
use kubevirt_rpc::cmd_info::CmdInfoRequest;
use kubevirt_rpc::cmd_info::cmd_info_client::CmdInfoClient;
use kubevirt_rpc::notify::notify_server::{Notify, NotifyServer};
use kubevirt_rpc::notify::{DomainEventRequest, K8sEventRequest, Response};
use kubevirt_rpc::notify_info::notify_info_server::{NotifyInfo, NotifyInfoServer};
use kubevirt_rpc::notify_info::{NotifyInfoRequest, NotifyInfoResponse};
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status, async_trait};

use crate::until;

/// A virt-handler for one launcher.
pub struct Handler {
    share: PathBuf,
    runtime: Runtime,
    heard: Heard,
}

/// What was told, in order: the kind of an event, and its JSON.
type Told = Vec<(String, Value)>;

/// All that was told so far.
#[derive(Clone, Default)]
struct Heard(Arc<(Mutex<Told>, Condvar)>);

impl Heard {
    fn push(&self, kind: &str, json: &[u8]) -> Result<tonic::Response<Response>, Status> {
        let json = serde_json::from_slice(json);
        let json = json.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let (all, changed) = &*self.0;
        all.lock().expect("lock").push((kind.to_owned(), json));
        changed.notify_all();
        Ok(tonic::Response::new(Response {
            success: true,
            message: String::new(),
        }))
    }
}

#[async_trait]
impl Notify for Heard {
    async fn handle_domain_event(
        &self,
        request: Request<DomainEventRequest>,
    ) -> Result<tonic::Response<Response>, Status> {
        let event = request.into_inner();
        self.push(&event.event_type, &event.domain_json)
    }

    async fn handle_k8s_event(
        &self,
        request: Request<K8sEventRequest>,
    ) -> Result<tonic::Response<Response>, Status> {
        self.push("EVENT", &request.into_inner().event_json)
    }
}

#[async_trait]
impl NotifyInfo for Heard {
    async fn info(
        &self,
        _: Request<NotifyInfoRequest>,
    ) -> Result<tonic::Response<NotifyInfoResponse>, Status> {
        Ok(tonic::Response::new(NotifyInfoResponse {
            supported_notify_versions: vec![1],
        }))
    }
}

impl Handler {
    /// Listens below the share directory of a launcher that is yet to come.
    pub fn start(share: &Path) -> Self {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let heard = Heard::default();
        let inside = runtime.enter();
        let socket = UnixListener::bind(share.join("domain-notify-pipe.sock")).expect("bind");
        let server = Server::builder()
            .add_service(NotifyInfoServer::new(heard.clone()))
            .add_service(NotifyServer::new(heard.clone()));
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(socket);
        runtime.spawn(server.serve_with_incoming(incoming));
        drop(inside);
        Self {
            share: share.to_owned(),
            runtime,
            heard,
        }
    }

    /// A client of the launcher, once it is ready: of the version that both have, and it answers.
    pub fn client(&self) -> CmdClient<Channel> {
        let socket = self.share.join("sockets/launcher-sock");
        until("the launcher is not ready", || {
            socket.exists().then_some(())
        });
        self.call(async {
            let endpoint = Endpoint::try_from(format!("unix:{}", socket.display()));
            let channel = endpoint.expect("a path").connect().await.expect("connect");
            let mut info = CmdInfoClient::new(channel.clone());
            let info = info.info(CmdInfoRequest {}).await.expect("info");
            assert_eq!(info.into_inner().supported_cmd_versions, [1]);
            let mut client = CmdClient::new(channel);
            let pong = client.ping(EmptyRequest {}).await.expect("ping");
            assert!(pong.into_inner().success);
            client
        })
    }

    /// Waits for an answer.
    pub fn call<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// Waits until something like that was told; all of the same kind as was told then.
    pub fn wait(&self, what: &str, limit: Duration, is: impl Fn(&str, &Value) -> bool) -> Value {
        let (all, changed) = &*self.heard.0;
        let end = Instant::now() + limit;
        let mut heard = all.lock().expect("lock");
        loop {
            if let Some((_, event)) = heard.iter().find(|(kind, event)| is(kind, event)) {
                return event.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not told: {what}; told were {heard:#?}");
            heard = changed.wait_timeout(heard, left).expect("lock").0;
        }
    }

    /// The kinds of what was told, in order.
    pub fn kinds(&self) -> Vec<String> {
        let heard = self.heard.0.0.lock().expect("lock");
        heard.iter().map(|(kind, _)| kind.clone()).collect()
    }
}

/// A request about a VMI.
pub fn about(vmi: &Value) -> VmiRequest {
    VmiRequest {
        vmi: Some(Vmi {
            vmi_json: vmi.to_string().into_bytes(),
        }),
    }
}
