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
            let Some(get) = container
                .get_mut(probe)
                .and_then(|probe| probe.get_mut("httpGet"))
            else {
                continue;
            };
            let port = u16::try_from(get["port"].as_u64()?).ok()?;
            let path = get["path"].as_str()?.to_owned();
            let asked = format!("/app-health/{name}/{end}");
            *get = json!({"path": asked, "port": 15020});
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
