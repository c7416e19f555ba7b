//! What Istio's injector makes of a pod (Istio's documentation: Installing the Sidecar; Health Checking of Istio
//! Services), where injection is enabled for the namespace: what matters of it to the pod's readiness.

use serde_json::{Value, json};

use super::Probers;

/// What says whether a pod wants it.
const WANTED: &str = "sidecar.istio.io/inject";
/// A probe's field, and what the agent's path for it ends with.
const PROBES: [(&str, &str); 3] = [
    ("startupProbe", "startupz"),
    ("readinessProbe", "readyz"),
    ("livenessProbe", "livez"),
];

/// Adds the proxy to a pod, and has its agent asked in place of the other containers; whom it is to ask
/// then. Nothing, where the pod does not want it, by a label or an annotation.
pub fn inject(pod: &mut Value) -> Option<Probers> {
    let wanted = |of: &str| pod["metadata"][of][WANTED].as_str();
    if wanted("labels").or(wanted("annotations")) == Some("false") {
        return None;
    }
    let mut probers = Probers::new();
    let containers = pod["spec"]["containers"].as_array_mut()?;
    for container in &mut *containers {
        let name = container["name"].as_str()?.to_owned();
        for (probe, end) in PROBES {
            let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else {
                continue;
            };
            // A VMI has no probe by gRPC, and what a command finds is not for the agent.
            let (handler, path) = if let Some(get) = probe.remove("httpGet") {
                let path = get["path"].as_str()?.to_owned();
                (get, Some(path))
            } else if let Some(socket) = probe.remove("tcpSocket") {
                (socket, None)
            } else {
                continue;
            };
            let port = u16::try_from(handler["port"].as_u64()?).ok()?;
            let asked = format!("/app-health/{name}/{end}");
            probe.insert("httpGet".to_owned(), json!({"path": asked, "port": 15020}));
            probers.insert(asked, (port, path));
        }
    }
    containers.push(json!({
        "name": "istio-proxy",
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": 15021},
            "periodSeconds": 15,
            "timeoutSeconds": 3,
            "failureThreshold": 4,
        },
        "securityContext": {"runAsUser": 1337, "runAsGroup": 1337},
    }));
    Some(probers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_asked_in_place_of_a_port_too() {
        let mut pod = json!({"spec": {"containers": [{
            "name": "compute",
            "startupProbe": {"exec": {"command": ["true"]}},
            "readinessProbe": {"httpGet": {"path": "/health", "port": 9080}},
            "livenessProbe": {"tcpSocket": {"port": 9081}, "periodSeconds": 3},
        }]}});
        let probers = inject(&mut pod).unwrap();
        let of = |end: &str| probers[&format!("/app-health/compute/{end}")].clone();
        assert_eq!(of("readyz"), (9080, Some("/health".to_owned())));
        assert_eq!(of("livez"), (9081, None));
        assert_eq!(probers.len(), 2);
        let compute = &pod["spec"]["containers"][0];
        let asked = json!({"path": "/app-health/compute/livez", "port": 15020});
        assert_eq!(
            compute["livenessProbe"],
            json!({"httpGet": asked, "periodSeconds": 3})
        );
        assert_eq!(compute["startupProbe"]["exec"]["command"], json!(["true"]));
    }
}
