//! Each object against Kubernetes' own types.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::vmi;

const MANIFEST: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata:
  name: details
  namespace: books
  labels: {app: details, version: v1}
  annotations: {sidecar.istio.io/inject: 'true'}
spec:
  subdomain: lib
  terminationGracePeriodSeconds: 45
  nodeSelector: {kubernetes.io/arch: amd64}
  tolerations: [{key: vm, operator: Exists}]
  domain:
    cpu: {cores: 2}
    memory: {guest: 1Gi}
    firmware:
      kernelBoot:
        container: {image: 'registry/kernel:1', kernelPath: /vmlinuz, initrdPath: /initramfs.cpio}
    devices:
      interfaces:
      - {name: default, masquerade: {}, ports: [{name: http, port: 80}, {port: 53, protocol: UDP}]}
  networks: [{name: default, pod: {}}]
  volumes:
  - {name: root, containerDisk: {image: 'registry/details:1'}}
  - {name: data, persistentVolumeClaim: {claimName: books}}
  - {name: seed, cloudInitNoCloud: {userData: '#!/bin/sh'}}
";

fn choices(replicas: Option<u32>) -> Choices {
    Choices {
        image: "registry/compute:1".to_owned(),
        kvm_resource: "devices.kubevirt.io/kvm".to_owned(),
        replicas,
        container_disks: ContainerDisks::ImageVolumes,
    }
}

fn made(manifest: &str, replicas: Option<u32>) -> Result<Vec<Value>, Error> {
    let machine = vmi::parse("x", manifest.as_bytes()).unwrap().machine;
    objects(&machine, manifest, &choices(replicas))
}

/// Reads it as what it says that it is: a field that the type has not would be lost.
fn held(object: &Value) -> String {
    fn through<T: DeserializeOwned + Serialize>(object: &Value) {
        let read: T = serde_json::from_value(object.clone()).unwrap();
        let written = serde_json::to_value(read).unwrap();
        assert_eq!(written, *object);
    }
    let kind = object["kind"].as_str().unwrap();
    match kind {
        "Secret" => through::<Secret>(object),
        "Pod" => through::<Pod>(object),
        "Deployment" => through::<Deployment>(object),
        "NetworkPolicy" => through::<NetworkPolicy>(object),
        "PodDisruptionBudget" => through::<PodDisruptionBudget>(object),
        other => panic!("{other}"),
    }
    kind.to_owned()
}

#[test]
fn each_object_is_one_of_kubernetes_with_no_field_that_it_does_not_know() {
    let pod = made(MANIFEST, None).unwrap();
    let kinds: Vec<_> = pod.iter().map(held).collect();
    assert_eq!(kinds, ["Secret", "Pod", "NetworkPolicy"]);
    let several = MANIFEST.replace(
        "persistentVolumeClaim: {claimName: books}",
        "emptyDisk: {capacity: 1Gi}",
    );
    let kinds: Vec<_> = made(&several, Some(3)).unwrap().iter().map(held).collect();
    assert_eq!(
        kinds,
        [
            "Secret",
            "Deployment",
            "PodDisruptionBudget",
            "NetworkPolicy"
        ]
    );
}

#[test]
fn the_pod_is_a_restricted_one_and_has_what_its_vmi_asks_for() {
    let objects = made(MANIFEST, None).unwrap();
    assert_eq!(objects[0]["stringData"]["vmi.yaml"], MANIFEST);
    let pod = &objects[1];
    assert_eq!(pod["metadata"]["labels"]["app"], "details");
    assert_eq!(
        pod["metadata"]["annotations"]["sidecar.istio.io/inject"],
        "true"
    );
    let spec = &pod["spec"];
    assert_eq!(spec["nodeSelector"]["kubernetes.io/arch"], "amd64");
    assert_eq!(spec["tolerations"][0]["key"], "vm");
    assert_eq!(spec["subdomain"], "lib");
    assert_eq!(spec["terminationGracePeriodSeconds"], 55);
    let sysctls = spec["securityContext"]["sysctls"].as_array().unwrap();
    assert!(
        sysctls
            .iter()
            .any(|s| s["name"] == "net.ipv4.ip_unprivileged_port_start")
    );
    let compute = &spec["containers"][0];
    assert_eq!(compute["securityContext"]["capabilities"]["drop"][0], "ALL");
    assert_eq!(
        compute["resources"]["limits"]["devices.kubevirt.io/kvm"],
        "1"
    );
    // 1024 for the guest, 20, 2, 4, and 39.06 for a thousand connections.
    assert_eq!(compute["resources"]["limits"]["memory"], "1090Mi");
    assert_eq!(compute["ports"][0]["name"], "http");
    let mounts = compute["volumeMounts"].as_array().unwrap();
    let at = |path: &str| mounts.iter().any(|mount| mount["mountPath"] == path);
    assert!(at("/var/run/kubevirt/container-disks/root"));
    assert!(at("/var/run/kubevirt/container-disks/kernel-boot"));
    assert!(at("/var/run/kubevirt-private/vmi-disks/data"));
}

#[test]
fn what_no_pod_of_its_own_can_have_is_refused_with_what_to_use() {
    let say = |manifest: &str, replicas| made(manifest, replicas).unwrap_err().to_string();
    let claim = say(MANIFEST, Some(2));
    assert!(
        claim.contains("`data`: 2 pods cannot write one claim"),
        "{claim}"
    );
    let host = MANIFEST.replace(
        "persistentVolumeClaim: {claimName: books}",
        "hostDisk: {path: /x, type: Disk}",
    );
    assert!(say(&host, None).contains("use a persistentVolumeClaim"));
    assert!(say(&MANIFEST.replace("port: 80", "port: 8095"), None).contains("8095"));
}

#[test]
fn the_vmis_probes_are_the_pods_and_what_is_in_the_guest_is_asked_by_its_agent() {
    let with = |probes: &str| MANIFEST.replace("  domain:\n", &format!("{probes}  domain:\n"));
    let manifest = with(
        "  readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 3}\n  \
         livenessProbe: {exec: {command: [pgrep, ruby]}, failureThreshold: 9}\n",
    );
    let objects = made(&manifest, None).unwrap();
    objects.iter().for_each(|object| drop(held(object)));
    let compute = &objects[1]["spec"]["containers"][0];
    let readiness = json!({"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 3});
    assert_eq!(compute["readinessProbe"], readiness);
    let command = &compute["livenessProbe"]["exec"]["command"];
    let state = "/var/run/kubevirt-ephemeral-disks/vm";
    assert_eq!(
        *command,
        json!(["/usr/bin/peapod", "exec", state, "--", "pgrep", "ruby"])
    );
    assert_eq!(compute["livenessProbe"]["failureThreshold"], 9);
    assert_eq!(compute["startupProbe"]["httpGet"]["path"], "/readyz");

    let elsewhere = made(&with("  livenessProbe: {tcpSocket: {port: 81}}\n"), None);
    let why = elsewhere.unwrap_err().to_string();
    assert_eq!(
        why,
        "spec.livenessProbe: port 81 is not among the interface's ports: add it there"
    );
}

#[test]
fn a_config_map_that_is_not_in_the_manifest_is_mounted() {
    let manifest = format!(
        "{MANIFEST}  - {{name: conf, configMap: {{name: app}}}}\n  \
         - {{name: keys, secret: {{secretName: keys, optional: true}}}}\n"
    );
    let objects = made(&manifest, None).unwrap();
    objects.iter().for_each(|object| drop(held(object)));
    let spec = &objects[1]["spec"];
    let volumes = spec["volumes"].as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|v| v["name"] == name).unwrap();
    assert_eq!(volume("keys-conf")["configMap"]["name"], "app");
    assert_eq!(volume("keys-keys")["secret"]["secretName"], "keys");
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    let at = |path: &str| mounts.iter().any(|mount| mount["mountPath"] == path);
    assert!(at("/var/run/kubevirt-private/config-map/conf"));
    assert!(at("/var/run/kubevirt-private/secret/keys"));
}

#[test]
fn a_pod_s_token_fields_and_access_credentials_are_mounted() {
    let credentials = "  accessCredentials:\n  - sshPublicKey: {source: {secret: {secretName: \
         mine}}, propagationMethod: {noCloud: {}}}\n  domain:\n";
    let manifest = format!(
        "{MANIFEST}  - {{name: token, serviceAccount: {{serviceAccountName: books}}}}\n  \
         - {{name: me, downwardAPI: {{fields: [{{path: labels, fieldRef: {{fieldPath: \
         metadata.labels}}}}]}}}}\n"
    );
    let manifest = manifest.replace("  domain:\n", credentials);
    let objects = made(&manifest, None).unwrap();
    objects.iter().for_each(|object| drop(held(object)));
    let spec = &objects[1]["spec"];
    assert_eq!(spec["serviceAccountName"], "books");
    assert_eq!(spec["automountServiceAccountToken"], true);
    let volumes = spec["volumes"].as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|v| v["name"] == name).unwrap();
    assert_eq!(
        volume("keys-me")["downwardAPI"]["items"][0]["path"],
        "labels"
    );
    assert_eq!(volume("ssh-mine")["secret"]["secretName"], "mine");
    let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
    let at = |path: &str| mounts.iter().any(|mount| mount["mountPath"] == path);
    assert!(at("/var/run/kubevirt-private/secret/mine-access-cred"));
    assert!(at("/var/run/kubevirt-private/downwardapi/me"));
}

#[test]
fn an_image_may_be_a_container_that_starts_before_the_vm_and_ends_after_it() {
    let machine = vmi::parse("x", MANIFEST.as_bytes()).unwrap().machine;
    let choices = Choices {
        container_disks: ContainerDisks::Containers,
        ..choices(None)
    };
    let objects = objects(&machine, MANIFEST, &choices).unwrap();
    assert_eq!(held(&objects[1]), "Pod");
    let spec = &objects[1]["spec"];
    let before = spec["initContainers"].as_array().unwrap();
    let names: Vec<_> = before.iter().map(|one| &one["name"]).collect();
    assert_eq!(
        names,
        ["container-disk-binary", "volumekernel-boot", "volumeroot"]
    );
    assert_eq!(before[0]["image"], "registry/compute:1");
    for one in &before[1..] {
        assert_eq!(one["restartPolicy"], "Always");
        assert_eq!(
            one["securityContext"],
            spec["containers"][0]["securityContext"]
        );
    }
    assert_eq!(before[2]["image"], "registry/details:1");
    let volumes = spec["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume.get("image").is_none()));
    let shared = json!({"name": "container-disks", "mountPath": CONTAINER_DISKS});
    for one in [&before[2], &spec["containers"][0]] {
        assert!(one["volumeMounts"].as_array().unwrap().contains(&shared));
    }
}

#[test]
fn huge_pages_are_asked_for_apart_from_the_rest_of_the_memory() {
    let huge = "memory: {guest: 1Gi, hugepages: {pageSize: 2Mi}}";
    let objects = made(&MANIFEST.replace("memory: {guest: 1Gi}", huge), None).unwrap();
    let pod = objects
        .iter()
        .find(|object| object["kind"] == "Pod")
        .unwrap();
    let resources = &pod["spec"]["containers"][0]["resources"];
    for list in ["requests", "limits"] {
        assert_eq!(resources[list]["hugepages-2Mi"], "1024Mi");
        assert_eq!(resources[list]["memory"], "66Mi");
    }
}
