//! What of a manifest is for Kubernetes and not for the machine: kept as it is written, for the
//! pod that the machine is in.

use serde_json::Map;

use super::object::{Object, Problems};
use super::probes::{self, Probe};
use super::yaml::Value;

/// Fields of a VMI's spec that a pod's spec has under the same name, and with the same meaning.
const SAME_IN_A_POD: [&str; 9] = [
    "affinity",
    "dnsConfig",
    "dnsPolicy",
    "nodeSelector",
    "priorityClassName",
    "schedulerName",
    "serviceAccountName",
    "tolerations",
    "topologySpreadConstraints",
];

/// The parts of a manifest that a pod takes over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForPod {
    /// `metadata.labels`.
    pub labels: Map<String, serde_json::Value>,
    /// `metadata.annotations`.
    pub annotations: Map<String, serde_json::Value>,
    /// Fields of the pod's spec.
    pub spec: Map<String, serde_json::Value>,
    /// `readinessProbe`.
    pub readiness: Option<Probe>,
    /// `livenessProbe`.
    pub liveness: Option<Probe>,
}

impl ForPod {
    /// Takes labels and annotations out of the metadata.
    pub(super) fn metadata(meta: &mut Object<'_>, p: &mut Problems) -> Self {
        Self {
            labels: texts(meta, "labels", p),
            annotations: texts(meta, "annotations", p),
            ..Self::default()
        }
    }

    /// Takes what a pod has too out of the spec.
    pub(super) fn take(&mut self, spec: &mut Object<'_>, p: &mut Problems) {
        for name in SAME_IN_A_POD {
            if let Some(field) = spec.take(name) {
                self.spec.insert(name.to_owned(), field.node().value.json());
            }
        }
        let mut probe = |name: &str| spec.take(name).and_then(|field| probes::read(&field, p));
        self.readiness = probe("readinessProbe");
        self.liveness = probe("livenessProbe");
    }
}

/// A mapping of strings.
fn texts(meta: &mut Object<'_>, name: &str, p: &mut Problems) -> Map<String, serde_json::Value> {
    let Some(field) = meta.take(name) else {
        return Map::new();
    };
    let Value::Map(entries) = &field.node().value else {
        field.problem(p, "expected a mapping of strings");
        return Map::new();
    };
    let mut read = Map::new();
    for (key, node) in entries {
        match &node.value {
            Value::String(text) => {
                read.insert(key.value.clone(), text.clone().into());
            }
            other => {
                let kind = other.kind();
                let message = format!("`{}`: expected a string, found {kind}; quote it", key.value);
                field.problem(p, message);
            }
        }
    }
    read
}
