//! The Kubernetes objects that run a VMI with no operator: a pod whose compute container is ours,
//! or a deployment of such pods, with what belongs to them. Pure: from a machine and a few choices
//! to objects.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::kubevirt::{
    CLAIMS, CONFIG_MAPS, CONTAINER_DISKS, CREDENTIALS, DOWNWARD_APIS, EPHEMERAL_DISKS, KERNEL_BOOT,
    PRIVATE, SECRETS, STATE,
};
use crate::vmi::{Handler, Keyed, Machine, Port, Probe, Protocol, Source};

/// Of KubeVirt's virt-launcher, and of its images.
const USER: u32 = 107;
/// Where the VMI is in the container.
const VMI: &str = "/etc/peapod";
const VMI_FILE: &str = "vmi.yaml";
/// Where containers of images have our program.
const PROGRAM: &str = "/peapod";
/// How long after the guest's grace period the kubelet kills.
const GRACE_MARGIN: u64 = 10;
/// Where the probes are asked; a port that the mesh does not take for the workload's.
const PROBES: u16 = 8095;
/// How long a guest may take to be ready, in seconds.
const STARTUP: u32 = 300;
/// Where Istio's proxy and its agent are asked, and HBONE.
const MESH: [u16; 4] = [15008, 15020, 15021, 15090];
const MIB: u64 = 1 << 20;

/// What a manifest does not say.
#[derive(Debug, Clone)]
pub struct Choices {
    /// The compute container's image.
    pub image: String,
    /// The device plugin's resource that is /dev/kvm.
    pub kvm_resource: String,
    /// So many pods, kept by a deployment; one alone where nothing is said.
    pub replicas: Option<u32>,
    /// How the compute container gets at container images.
    pub container_disks: ContainerDisks,
}

/// How the compute container gets at container images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ContainerDisks {
    /// As volumes of the pod (Kubernetes 1.33, or 1.31 with the feature gate ImageVolume)
    #[default]
    ImageVolumes,
    /// Each as a container of the pod, which hands its files over (Kubernetes 1.29)
    Containers,
}

/// Why a VMI cannot be in a pod that nobody else prepares.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of some node's.
    #[error("disk `{0}`: a hostDisk is one node's file; use a persistentVolumeClaim")]
    HostDisk(String),
    /// Several pods would write it.
    #[error("disk `{0}`: {1} pods cannot write one claim; use `ephemeral`")]
    Shared(String, u32),
    /// Nothing of the pod listens there.
    #[error("spec.{0}: port {1} is not among the interface's ports: add it there")]
    Port(&'static str, Value),
    /// The guest would be asked in place of us.
    #[error("port {PROBES} is where the probes are asked; the VMI cannot have it")]
    Probes,
}

/// The objects for `machine`, whose manifest is `manifest`.
pub fn objects(machine: &Machine, manifest: &str, choices: &Choices) -> Result<Vec<Value>, Error> {
    check(machine, choices)?;
    let name = &machine.name;
    let selector = json!({ "vm.kubevirt.io/name": name });
    let mut labels = machine.for_pod.labels.clone();
    labels.insert("vm.kubevirt.io/name".to_owned(), json!(name));
    let meta = json!({"name": name, "namespace": machine.namespace, "labels": labels});
    let mut objects = vec![json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": vmi_secret(name), "namespace": machine.namespace},
        "stringData": {VMI_FILE: manifest},
    })];
    // A deployment names its pods.
    let mut pod_meta = match choices.replicas {
        None => meta.clone(),
        Some(_) => json!({ "labels": labels }),
    };
    let annotations = &machine.for_pod.annotations;
    if !annotations.is_empty() {
        set(&mut pod_meta, "annotations", json!(annotations));
    }
    let spec = spec(machine, choices);
    match choices.replicas {
        None => objects.push(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": pod_meta, "spec": spec,
        })),
        Some(replicas) => {
            objects.push(json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
                "spec": {
                    "replicas": replicas,
                    "selector": {"matchLabels": selector},
                    "template": {"metadata": pod_meta, "spec": spec},
                },
            }));
            objects.push(json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
                "metadata": {"name": name, "namespace": machine.namespace},
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
            }));
        }
    }
    objects.extend(policy(machine, &selector));
    Ok(objects)
}

fn check(machine: &Machine, choices: &Choices) -> Result<(), Error> {
    for disk in &machine.disks {
        match (&disk.source, choices.replicas) {
            (Source::HostDisk { .. }, _) => return Err(Error::HostDisk(disk.name.clone())),
            (Source::Claim { ephemeral, .. }, Some(count @ 2..))
                if !ephemeral && !disk.readonly =>
            {
                return Err(Error::Shared(disk.name.clone(), count));
            }
            _ => {}
        }
    }
    for (name, probe) in [
        ("readinessProbe", &machine.for_pod.readiness),
        ("livenessProbe", &machine.for_pod.liveness),
    ] {
        let handler = probe.as_ref().map(|probe| &probe.handler);
        if let Some(Handler::Http(asked) | Handler::Tcp(asked)) = handler {
            let port = asked.get("port").unwrap_or(&Value::Null);
            // Where no port is declared, those that the guest listens on are the pod's.
            let is = |known: &Port| match port.as_str() {
                Some(name) => known.name.as_deref() == Some(name),
                None => port.as_u64() == Some(known.port.into()),
            };
            let declared = machine.ports().next().is_some() || port.is_string();
            if declared && !machine.ports().any(is) {
                return Err(Error::Port(name, port.clone()));
            }
        }
    }
    match machine.ports().any(|port| port.port == PROBES) {
        true => Err(Error::Probes),
        false => Ok(()),
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(fields) = object {
        fields.insert(key.to_owned(), value);
    }
}

fn vmi_secret(name: &str) -> String {
    format!("{name}-vmi")
}

/// The pod's spec.
fn spec(machine: &Machine, choices: &Choices) -> Value {
    let (mut volumes, mut mounts) = volumes(machine);
    let mut before = Vec::new();
    match choices.container_disks {
        ContainerDisks::ImageVolumes => image_volumes(machine, &mut volumes, &mut mounts),
        ContainerDisks::Containers => {
            before = image_containers(machine, choices, &mut volumes, &mut mounts);
        }
    }
    let ports: Vec<Value> = machine
        .ports()
        .map(|port| {
            let mut object = json!({
                "containerPort": port.port,
                "protocol": match port.protocol { Protocol::Tcp => "TCP", Protocol::Udp => "UDP" },
            });
            if let Some(name) = &port.name {
                set(&mut object, "name", json!(name));
            }
            object
        })
        .collect();
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": PROBES},
            "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5,
        })
    };
    let mib = |bytes: u64| json!(format!("{}Mi", bytes.div_ceil(MIB)));
    let mut reserved = json!({ &choices.kvm_resource: "1" });
    match machine.huge_pages {
        // Kubernetes counts these apart.
        Some(pages) => {
            set(&mut reserved, pages.resource(), mib(machine.memory));
            set(&mut reserved, "memory", mib(machine.overhead()));
        }
        None => {
            let memory = machine.memory.saturating_add(machine.overhead());
            set(&mut reserved, "memory", mib(memory));
        }
    }
    let cpu = format!("{}m", machine.topology.vcpus() * 100);
    let mut requests = reserved.clone();
    set(&mut requests, "cpu", json!(cpu));
    let mut compute = json!({
        "name": "compute",
        "image": choices.image,
        // They follow the image's entry point, `peapod launch`.
        "args": [format!("{VMI}/{VMI_FILE}"), format!("--probes=0.0.0.0:{PROBES}")],
        "securityContext": restricted(),
        "resources": {"requests": requests, "limits": reserved},
        "startupProbe": probe("/readyz", 1, STARTUP),
        "readinessProbe": own(&machine.for_pod.readiness, probe("/readyz", 5, 3)),
        "livenessProbe": own(&machine.for_pod.liveness, probe("/healthz", 10, 3)),
        "volumeMounts": mounts,
    });
    if !ports.is_empty() {
        set(&mut compute, "ports", json!(ports));
    }
    let restart = if choices.replicas.is_some() {
        "Always"
    } else {
        "OnFailure"
    };
    let mut spec = machine.for_pod.spec.clone();
    let account = machine.service_account();
    if let Some(name) = account {
        spec.entry("serviceAccountName").or_insert(json!(name));
    }
    let own = json!({
        "automountServiceAccountToken": account.is_some(),
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": machine.termination_grace.as_secs() + GRACE_MARGIN,
        "hostname": machine.hostname,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
            "sysctls": sysctls(machine),
        },
        "containers": [compute],
        "volumes": volumes,
    });
    if let Value::Object(own) = own {
        spec.extend(own);
    }
    if let Some(subdomain) = &machine.subdomain {
        spec.insert("subdomain".to_owned(), json!(subdomain));
    }
    if !before.is_empty() {
        spec.insert("initContainers".to_owned(), json!(before));
    }
    Value::Object(spec)
}

/// What the Pod Security Standard asks of a restricted container.
fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
    })
}

/// The container images of a machine: the volume's name, and the image's.
fn images(machine: &Machine) -> impl Iterator<Item = (&str, &str)> {
    let boot = machine.kernel_boot.as_ref();
    let boot = boot.map(|boot| (KERNEL_BOOT, boot.image.as_str()));
    let disks = machine.disks.iter().filter_map(|disk| match &disk.source {
        Source::ContainerDisk {
            volume: (volume, _),
            image,
            ..
        } => Some((volume.as_str(), image.as_str())),
        _ => None,
    });
    boot.into_iter().chain(disks)
}

/// Each image is a volume, where the compute container looks for it.
fn image_volumes(machine: &Machine, volumes: &mut Vec<Value>, mounts: &mut Vec<Value>) {
    for (volume, image) in images(machine) {
        let name = match volume {
            KERNEL_BOOT => KERNEL_BOOT.to_owned(),
            volume => format!("disk-{volume}"),
        };
        volumes.push(json!({"name": name, "image": {"reference": image}}));
        let path = format!("{CONTAINER_DISKS}/{volume}");
        mounts.push(json!({"name": name, "mountPath": path, "readOnly": true}));
    }
}

/// Each image is a container that is there before the compute container is, and after it; our program
/// goes into it by a directory that they share, and gets at its files, as no one else's could.
fn image_containers(
    machine: &Machine,
    choices: &Choices,
    volumes: &mut Vec<Value>,
    mounts: &mut Vec<Value>,
) -> Vec<Value> {
    let mut containers = Vec::new();
    let program =
        |read_only: bool| json!({"name": "program", "mountPath": PROGRAM, "readOnly": read_only});
    let sockets = json!({"name": "container-disks", "mountPath": CONTAINER_DISKS});
    let resources = json!({
        "requests": {"cpu": "1m", "memory": "1M"}, "limits": {"cpu": "100m", "memory": "40M"},
    });
    for (volume, image) in images(machine) {
        let program_path = format!("{PROGRAM}/container-disk");
        let socket = format!("{CONTAINER_DISKS}/{volume}");
        let command = [program_path.as_str(), "--copy-path", socket.as_str()];
        let check = command.iter().chain(&["--check"]).collect::<Vec<_>>();
        containers.push(json!({
            "name": format!("volume{volume}"),
            "image": image,
            "command": command,
            // It goes on beside the compute container, and ends after it.
            "restartPolicy": "Always",
            "startupProbe": {
                "exec": {"command": check}, "periodSeconds": 1, "failureThreshold": 30,
            },
            "securityContext": restricted(),
            "resources": resources,
            "volumeMounts": [program(true), sockets],
        }));
    }
    if containers.is_empty() {
        return containers;
    }
    let copy = json!({
        "name": "container-disk-binary",
        "image": choices.image,
        "command": ["/usr/bin/cp", "/usr/bin/container-disk", PROGRAM],
        "securityContext": restricted(),
        "resources": resources,
        "volumeMounts": [program(false)],
    });
    containers.insert(0, copy);
    volumes.push(json!({"name": "program", "emptyDir": {}}));
    volumes.push(json!({"name": "container-disks", "emptyDir": {}}));
    mounts.push(sockets);
    containers
}

/// The manifest's probe for a kubelet, or `ours` where it has none. What is to be asked in the guest
/// is asked by its agent.
fn own(probe: &Option<Probe>, ours: Value) -> Value {
    let Some(probe) = probe else {
        return ours;
    };
    let exec = |command: &[String]| {
        let state = format!("{EPHEMERAL_DISKS}/{STATE}");
        let mut words = ["/usr/bin/peapod", "exec", &state, "--"]
            .map(str::to_owned)
            .to_vec();
        words.extend_from_slice(command);
        ("exec", json!({ "command": words }))
    };
    let (name, handler) = match &probe.handler {
        Handler::Http(get) => ("httpGet", get.clone()),
        Handler::Tcp(socket) => ("tcpSocket", socket.clone()),
        Handler::Exec(command) => exec(command),
        Handler::Ping => exec(&["true".to_owned()]),
    };
    let mut probe = probe.times.clone();
    probe.insert(name.to_owned(), handler);
    Value::Object(probe)
}

/// Those of Kubernetes' safe ones that the guest needs: its echo, and ports below 1024.
fn sysctls(machine: &Machine) -> Vec<Value> {
    let mut sysctls = vec![json!({
        "name": "net.ipv4.ping_group_range", "value": format!("{USER} {USER}"),
    })];
    if machine.ports().any(|port| port.port < 1024) {
        sysctls.push(json!({"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}));
    }
    sysctls
}

/// The pod's volumes but for images, and where its compute container has them.
fn volumes(machine: &Machine) -> (Vec<Value>, Vec<Value>) {
    let mut volumes = vec![
        json!({"name": "vmi", "secret": {"secretName": vmi_secret(&machine.name)}}),
        json!({"name": "ephemeral-disks", "emptyDir": {}}),
        json!({"name": "private", "emptyDir": {}}),
    ];
    let mut mounts = vec![
        json!({"name": "vmi", "mountPath": VMI, "readOnly": true}),
        json!({"name": "ephemeral-disks", "mountPath": EPHEMERAL_DISKS}),
        json!({"name": "private", "mountPath": PRIVATE}),
    ];
    for disk in &machine.disks {
        // What is in the manifest's own file goes with that.
        if let Source::Keys {
            volume,
            of,
            name: object,
            optional,
            fields,
            files: None,
            ..
        } = &disk.source
        {
            let name = format!("keys-{volume}");
            let (below, source) = match of {
                Keyed::ConfigMap => (
                    CONFIG_MAPS,
                    json!({"name": name, "configMap": {"name": object, "optional": optional}}),
                ),
                Keyed::Secret => (
                    SECRETS,
                    json!({"name": name, "secret": {"secretName": object, "optional": optional}}),
                ),
                Keyed::DownwardApi => (
                    DOWNWARD_APIS,
                    json!({"name": name, "downwardAPI": {"items": fields}}),
                ),
                // The kubelet mounts it.
                Keyed::ServiceAccount => continue,
            };
            volumes.push(source);
            let path = format!("{below}/{volume}");
            mounts.push(json!({"name": name, "mountPath": path, "readOnly": true}));
        }
    }
    let credentials = machine.ssh_keys().filter(|keys| keys.files.is_none());
    let secrets: BTreeSet<_> = credentials.map(|keys| &keys.secret).collect();
    for secret in secrets {
        let name = format!("ssh-{secret}");
        volumes.push(json!({"name": name, "secret": {"secretName": secret}}));
        let path = format!("{SECRETS}/{secret}{CREDENTIALS}");
        mounts.push(json!({"name": name, "mountPath": path, "readOnly": true}));
    }
    for disk in &machine.disks {
        if let Source::Claim { volume, claim, .. } = &disk.source {
            let name = format!("claim-{volume}");
            let claim = json!({"claimName": claim, "readOnly": disk.readonly});
            volumes.push(json!({"name": name, "persistentVolumeClaim": claim}));
            let path = format!("{CLAIMS}/{volume}");
            mounts.push(json!({"name": name, "mountPath": path, "readOnly": disk.readonly}));
        }
    }
    (volumes, mounts)
}

/// Who may come in: to the declared ports, to the probes and to the mesh's own. Where no port is
/// declared those that the guest listens on are open, which a policy cannot know.
fn policy(machine: &Machine, selector: &Value) -> Option<Value> {
    machine.ports().next()?;
    let tcp = |port: u16| json!({"protocol": "TCP", "port": port});
    let declared = machine.ports().map(|port| match port.protocol {
        Protocol::Tcp => tcp(port.port),
        Protocol::Udp => json!({"protocol": "UDP", "port": port.port}),
    });
    let ports: Vec<Value> = declared
        .chain([PROBES].into_iter().chain(MESH).map(tcp))
        .collect();
    Some(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": machine.name, "namespace": machine.namespace},
        "spec": {
            "podSelector": {"matchLabels": selector},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": ports}],
        },
    }))
}
