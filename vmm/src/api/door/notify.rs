//! virt-handler is told: how the domain is, and what belongs into the VMI's events.

use std::path::PathBuf;
use std::time::Duration;

use kubevirt_rpc::notify::notify_client::NotifyClient;
use kubevirt_rpc::notify::{DomainEventRequest, K8sEventRequest, Response};
use kubevirt_rpc::notify_info::NotifyInfoRequest;
use kubevirt_rpc::notify_info::notify_info_client::NotifyInfoClient;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::wire::Wire;
use crate::domain::Domain;

/// As virt-launcher has it: how long one telling may take, when it is tried again, and until when.
const ONE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);
const ALL: Duration = Duration::from_secs(20);

/// The way to virt-handler.
pub struct Notifier {
    socket: PathBuf,
    /// Somebody has given the VMI: there is a virt-handler, also while it starts anew.
    awaited: bool,
    client: Option<NotifyClient<Wire>>,
}

/// Something to tell.
#[derive(Clone)]
pub enum Told {
    /// The domain, with `ADDED` or `MODIFIED`.
    Domain(&'static str, Value),
    /// An event of Kubernetes'.
    Event(Value),
}

impl Notifier {
    /// Whoever listens at `socket`; where nobody is `awaited`, maybe nobody does.
    pub fn new(socket: PathBuf, awaited: bool) -> Self {
        Self {
            socket,
            awaited,
            client: None,
        }
    }

    /// Whether somebody is there to be told.
    pub fn is_heard(&self) -> bool {
        self.awaited || self.client.is_some() || self.socket.exists()
    }

    /// Tells it, again and again for a while.
    pub async fn tell(&mut self, what: &Told) {
        let end = Instant::now() + ALL;
        while self.is_heard() {
            let why = match timeout(ONE, self.try_to_tell(what)).await {
                Ok(Ok(())) => return,
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer"),
            };
            self.client = None;
            let passing = [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted];
            if !passing.contains(&why.code()) || Instant::now() + PAUSE > end {
                let why = why.message();
                tracing::warn!("virt-handler was not told how the VM is: {why}");
                return;
            }
            sleep(PAUSE).await;
        }
    }

    async fn try_to_tell(&mut self, what: &Told) -> Result<(), Status> {
        let client = match &mut self.client {
            Some(client) => client,
            none => none.insert(connect(&self.socket).await?),
        };
        let response = match what.clone() {
            Told::Domain(kind, domain) => {
                let event = DomainEventRequest {
                    domain_json: domain.to_string().into_bytes(),
                    status_json: Vec::new(),
                    event_type: kind.to_owned(),
                };
                client.handle_domain_event(event).await
            }
            Told::Event(event) => {
                let event_json = event.to_string().into_bytes();
                client
                    .handle_k8s_event(K8sEventRequest { event_json })
                    .await
            }
        };
        let Response { success, message } = response?.into_inner();
        match success || message.is_empty() {
            true => Ok(()),
            false => Err(Status::failed_precondition(message)),
        }
    }
}

async fn connect(socket: &std::path::Path) -> Result<NotifyClient<Wire>, Status> {
    let failed = |error| Status::unavailable(format!("{}: {error}", socket.display()));
    let wire = Wire::connect(socket).await.map_err(failed)?;
    let mut info = NotifyInfoClient::with_origin(wire.clone(), Wire::origin());
    let has = info.info(NotifyInfoRequest {}).await?.into_inner();
    if !has
        .supported_notify_versions
        .contains(&kubevirt_rpc::VERSION)
    {
        let has = has.supported_notify_versions;
        return Err(Status::failed_precondition(format!(
            "it speaks versions {has:?} of Notify, not {}",
            kubevirt_rpc::VERSION
        )));
    }
    Ok(NotifyClient::with_origin(wire, Wire::origin()))
}

/// A warning among the VMI's events.
pub fn warning(domain: &Domain, reason: &str, message: &str) -> Value {
    json!({
        "metadata": { "creationTimestamp": null },
        "involvedObject": {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachineInstance",
            "name": domain.name,
            "namespace": domain.namespace,
            "uid": domain.uid,
        },
        "type": "Warning",
        "reason": reason,
        "message": message,
    })
}
