//! What a request has a network do, and say.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::{Action, Request};
use crate::config::Forward;
use crate::control::{Control, Error, FlowStatus, ForwardStatus};
use crate::flow::Carried;
use crate::link::capture::{Options, Status};
use crate::publish::Publish;

/// Flows that are listed unless told.
const LISTED: usize = 1000;

/// Does what a request asks; an error is a sentence for whoever asked.
pub fn answer(request: Request, control: &Control) -> Result<Value, String> {
    let said = |error: Error| error.to_string();
    match request {
        Request::Forwards => {
            let forwards = control.forwards().map_err(said)?;
            let forwards: Vec<_> = forwards.iter().map(forward_status).collect();
            Ok(json!({ "forwards": forwards }))
        }
        Request::Add { publish } => add(&publish, control),
        Request::Remove { publish } => remove(&publish, control),
        Request::Flows { most } => {
            let flows = control.flows(most.unwrap_or(LISTED)).map_err(said)?;
            let listed: Vec<_> = flows.flows.iter().map(flow_status).collect();
            Ok(json!({ "total": flows.total, "flows": listed }))
        }
        Request::Counters => {
            let counters = control.counters().all().into_iter();
            let counters: Map<_, _> = counters.map(|(n, v)| (n.to_owned(), v.into())).collect();
            Ok(json!({ "counters": counters }))
        }
        Request::Metrics => Ok(json!({ "metrics": control.counters().prometheus() })),
        Request::Capture {
            action,
            path,
            snaplen,
            max_bytes,
        } => {
            let status = match (action, path) {
                (Action::Status, None) => control.capture().map_err(said)?,
                (Action::Stop, None) => Some(control.stop_capture().map_err(said)?),
                (Action::Start, Some(path)) => {
                    let mut options = Options::to(path);
                    options.snaplen = snaplen.unwrap_or(options.snaplen);
                    options.max_bytes = max_bytes.unwrap_or(options.max_bytes);
                    control.start_capture(options).map_err(said)?;
                    control.capture().map_err(said)?
                }
                (Action::Start, None) => return Err("a capture wants a path".to_owned()),
                (_, Some(_)) => return Err("only a start wants a path".to_owned()),
            };
            Ok(json!({ "capture": status.as_ref().map(capture_status) }))
        }
    }
}

/// The forwards that a request is about.
fn wanted(publish: &str, control: &Control) -> Result<Vec<Forward>, String> {
    let publish: Publish = publish.parse()?;
    let (v4, v6) = control.families();
    match publish.address {
        Some(IpAddr::V4(_)) if !v4 => Err("the guest has no IPv4 address".to_owned()),
        Some(IpAddr::V6(_)) if !v6 => Err("the guest has no IPv6 address".to_owned()),
        _ => Ok(publish.forwards(v4, v6)),
    }
}

/// Adds all of them, or none.
fn add(publish: &str, control: &Control) -> Result<Value, String> {
    let forwards = wanted(publish, control)?;
    for (index, forward) in forwards.iter().enumerate() {
        if let Err(error) = control.add_forward(forward) {
            for added in forwards.iter().take(index) {
                // One that somebody else has removed meanwhile is gone as well.
                let _ = control.remove_forward(added.transport, added.bind);
            }
            return Err(error.to_string());
        }
    }
    Ok(json!({ "forwards": forwards.iter().map(forward).collect::<Vec<_>>() }))
}

/// Removes those that there are; none is an error.
fn remove(publish: &str, control: &Control) -> Result<Value, String> {
    let mut removed = Vec::new();
    let mut failure = None;
    for one in wanted(publish, control)? {
        match control.remove_forward(one.transport, one.bind) {
            Ok(()) => removed.push(forward(&one)),
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    match failure {
        Some(error) if removed.is_empty() => Err(error.to_string()),
        Some(error) if !matches!(error, Error::NoForward(..)) => Err(error.to_string()),
        _ => Ok(json!({ "forwards": removed })),
    }
}

fn forward(forward: &Forward) -> Value {
    json!({
        "transport": forward.transport.name(),
        "bind": forward.bind.to_string(),
        "guest_port": forward.guest_port,
    })
}

fn forward_status(status: &ForwardStatus) -> Value {
    let mut value = forward(&status.forward);
    let more = [
        ("listens", status.listens.into()),
        ("connections", status.connections.into()),
        ("refused", status.refused.into()),
    ];
    extend(&mut value, more);
    extend(&mut value, carried(status.carried));
    value
}

fn flow_status(status: &FlowStatus) -> Value {
    let remote: SocketAddr = status.remote;
    let mut value = json!({
        "transport": status.transport.name(),
        "guest_port": status.guest_port,
        "remote": remote.to_string(),
        "forwarded": status.forwarded,
        "state": status.state,
        "age_seconds": status.age.as_secs_f64(),
    });
    extend(&mut value, carried(status.carried));
    value
}

fn capture_status(status: &Status) -> Value {
    json!({
        "path": status.path.to_string_lossy(),
        "frames": status.frames,
        "bytes": status.bytes,
        "lost": status.lost,
        "ended": status.ended,
    })
}

/// Bytes of payload, as the guest sees their ways.
fn carried(carried: Carried) -> [(&'static str, Value); 2] {
    [
        ("bytes_in", carried.to_guest.into()),
        ("bytes_out", carried.from_guest.into()),
    ]
}

fn extend<const N: usize>(value: &mut Value, more: [(&str, Value); N]) {
    if let Value::Object(map) = value {
        map.extend(more.map(|(name, value)| (name.to_owned(), value)));
    }
}
