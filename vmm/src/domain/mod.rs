//! A VM as virt-handler knows VMs: a domain of libvirt's, in KubeVirt's JSON of it, which has Go's
//! names of fields. Of a domain it has what virt-handler reads.

pub mod stats;

use std::net::IpAddr;

use guest_agent::protocol::{GuestInfo, Os};
use serde_json::{Value, json};

use crate::agent::qga;
use crate::calendar::rfc3339;
use crate::plan::{Backing, Outcome, Plan};
use crate::running::{Phase, Running};

/// What of a domain does not change while it lives.
#[derive(Debug, Clone)]
pub struct Domain {
    /// The VMI's.
    pub name: String,
    /// The VMI's.
    pub namespace: String,
    /// The VMI's.
    pub uid: String,
    uuid: String,
    memory: u64,
    vcpus: u32,
    disks: Vec<Value>,
    /// The interface's name, and all of it.
    interface: Option<(String, Value)>,
    grace_seconds: u64,
}

/// A state of libvirt's and the reason for it, in KubeVirt's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(pub &'static str, pub &'static str);

impl State {
    /// Of a machine that is there no more.
    pub const GONE: Self = Self("NoState", "NonExistent");

    /// Of one that runs.
    pub fn of(running: &Running) -> Self {
        match running.power().is_paused() {
            true => Self("Paused", "User"),
            false => Self("Running", "Unknown"),
        }
    }

    /// Of one that has ended so.
    pub fn after(outcome: Option<&Outcome>) -> Self {
        match outcome {
            Some(Outcome::PoweredOff | Outcome::Rebooted) => Self("Shutoff", "Shutdown"),
            Some(Outcome::Forced) => Self("Shutoff", "Destroyed"),
            Some(Outcome::Panicked(_)) => Self("Crashed", "Panicked"),
            Some(Outcome::Crashed(_)) => Self("Shutoff", "Crashed"),
            // We failed it.
            None => Self("Shutoff", "Failed"),
        }
    }
}

/// What a guest has told of itself: nothing yet, where all of it is empty.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Guest {
    os: Os,
    links: Vec<Link>,
    /// Whether its file systems stand still, once known.
    frozen: Option<bool>,
}

/// One of its links to networks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    name: String,
    mac: String,
    addresses: Vec<IpAddr>,
}

impl Guest {
    /// What that says.
    pub fn of(info: GuestInfo) -> Self {
        let links = info.interfaces.into_iter().map(|link| Link {
            name: link.name,
            mac: link.mac,
            addresses: link.addresses.iter().map(|address| address.ip).collect(),
        });
        Self {
            os: info.os,
            // Nobody reaches it by that.
            links: links.filter(|link| link.name != "lo").collect(),
            frozen: Some(info.frozen),
        }
    }

    /// Its file systems stand still from now on, or go on.
    pub fn set_frozen(&mut self, frozen: bool) {
        self.frozen = Some(frozen);
    }
}

impl Link {
    fn json(&self) -> Value {
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        json!({
            "Mac": self.mac,
            "Ip": addresses.first().map_or("", String::as_str),
            "IPs": addresses,
            "InterfaceName": self.name,
        })
    }
}

/// What of a domain changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// How it is.
    pub state: State,
    /// There is an agent in its guest.
    pub agent: bool,
    /// What it has told of itself.
    pub guest: Guest,
    /// When somebody asked for its end, in seconds since 1970.
    pub stopping: Option<u64>,
    /// When it was gone for good.
    pub deleted: Option<u64>,
    /// The guest's kernel has panicked.
    pub panicked: bool,
}

impl Domain {
    /// The domain that a plan makes, for the VMI of that UID.
    pub fn of(plan: &Plan, uid: &str) -> Self {
        let vm = &plan.machine;
        let letters = ('a'..='z').map(|letter| format!("vd{letter}"));
        let disks = letters.zip(&plan.disks).map(|(device, disk)| {
            let file = match &disk.backing {
                Backing::File(path, _)
                | Backing::Base(path, _)
                | Backing::ContainerDisk(path, _) => path.display().to_string(),
                Backing::Empty(_) | Backing::Memory(_) => "memory".to_owned(),
            };
            json!({
                "Device": "disk",
                "Type": "file",
                "Source": { "File": file },
                "Target": { "Bus": "virtio", "Device": device },
                "Alias": { "Name": disk.name, "UserDefined": true },
            })
        });
        let interface = vm.interface.as_ref().map(|interface| {
            let mac = plan.mac(interface).map(|byte| format!("{byte:02x}"));
            let mac = mac.join(":");
            let json = json!({
                "Type": "user",
                "MAC": { "MAC": mac },
                "Model": { "Type": "virtio" },
                "Alias": { "Name": interface.name, "UserDefined": true },
            });
            (interface.name.clone(), json)
        });
        Self {
            name: vm.name.clone(),
            namespace: vm.namespace.clone(),
            uid: uid.to_owned(),
            uuid: vm.uuid.clone(),
            memory: vm.memory,
            vcpus: vm.topology.vcpus(),
            disks: disks.collect(),
            interface,
            grace_seconds: vm.termination_grace.as_secs(),
        }
    }

    /// libvirt's name for it.
    pub fn full_name(&self) -> String {
        format!("{}_{}", self.namespace, self.name)
    }

    /// The domain now.
    pub fn json(&self, now: &Now) -> Value {
        let State(state, reason) = now.state;
        let agent = if now.agent {
            "connected"
        } else {
            "disconnected"
        };
        let memory = json!({ "Value": self.memory, "Unit": "b" });
        let interfaces: Vec<_> = self.interface.iter().map(|(_, json)| json).collect();
        let os = &now.guest.os;
        let links: Vec<_> = now.guest.links.iter().map(Link::json).collect();
        let frozen = match now.guest.frozen {
            Some(true) => "frozen",
            Some(false) => "thawed",
            None => "",
        };
        let panic = now.panicked.then(|| json!({ "Type": "pvpanic" }));
        json!({
            "kind": "Domain",
            "apiVersion": "1.2.2",
            "ObjectMeta": {
                "name": self.name,
                "namespace": self.namespace,
                "uid": self.uid,
                "creationTimestamp": null,
                "deletionTimestamp": now.deleted.map(rfc3339),
            },
            "Spec": {
                "XMLName": { "Space": "", "Local": "domain" },
                "Type": "kvm",
                "Name": self.full_name(),
                "UUID": self.uuid,
                "Memory": memory,
                "CurrentMemory": memory,
                "OS": { "Type": { "OS": "hvm", "Arch": "x86_64", "Machine": "q35" } },
                // It ends cleanly when asked to; one that does not was ended by force.
                "Features": { "ACPI": {} },
                "VCPU": { "Placement": "static", "CPUs": self.vcpus },
                "Devices": {
                    "Interfaces": interfaces,
                    "Disks": self.disks,
                    "Channels": [{
                        "Type": "unix",
                        "Target": { "Name": qga::PORT, "Type": "virtio", "State": agent },
                    }],
                },
                "Metadata": { "KubeVirt": {
                    "UID": self.uid,
                    "GracePeriod": {
                        "DeletionGracePeriodSeconds": self.grace_seconds,
                        "DeletionTimestamp": now.stopping.map(rfc3339),
                    },
                }},
            },
            "Status": {
                "Status": state,
                "Reason": reason,
                "Interfaces": links,
                "OSInfo": {
                    "Name": os.name,
                    "KernelRelease": os.kernel_release,
                    "Version": os.version,
                    "PrettyName": os.pretty_name,
                    "VersionId": os.version_id,
                    "KernelVersion": os.kernel_version,
                    "Machine": os.machine,
                    "Id": os.id,
                },
                "FSFreezeStatus": { "Status": frozen },
                "GuestPanicInfo": panic,
                "PanicCount": u8::from(now.panicked),
            },
        })
    }
}

/// Whether somebody has asked for the end.
pub fn is_stopping(running: &Running) -> bool {
    running.status().status == Phase::Stopping
}

#[cfg(test)]
mod tests {
    use super::*;

    /// virt-handler's phases hang on these words.
    #[test]
    fn every_end_has_libvirt_s_state_and_reason() {
        let text = String::new;
        for (outcome, state, reason) in [
            (Some(Outcome::PoweredOff), "Shutoff", "Shutdown"),
            (Some(Outcome::Rebooted), "Shutoff", "Shutdown"),
            (Some(Outcome::Forced), "Shutoff", "Destroyed"),
            (Some(Outcome::Crashed(text())), "Shutoff", "Crashed"),
            (Some(Outcome::Panicked(text())), "Crashed", "Panicked"),
            (None, "Shutoff", "Failed"),
        ] {
            assert_eq!(State::after(outcome.as_ref()), State(state, reason));
        }
    }
}
