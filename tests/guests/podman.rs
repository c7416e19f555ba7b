//! What `peapod pod` prints, played by podman (`podman kube play`), of a Debian that has one with image
//! volumes; under its own seccomp profile.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use peapod_tests::kubelet::printed;
use peapod_tests::{Vm, image, unpack_tar, until};
use serde_json::Value;
use tempfile::TempDir;

/// How long podman may take to unpack an image.
const LOAD: Duration = Duration::from_secs(120);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guests/podman.sh");
/// Below the machine's root, where its programs find it as /w.
const FILES: &str = "w";
/// Bookinfo's details as for a cluster, whose registry is podman's own store.
const VMI: &str = include_str!("../../examples/bookinfo/details-cluster.yaml");

/// A machine with podman, until it is dropped.
struct Machine {
    process: Vm,
    root: TempDir,
}

impl Machine {
    fn start() -> Self {
        let root = tempfile::tempdir().unwrap();
        let archive = image("podman.tar");
        assert!(
            archive.exists(),
            "podman.tar: `ci/build slow` as root makes it"
        );
        unpack_tar(&archive, root.path());
        let files = root.path().join(FILES);
        fs::create_dir_all(&files).unwrap();
        for (from, to) in [
            ("compute.tar", "compute.tar"),
            ("containerdisks/peapod_details_latest.tar", "details.tar"),
            ("containerdisks/peapod_kernel_latest.tar", "kernel.tar"),
        ] {
            fs::copy(image(from), files.join(to)).unwrap();
        }
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "bash"]);
        let process = Vm::start(unshare.arg(SCRIPT).arg(root.path()));
        process.wait_console("ready", 1, LOAD);
        let machine = Self { process, root };
        for name in ["compute", "details", "kernel"] {
            machine.run(&format!("podman load -q -i /w/{name}.tar"));
        }
        machine
    }

    fn attempt(&self, script: &str) -> Result<String, String> {
        let mut enter = Command::new("nsenter");
        let pid = self.process.pid().to_string();
        enter.args(["--target", &pid, "--mount", "--net", "--root", "--wd"]);
        let output = enter
            .args(["sh", "-c", script])
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap();
        let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(said(&output.stdout)),
            false => Err(said(&output.stdout) + &said(&output.stderr)),
        }
    }

    /// What a script prints there.
    fn run(&self, script: &str) -> String {
        let done = self.attempt(script);
        done.unwrap_or_else(|said| panic!("{script}: {said}"))
    }
}

/// What `peapod pod` prints of the VMI, with another user.
fn pod(directory: &Path, (user, group): (u32, u32)) -> Value {
    let vmi = directory.join("vmi.yaml");
    fs::write(&vmi, VMI.replace("REGISTRY", "localhost")).unwrap();
    // As podman knows a device.
    let mut list = printed(&vmi, &["--kvm-resource", "podman.io/device=/dev/kvm"]);
    let objects = list["items"].as_array_mut().unwrap();
    let pod = objects.iter_mut().find(|object| object["kind"] == "Pod");
    let security = &mut pod.unwrap()["spec"]["securityContext"];
    for (key, value) in [
        ("runAsUser", user),
        ("runAsGroup", group),
        ("fsGroup", group),
    ] {
        security[key] = value.into();
    }
    list
}

#[test]
#[ignore = "slow: make test-all"]
fn podman_plays_the_pod_as_any_user_and_it_answers_and_ends_cleanly() {
    let machine = Machine::start();
    let files = machine.root.path().join(FILES);
    // KubeVirt's user, and one of OpenShift's.
    for user in [(107, 107), (1_000_660_000, 0)] {
        let list = pod(&files, user);
        // Podman reads documents, and no List.
        let documents: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        fs::write(files.join("pod.yaml"), documents.join("\n---\n")).unwrap();
        machine.run("podman kube play /w/pod.yaml");
        let address = machine.run(
            "podman inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' \
             $(podman pod inspect -f '{{.InfraContainerID}}' details-vm)",
        );
        let address = address.trim();
        // The kubelet's own question. Podman asks by a curl in the container, which has none.
        let ready = format!("curl -sfm 5 http://{address}:8095/readyz");
        until("it is not ready", || machine.attempt(&ready).ok());
        let book = machine.run(&format!("curl -sfm 20 http://{address}:9080/details/0"));
        assert!(
            book.contains("\"author\":\"William Shakespeare\""),
            "{book}"
        );

        let process = machine.run("podman top details-vm-compute huser hgroup capeff seccomp");
        let process: Vec<_> = process.lines().nth(1).unwrap().split_whitespace().collect();
        let (uid, gid) = (user.0.to_string(), user.1.to_string());
        let group = if user.1 == 0 { "root" } else { &gid };
        assert_eq!(process, [&*uid, group, "none", "filter"]);
        let inspect = machine.run("podman inspect details-vm-compute");
        let inspect: Value = serde_json::from_str(&inspect).unwrap();
        let host = &inspect[0]["HostConfig"];
        assert_eq!(
            (&host["ReadonlyRootfs"], &host["Privileged"]),
            (&true.into(), &false.into())
        );
        assert_eq!(inspect[0]["BoundingCaps"], Value::Null);

        machine.run("podman pod stop details-vm");
        let status = machine.run("podman inspect -f '{{.State.ExitCode}}' details-vm-compute");
        assert_eq!(
            status.trim(),
            "0",
            "{}",
            machine.run("podman logs details-vm-compute 2>&1")
        );
        machine.run("podman kube down /w/pod.yaml");
    }
}
