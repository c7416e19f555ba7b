//! A VM that runs, for whoever asks from outside: how it is, and what may be done to it.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest_agent::protocol::{GuestInfo, Request};
use netdev::control::Control;
use serde::{Deserialize, Serialize};

use crate::agent::qga::{Qga, StandStill};
use crate::agent::{self, Agent};
use crate::changes::Changes;
use crate::console::Console;
use crate::devices::virtio::balloon::{self, Figures};
use crate::devices::virtio::block::counters::Counters;
use crate::devices::virtio::trouble::Complaints;
use crate::launch::Stopper;
use crate::machine::still::Errands;
use crate::machine::vcpu::Exits;
use crate::power::{self, Power};
use crate::resident::Resident;
use crate::snapshot::Line;
use crate::snapshot::layer::Layer;
use crate::spans::Times;

/// A running VM's parts, each of which any thread may use.
pub struct Running {
    /// The manifest's name.
    pub name: String,
    /// The manifest's namespace.
    pub namespace: String,
    /// The SMBIOS UUID.
    pub uuid: String,
    /// What was booted, and where its agent comes from.
    pub boots: String,
    /// How many vCPUs there are.
    pub vcpus: u32,
    /// The guest's memory, in bytes.
    pub memory: u64,
    /// Since when there is one.
    pub started: Instant,
    /// When this process came how far.
    pub times: Times,
    /// Whether Peapod's agent went in with what was booted.
    pub has_agent: bool,
    /// Its agent, there or not.
    pub agent: Agent,
    /// QEMU's, where Peapod's did not go in.
    pub qga: Option<Qga>,
    /// Its end.
    pub stopper: Stopper,
    /// Its console.
    pub console: Console,
    /// Its network, if it has one.
    pub network: Option<Control>,
    /// Its memory balloon, if it has one.
    pub balloon: Option<balloon::Control>,
    /// What is done with its disks, by name.
    pub disks: Vec<(String, Arc<Counters>)>,
    /// What the process holds of the host's memory.
    pub resident: Resident,
    /// What its devices have to say of their drivers.
    pub complaints: Vec<Arc<Complaints>>,
    /// Its vCPUs' exits.
    pub exits: Arc<Exits>,
    /// The machine as it is since the guest's last reset.
    pub power: Mutex<Power>,
    /// What a snapshot needs of it beside the machine.
    pub source: Source,
    /// What waits for the machine to stand still.
    pub errands: Errands,
}

/// What a snapshot of a VM has beside its machine.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// How it was started, where it can be started so again.
    pub line: Option<Line>,
    /// What is written to the disks that go with it, by name.
    pub layers: Vec<(String, Layer)>,
    /// The names of those that stay and that the guest may write.
    pub kept: Vec<String>,
}

/// How a VM is, in a word of `kubectl get vm`'s (KubeVirt's `printableStatus`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The guest has not said yet that it is ready.
    Starting,
    /// It has.
    Running,
    /// The vCPUs stand still.
    Paused,
    /// Somebody has asked for the end.
    Stopping,
}

/// What a VM is and how it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The manifest's name.
    pub name: String,
    /// The manifest's namespace.
    pub namespace: String,
    /// The SMBIOS UUID.
    pub uuid: String,
    /// The process.
    pub pid: u32,
    /// In a word.
    pub status: Phase,
    /// As `/readyz` has it.
    pub ready: bool,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// What was booted, and where its agent comes from.
    pub boots: String,
    /// How many there are.
    pub vcpus: u32,
    /// The guest's, in bytes.
    pub memory: u64,
    /// What the process holds of the host's memory, the guest's included, in bytes.
    pub resident: u64,
    /// What of its memory the guest has and uses; nothing where it has no balloon.
    pub balloon: Option<Figures>,
    /// What the agent says.
    pub agent: agent::Status,
    /// The version of QEMU's guest agent, where the guest has that one.
    pub qemu_agent: Option<String>,
}

impl Running {
    /// The machine's switch.
    pub fn power(&self) -> Power {
        self.power
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The guest was reset, and is another machine now; what was paused is not any more.
    pub fn watch(&self, power: Power) {
        *self.power.lock().unwrap_or_else(PoisonError::into_inner) = power;
        self.changes().tell();
    }

    /// That something about it has changed.
    pub fn changes(&self) -> &Changes {
        self.agent.changes()
    }

    /// Waits until Peapod's agent has said that the guest's set-up is over.
    pub async fn until_the_agent_is_ready(&self) {
        let mut seen = 0;
        while !self.agent.is_ready() {
            poll_fn(|context| self.changes().poll(&mut seen, context)).await;
        }
    }

    /// What it is and how it is.
    pub fn status(&self) -> Status {
        Status {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            uuid: self.uuid.clone(),
            pid: std::process::id(),
            status: self.phase(),
            ready: self.unready().is_empty(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            boots: self.boots.clone(),
            vcpus: self.vcpus,
            memory: self.memory,
            resident: self.resident.bytes(),
            balloon: self.balloon(),
            agent: self.agent.status(),
            qemu_agent: self.qemu_agent(),
        }
    }

    /// The version of QEMU's guest agent, where the guest has that one.
    pub fn qemu_agent(&self) -> Option<String> {
        self.qga.as_ref().and_then(Qga::version)
    }

    /// Whether somebody in the guest is there to be asked.
    pub fn is_answered(&self) -> bool {
        self.agent.is_connected() || self.qga.as_ref().is_some_and(Qga::is_there)
    }

    /// What the guest is and has, by the agent that is there: the guest's word.
    pub fn guest_info(&self) -> Result<GuestInfo, String> {
        match &self.qga {
            Some(qga) if qga.is_there() => qga.info().map_err(|error| error.to_string()),
            _ => self.agent.guest_info().map_err(|error| error.to_string()),
        }
    }

    /// Has the guest's file systems stand still or go on, by the agent that is there.
    pub fn stand_still(&self, how: StandStill) -> Result<(), String> {
        if let Some(qga) = self.qga.as_ref().filter(|qga| qga.is_there()) {
            return qga.stand_still(how).map_err(|error| error.to_string());
        }
        let request = match how {
            StandStill::For(seconds) => Request::Freeze { seconds },
            StandStill::NoMore => Request::Thaw,
        };
        let asked = self.agent.ask(&request);
        asked.map(drop).map_err(|error| error.to_string())
    }

    /// Whether the guest's set-up is over. Of one that has no agent of Peapod's nobody knows, and it is
    /// taken to be.
    fn is_set_up(&self) -> bool {
        let told = self.has_agent || self.agent.is_connected();
        self.agent.is_ready() || !told
    }

    /// What of its memory the guest has and uses, as it says now; a paused one cannot be asked.
    pub fn balloon(&self) -> Option<Figures> {
        let ask = !self.power().is_paused();
        self.balloon.as_ref().map(|balloon| balloon.figures(ask))
    }

    fn phase(&self) -> Phase {
        if self.stopper.is_stopping() {
            Phase::Stopping
        } else if self.power().is_paused() {
            Phase::Paused
        } else if self.is_set_up() {
            Phase::Running
        } else {
            Phase::Starting
        }
    }

    /// Why the VM is not ready, a sentence a reason: the guest's set-up is not over, it does not
    /// run, or nothing in it answers behind a forward.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !self.is_set_up() {
            reasons.push("the guest's set-up is not over".to_owned());
        }
        match self.phase() {
            Phase::Paused => reasons.push("the VM is paused".to_owned()),
            Phase::Stopping => reasons.push("the VM is stopping".to_owned()),
            Phase::Starting | Phase::Running => {}
        }
        let forwards = self.network.as_ref().map(Control::forwards);
        match forwards.unwrap_or(Ok(Vec::new())) {
            Ok(forwards) => reasons.extend(forwards.iter().filter(|f| !f.listens).map(|closed| {
                let forward = &closed.forward;
                format!(
                    "nothing in the guest listens on its port {} ({forward} here)",
                    forward.guest_port
                )
            })),
            Err(error) => reasons.push(error.to_string()),
        }
        reasons
    }

    /// Stops the vCPUs where they are. Fails where the VM is ending.
    pub fn pause(&self) -> Result<(), &'static str> {
        if self.stopper.is_stopping() {
            return Err("the VM is stopping");
        }
        self.power().pause();
        self.changes().tell();
        Ok(())
    }

    /// Lets them go on, and tells the guest what time it is now.
    pub fn resume(&self) {
        self.power().resume();
        self.agent.set_clock();
        self.changes().tell();
    }

    /// Resets the machine, as its button would. Fails where the VM is ending.
    pub fn reset(&self) -> Result<(), &'static str> {
        if self.stopper.is_stopping() {
            return Err("the VM is stopping");
        }
        self.power().end(power::Outcome::Reset);
        Ok(())
    }

    /// Powers the guest off, by force after `grace`, or the manifest's grace period.
    pub fn stop(&self, grace: Option<Duration>) {
        self.stopper.stop(grace);
    }

    /// Ends it now.
    pub fn kill(&self) {
        self.stopper.kill();
    }
}
