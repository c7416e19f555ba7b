//! The VM's network: the requests that netdev answers.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use netdev::publish::Publish;
use netdev::requests::{self, Action, Request};
use serde::Deserialize;
use serde_json::Value;

use super::Refusal;
use crate::plan::on_loopback;
use crate::running::Running;
use crate::sandbox;

type Vm = State<Arc<Running>>;
type Answer = Result<Json<Value>, Refusal>;

fn ask(running: &Running, request: Request) -> Answer {
    let conflict = |why| Refusal(StatusCode::CONFLICT, why);
    let network = running
        .network
        .as_ref()
        .ok_or_else(|| conflict("the VM has no network".to_owned()))?;
    requests::answer(request, network)
        .map(Json)
        .map_err(conflict)
}

pub async fn ports(State(running): Vm) -> Answer {
    ask(&running, Request::Forwards)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    publish: String,
}

impl Port {
    /// As written, on the loopback where no address is.
    fn publish(self) -> Result<String, Refusal> {
        let parsed = self.publish.parse::<Publish>();
        let publish = parsed.map_err(|why| Refusal(StatusCode::BAD_REQUEST, why))?;
        Ok(on_loopback(publish).to_string())
    }
}

pub async fn publish(State(running): Vm, Json(port): Json<Port>) -> Answer {
    let publish = port.publish()?;
    ask(&running, Request::Add { publish })
}

pub async fn unpublish(State(running): Vm, Query(port): Query<Port>) -> Answer {
    let publish = port.publish()?;
    ask(&running, Request::Remove { publish })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Most {
    most: Option<usize>,
}

pub async fn flows(State(running): Vm, Query(Most { most }): Query<Most>) -> Answer {
    ask(&running, Request::Flows { most })
}

pub async fn counters(State(running): Vm) -> Answer {
    ask(&running, Request::Counters)
}

pub async fn capture(State(running): Vm) -> Answer {
    ask(&running, Request::capture(Action::Status))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capture {
    path: PathBuf,
    snaplen: Option<u32>,
    max_bytes: Option<u64>,
}

pub async fn start_capture(State(running): Vm, Json(capture): Json<Capture>) -> Answer {
    let request = Request::Capture {
        action: Action::Start,
        path: Some(capture.path),
        snaplen: capture.snaplen,
        max_bytes: capture.max_bytes,
    };
    ask(&running, request).map_err(|Refusal(status, mut why)| {
        if why.contains("ermission denied") && sandbox::entered().is_some() {
            why += "; the sandbox lets a VM write below its state directory and --capture-dir only";
        }
        Refusal(status, why)
    })
}

pub async fn stop_capture(State(running): Vm) -> Answer {
    ask(&running, Request::capture(Action::Stop))
}
