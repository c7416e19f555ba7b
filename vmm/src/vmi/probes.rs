//! A VMI's probes, which are a kubelet's to ask: kept for the pod (KubeVirt's `Probe`, which is
//! Kubernetes' with `guestAgentPing` and a guest in place of the container).

use serde_json::{Map, Value};

use super::object::{Field, Problems};
use super::schema;

/// How often, how long, how many times: as Kubernetes' own probes have them, with their least.
const TIMES: [(&str, u32); 5] = [
    ("failureThreshold", 1),
    ("initialDelaySeconds", 0),
    ("periodSeconds", 1),
    ("successThreshold", 1),
    ("timeoutSeconds", 1),
];

/// A probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub handler: Handler,
    /// Kubernetes' fields of how often.
    pub times: Map<String, Value>,
}

/// What a probe asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
    /// A port of the guest by HTTP: Kubernetes' own `httpGet`.
    Http(Value),
    /// Whether a port of the guest takes connections: Kubernetes' own `tcpSocket`.
    Tcp(Value),
    /// A program of the guest, which has to succeed.
    Exec(Vec<String>),
    /// Whether the guest's agent answers.
    Ping,
}

/// Reads `readinessProbe` or `livenessProbe`.
pub(super) fn read(field: &Field, p: &mut Problems) -> Option<Probe> {
    let mut probe = field.object(p, schema::PROBE)?;
    let mut times = Map::new();
    for (name, least) in TIMES {
        if let Some(field) = probe.take(name) {
            let number = field.integer(p, least, i32::MAX.cast_unsigned())?;
            times.insert(name.to_owned(), number.into());
        }
    }
    let mut handlers = Vec::new();
    if let Some(field) = probe.take("httpGet") {
        let mut get = field.object(p, schema::HTTP_GET)?;
        port(&get.need(p, "port")?, p)?;
        handlers.push(Handler::Http(field.node().value.json()));
    }
    if let Some(field) = probe.take("tcpSocket") {
        let mut socket = field.object(p, schema::TCP_SOCKET)?;
        port(&socket.need(p, "port")?, p)?;
        handlers.push(Handler::Tcp(field.node().value.json()));
    }
    if let Some(field) = probe.take("exec") {
        let mut exec = field.object(p, schema::EXEC)?;
        let words = exec.need(p, "command")?.list(p);
        let words: Option<Vec<_>> = words.iter().map(|word| word.string(p)).collect();
        let command: Vec<String> = words?.into_iter().map(str::to_owned).collect();
        if command.is_empty() {
            field.problem(p, "`command` is a program and its arguments");
        }
        handlers.push(Handler::Exec(command));
    }
    if let Some(field) = probe.take("guestAgentPing") {
        field.object(p, schema::EMPTY)?;
        handlers.push(Handler::Ping);
    }
    probe.finish(p);
    match (handlers.pop(), handlers.is_empty()) {
        (Some(handler), true) => Some(Probe { handler, times }),
        _ => {
            field.problem(
                p,
                "expected one of httpGet, tcpSocket, exec and guestAgentPing",
            );
            None
        }
    }
}

/// A number or the name of a port.
fn port(field: &Field, p: &mut Problems) -> Option<()> {
    match &field.node().value {
        super::yaml::Value::String(_) => field.string(p).map(drop),
        _ => field.integer(p, 1, u16::MAX.into()).map(drop),
    }
}
