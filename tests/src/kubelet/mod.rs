//! A kubelet small enough for the tests: one pod that `peapod pod` printed, in a network and a control
//! group of its own, whose compute container it keeps. What it does is what Kubernetes documents (Pod Lifecycle;
//! Liveness, Readiness and Startup Probes; Determine the Reason for Pod Failure).
//!
//! It works while a test waits for something ([`Kubelet::until`]), and asks one probe after another.
//! A container that ends is started again at once: what a kubelet waits between a second start and
//! further ones is left out.

mod probe;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::container::{Container, Place, entry_point};
use crate::group::Group;
use crate::space::{Space, run};
use crate::{Manifest, PATIENCE, peapod};
use probe::Probe;

/// What a kubelet reads of a termination message, from its end.
const MESSAGE: usize = 4096;

/// How a container has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminated {
    /// Its status, or 128 and a signal's number.
    pub exit_code: i32,
    /// What it left as the reason.
    pub message: String,
}

/// What there is to see of a pod.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Its startup probe has succeeded.
    pub started: bool,
    /// Its readiness probe does.
    pub ready: bool,
    /// How many of the pod's containers are ready, of how many, as `kubectl get pods` has it.
    pub containers: (usize, usize),
    /// How often its container was started again.
    pub restarts: u32,
    /// How the container ended when it last did.
    pub last: Option<Terminated>,
    /// It has ended for good.
    pub phase: Option<&'static str>,
    /// What happened, in order.
    pub events: Vec<String>,
}

/// A pod and who keeps it; both end with this.
#[derive(Debug)]
pub struct Kubelet {
    /// Before what it is in.
    container: Container,
    /// The pod's address.
    pub address: IpAddr,
    /// The memory that it may have.
    pub limit: u64,
    /// The pod's control group.
    pub group: Group,
    /// The containers behind the first, which are others' to keep, by what tells that they are ready.
    others: Vec<(Option<Probe>, bool)>,
    _network: Arc<Space>,
    grace: Duration,
    restart: String,
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
    status: Status,
}

/// The List that `peapod pod` prints of a manifest's file, with those options.
pub fn printed(manifest: &Path, options: &[&str]) -> Value {
    let output = Command::new(peapod())
        .args(["pod", "-o", "json"])
        .args(options)
        .arg(manifest)
        .output();
    let output = output.expect("run peapod");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Its objects, of a manifest.
fn objects(manifest: &Manifest, options: &[&str]) -> Vec<Value> {
    let directory = tempfile::tempdir().expect("a directory");
    let list = printed(&manifest.write(directory.path()), options);
    list["items"].as_array().expect("objects").clone()
}

/// The pod of these objects, or the one that a deployment makes.
fn pod_spec(objects: &[Value]) -> &Value {
    let pod = objects.iter().find(|object| object["kind"] == "Pod");
    let made = || {
        let deployment = objects.iter().find(|o| o["kind"] == "Deployment");
        &deployment.expect("a pod or a deployment")["spec"]["template"]
    };
    &pod.unwrap_or_else(made)["spec"]
}

/// A pod's container, with what it has in the Pod.
fn start(objects: &[Value], place: Place<'_>, name: &str) -> Container {
    let spec = pod_spec(objects);
    let entry = entry_point();
    let command = entry.iter().map(String::as_str);
    let command: Vec<&str> = command
        .chain(words(&spec["containers"][0]["args"]))
        .collect();
    let id = |name: &str| {
        let id = spec["securityContext"][name].as_u64();
        u32::try_from(id.expect("a number")).expect("a user")
    };
    let user = (id("runAsUser"), id("runAsGroup"));
    let vmi = objects[0]["stringData"]["vmi.yaml"].as_str();
    Container::start_in(place, name, user, &command, vmi.expect("a VMI"))
}

/// A command or its arguments, as a Pod has them.
pub fn words(list: &Value) -> Vec<&str> {
    let list = list.as_array().expect("words").iter();
    list.map(|word| word.as_str().expect("a word")).collect()
}

/// The memory that a pod may have, which `peapod pod` has in MiB.
fn memory_limit(spec: &Value) -> u64 {
    let limit = &spec["containers"][0]["resources"]["limits"]["memory"];
    let mib = limit.as_str().and_then(|text| text.strip_suffix("Mi"));
    mib.and_then(|mib| mib.parse::<u64>().ok()).expect("MiB") << 20
}

/// A network for a pod, on a link to the caller's, and its address.
fn network() -> (Arc<Space>, IpAddr) {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let space = Space::new("kubelet").expect("a network");
    let (link, net) = (format!("veth{number}"), format!("10.244.{number}"));
    run(Command::new("sh").arg("-ec").arg(format!(
        "ip link add {link} type veth peer name eth0 netns {}
         ip address add {net}.1/24 dev {link}; ip link set {link} up",
        space.name
    )))
    .expect("a link");
    let up = format!(
        "ip address add {net}.2/24 dev eth0; ip link set eth0 up
         ip route add default via {net}.1"
    );
    space.shell(&up).expect("an address");
    (Arc::new(space), Ipv4Addr::new(10, 244, number, 2).into())
}

/// Sets what a pod wants of its network.
fn set(spec: &Value, space: &Space) {
    let sysctls = spec["securityContext"]["sysctls"].as_array();
    for sysctl in sysctls.into_iter().flatten() {
        let text = |name: &str| sysctl[name].as_str().expect("a sysctl");
        let path = text("name").replace('.', "/");
        let set = format!("echo {} >/proc/sys/{path}", text("value"));
        space.shell(&set).expect("a sysctl");
    }
}

impl Kubelet {
    /// Runs what `peapod pod` prints of a manifest, with those options.
    pub fn run(name: &str, manifest: &Manifest, options: &[&str]) -> Self {
        Self::run_on(None, name, manifest, options)
    }

    /// The same, where the node's disk is that folder.
    pub fn run_on(disk: Option<&Path>, name: &str, manifest: &Manifest, options: &[&str]) -> Self {
        let objects = objects(manifest, options);
        let network = network();
        Self::keep(name, &objects, network, disk)
    }

    /// Runs the pod of these objects in a network that is there, where it has that address. Containers behind
    /// the first are others' to start.
    pub fn run_in(network: (Arc<Space>, IpAddr), name: &str, objects: &[Value]) -> Self {
        Self::keep(name, objects, network, None)
    }

    fn keep(
        name: &str,
        objects: &[Value],
        (network, address): (Arc<Space>, IpAddr),
        disk: Option<&Path>,
    ) -> Self {
        let spec = pod_spec(objects);
        set(spec, &network);
        let group = Group::new(&network.name).expect("a control group");
        let limit = memory_limit(spec);
        let limited = group.set("memory.max", &limit.to_string());
        limited.expect("a limit");
        let before = spec["initContainers"].as_array();
        let before = before.map(|all| [0, 1].map(|number| words(&all[number]["command"])));
        let before = before.as_ref().map(|[copy, give]| [&copy[..], give]);
        let place = Place {
            network: Some(&network),
            group: Some(&group),
            disk,
            before,
        };
        let others = spec["containers"].as_array().expect("containers").iter();
        let others = others
            .skip(1)
            .map(|other| Probe::of(other, "readinessProbe"));
        let others = others.map(|probe| (probe, false)).collect();
        let probe = |name| Probe::of(&spec["containers"][0], name);
        let grace = spec["terminationGracePeriodSeconds"].as_u64();
        Self {
            container: start(objects, place, name),
            others,
            address,
            limit,
            grace: Duration::from_secs(grace.expect("seconds")),
            restart: spec["restartPolicy"].as_str().expect("a policy").to_owned(),
            startup: probe("startupProbe"),
            readiness: probe("readinessProbe"),
            liveness: probe("livenessProbe"),
            status: Status::default(),
            group,
            _network: network,
        }
    }

    /// Gives up on a start at the next failure, where a test cannot wait for as many as the Pod says.
    pub fn give_up_start(&mut self) {
        if let Some(startup) = &mut self.startup {
            startup.failures = 1;
        }
    }

    /// What there is to see.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// The container's log and console, to wait for.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Works until the pod is as it should be.
    #[track_caller]
    pub fn until(&mut self, what: &str, limit: Duration, done: impl Fn(&Status) -> bool) {
        let end = Instant::now() + limit;
        while !done(&self.status) {
            if Instant::now() > end {
                panic!("{what}: {:#?}", self.status);
            }
            self.work();
            sleep(Duration::from_millis(20));
        }
    }

    /// Works for so long.
    pub fn attend(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.work();
            sleep(Duration::from_millis(20));
        }
    }

    /// Deletes the pod, as a drain does: how it ended.
    pub fn delete(&mut self) -> Terminated {
        let ended = self.kill("the pod is deleted", self.grace);
        self.status.ready = false;
        self.status.last = Some(ended.clone());
        self.status.phase = Some("Deleted");
        ended
    }

    fn tell(&mut self, event: String) {
        self.status.events.push(event);
    }

    /// What is to be done now.
    fn work(&mut self) {
        if self.status.phase.is_some() {
            return;
        }
        if let Some(exit_code) = self.container.vm.ended() {
            return self.ended(exit_code);
        }
        self.look_at_others();
        if !self.status.started && !self.start_up() {
            return;
        }
        let (address, container) = (self.address, &self.container);
        if let Some(probe) = &mut self.readiness {
            let answer = probe.ask(address, container);
            let verdict = probe.verdict().unwrap_or(self.status.ready);
            if let Some(Err(why)) = answer {
                self.tell(format!("Readiness probe failed: {why}"));
            }
            self.status.ready = verdict;
        }
        let container = &self.container;
        if let Some(probe) = &mut self.liveness
            && let Some(Err(why)) = probe.ask(address, container)
        {
            let (verdict, grace) = (probe.verdict(), probe.grace.unwrap_or(self.grace));
            self.tell(format!("Liveness probe failed: {why}"));
            if verdict == Some(false) {
                self.kill("Liveness probe failed", grace);
            }
        }
    }

    /// Which containers are ready: one without a probe as long as it runs.
    fn look_at_others(&mut self) {
        for (probe, ready) in &mut self.others {
            *ready = match probe {
                Some(probe) => {
                    probe.ask(self.address, &self.container);
                    probe.verdict().unwrap_or(*ready)
                }
                None => true,
            };
        }
        let beside = self.container.beside_runs();
        let others = self.others.iter().map(|(_, ready)| *ready).chain(beside);
        let all: Vec<bool> = others.chain([self.status.ready]).collect();
        self.status.containers = (all.iter().filter(|ready| **ready).count(), all.len());
    }

    /// Whether the startup probe, before which there is no other, has succeeded.
    fn start_up(&mut self) -> bool {
        let Some(probe) = &mut self.startup else {
            self.status.started = true;
            return true;
        };
        match probe.ask(self.address, &self.container) {
            None => {}
            Some(Ok(())) => self.status.started = probe.verdict() == Some(true),
            Some(Err(why)) => {
                let (verdict, grace) = (probe.verdict(), probe.grace.unwrap_or(self.grace));
                self.tell(format!("Startup probe failed: {why}"));
                if verdict == Some(false) {
                    self.kill("Startup probe failed", grace);
                }
            }
        }
        self.status.started
    }

    /// SIGTERM, time, SIGKILL; how it ended.
    fn kill(&mut self, why: &str, grace: Duration) -> Terminated {
        self.tell(format!("Killing: {why}"));
        let end = Instant::now() + grace;
        if self.container.vm.ended().is_none() {
            self.container.signal("TERM");
        }
        loop {
            if let Some(exit_code) = self.container.vm.ended() {
                return self.terminated(exit_code);
            }
            if Instant::now() > end {
                self.tell("Killing: by force".to_owned());
                self.container.signal("KILL");
                self.container.vm.wait(PATIENCE);
            }
            sleep(Duration::from_millis(20));
        }
    }

    fn terminated(&self, exit_code: i32) -> Terminated {
        let message = fs::read(self.container.file("last")).expect("the termination message");
        let from = message.len().saturating_sub(MESSAGE);
        Terminated {
            exit_code,
            message: String::from_utf8_lossy(&message[from..]).into_owned(),
        }
    }

    /// The container has ended: what becomes of the pod is the restart policy's.
    fn ended(&mut self, exit_code: i32) {
        self.status.last = Some(self.terminated(exit_code));
        self.status.ready = false;
        self.tell(format!("Ended: {exit_code}"));
        let again = match &*self.restart {
            "Always" => true,
            "OnFailure" => exit_code != 0,
            _ => false,
        };
        if !again {
            self.status.phase = Some(if exit_code == 0 {
                "Succeeded"
            } else {
                "Failed"
            });
            return;
        }
        self.container.restart();
        self.status.restarts += 1;
        self.status.started = false;
        let probes = [&mut self.startup, &mut self.readiness, &mut self.liveness];
        for probe in probes.into_iter().flatten() {
            probe.begin();
        }
    }
}
