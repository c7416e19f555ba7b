//! Manifests for the tests, a `VirtualMachineInstance` each.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::vm::image;

/// A manifest under construction; [`Manifest::write`] makes a file of it.
#[derive(Debug, Clone)]
pub struct Manifest {
    name: String,
    binding: &'static str,
    /// Sockets, cores of each, threads of those.
    topology: [u32; 3],
    memory: &'static str,
    volume: String,
    extra_disks: Vec<(String, PathBuf)>,
    ports: Vec<u16>,
    user_data: String,
    network_data: String,
    grace: u32,
    reboot_policy: Option<&'static str>,
    watchdog: Option<String>,
    liveness: Option<&'static str>,
    efi: bool,
    multi_queue: bool,
    threads: bool,
}

impl Manifest {
    /// A VM called `name` with an ephemeral Debian root, one core and 512 MiB, whose user-data is
    /// `script` (without its first line).
    pub fn new(name: &str, script: &str) -> Self {
        Self {
            name: name.to_owned(),
            binding: "masquerade",
            topology: [1; 3],
            memory: "512Mi",
            volume: container_disk("peapod_details_latest"),
            extra_disks: Vec::new(),
            ports: Vec::new(),
            user_data: format!("#!/bin/bash\n{script}"),
            network_data: String::new(),
            grace: 60,
            reboot_policy: None,
            watchdog: None,
            liveness: None,
            efi: false,
            multi_queue: false,
            threads: false,
        }
    }

    /// Another interface binding than masquerade.
    pub fn binding(mut self, binding: &'static str) -> Self {
        self.binding = binding;
        self
    }

    /// The number of cores.
    pub fn cores(self, cores: u32) -> Self {
        self.topology([1, cores, 1])
    }

    /// How many sockets, cores of each, threads of those.
    pub fn topology(mut self, topology: [u32; 3]) -> Self {
        self.topology = topology;
        self
    }

    /// The guest's memory.
    pub fn memory(mut self, memory: &'static str) -> Self {
        self.memory = memory;
        self
    }

    /// A port that the VM offers.
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    /// The root is this raw image, written to in place.
    pub fn root(mut self, image: &Path) -> Self {
        self.volume = host_disk(image);
        self
    }

    /// A further raw disk, written to in place.
    pub fn disk(mut self, name: &str, image: &Path) -> Self {
        self.extra_disks.push((name.to_owned(), image.to_owned()));
        self
    }

    /// Other user-data than a script.
    pub fn user_data(mut self, text: &str) -> Self {
        text.clone_into(&mut self.user_data);
        self
    }

    /// What the seed says of the network.
    pub fn network_data(mut self, text: &str) -> Self {
        text.clone_into(&mut self.network_data);
        self
    }

    /// Seconds between SIGTERM and force.
    pub fn grace(mut self, seconds: u32) -> Self {
        self.grace = seconds;
        self
    }

    /// What a guest's reboot does.
    pub fn reboot_policy(mut self, policy: &'static str) -> Self {
        self.reboot_policy = Some(policy);
        self
    }

    /// A watchdog, and what it does.
    pub fn watchdog(mut self, action: &str) -> Self {
        self.watchdog = Some(action.to_owned());
        self
    }

    /// A `livenessProbe`, in YAML's flow style.
    pub fn liveness(mut self, probe: &'static str) -> Self {
        self.liveness = Some(probe);
        self
    }

    /// UEFI starts the root's own loader.
    pub fn efi(mut self) -> Self {
        self.efi = true;
        self
    }

    /// The disks' files are asked by threads.
    pub fn threads(mut self) -> Self {
        self.threads = true;
        self
    }

    /// A disk has a queue for each CPU.
    pub fn multi_queue(mut self) -> Self {
        self.multi_queue = true;
        self
    }

    /// Writes the manifest into `directory` and returns the file's path.
    pub fn write(&self, directory: &Path) -> PathBuf {
        let path = directory.join(format!("{}.yaml", self.name));
        std::fs::write(&path, self.yaml()).expect("write the manifest");
        path
    }

    fn yaml(&self) -> String {
        let liveness = self
            .liveness
            .map(|probe| format!("  livenessProbe: {probe}\n"));
        let liveness = liveness.unwrap_or_default();
        let [sockets, cores, threads] = self.topology;
        let mut yaml = format!(
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata:\n  name: {}\n\
             spec:\n  terminationGracePeriodSeconds: {}\n{}  domain:\n    cpu:\n      cores: {}\n      sockets: {}\n      threads: {}\n    \
             memory:\n      guest: {}\n    chassis:\n      asset: rack 7\n",
            self.name, self.grace, liveness, cores, sockets, threads, self.memory
        );
        if let Some(policy) = self.reboot_policy {
            // writing to a String cannot fail
            let _ = writeln!(yaml, "    rebootPolicy: {policy}");
        }
        if self.efi {
            yaml += "    firmware: {bootloader: {efi: {secureBoot: false}}}\n";
        }
        yaml += "    devices:\n";
        if let Some(action) = &self.watchdog {
            let _ = writeln!(
                yaml,
                "      watchdog: {{name: dog, i6300esb: {{action: {action}}}}}"
            );
        }
        if self.multi_queue {
            yaml += "      blockMultiQueue: true\n";
        }
        yaml += "      disks:\n";
        let names = ["root"]
            .into_iter()
            .chain(self.extra_disks.iter().map(|(name, _)| &**name));
        for name in names.chain(["seed"]) {
            let _ = writeln!(yaml, "      - name: {name}\n        disk: {{bus: virtio}}");
            if self.threads {
                yaml += "        io: threads\n";
            }
        }
        let _ = writeln!(
            yaml,
            "      interfaces:\n      - name: default\n        {}: {{}}",
            self.binding
        );
        if !self.ports.is_empty() {
            yaml += "        ports:\n";
        }
        for port in &self.ports {
            let _ = writeln!(yaml, "        - port: {port}");
        }
        yaml += "  networks:\n  - name: default\n    pod: {}\n  volumes:\n";
        let _ = write!(yaml, "  - name: root\n{}", self.volume);
        for (name, image) in &self.extra_disks {
            let _ = write!(yaml, "  - name: {name}\n{}", host_disk(image));
        }
        yaml += "  - name: seed\n    cloudInitNoCloud:\n";
        for (key, text) in [
            ("userData", &self.user_data),
            ("networkData", &self.network_data),
        ] {
            if !text.is_empty() {
                let _ = writeln!(yaml, "      {key}: |");
            }
            for line in text.lines() {
                let _ = writeln!(yaml, "        {line}");
            }
        }
        yaml
    }
}

fn container_disk(name: &str) -> String {
    let archive = image(&format!("containerdisks/{name}.tar"));
    format!("    containerDisk:\n      image: {}\n", archive.display())
}

fn host_disk(image: &Path) -> String {
    format!(
        "    hostDisk:\n      path: {}\n      type: Disk\n",
        image.display()
    )
}
