//! A domain's life as virt-handler is told of it, to its end and a little beyond.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::notify::{Notifier, Told, warning};
use super::vm::Vm;
use crate::domain::{Guest, Now};
use crate::plan::Outcome;

/// How long virt-handler may take to delete the domain of a VM that has ended.
const DELETION: Duration = Duration::from_secs(15);

/// How often the guest is asked what it is and has, as KubeVirt's own launcher asks for addresses.
const ASK_AGAIN: Duration = Duration::from_secs(30);

pub struct Life {
    pub vm: Arc<Vm>,
    pub shared: Arc<Shared>,
    pub events: mpsc::Receiver<Value>,
    pub notifier: Notifier,
}

/// What came while there was nothing to tell.
enum Came {
    Change,
    Event(Value),
    End(Option<Outcome>),
}

impl Life {
    pub async fn live(mut self, mut ended: oneshot::Receiver<Option<Outcome>>) {
        let (mut told, mut asked, mut seen) = (None, None::<Instant>, 0);
        let outcome = loop {
            let running = &self.vm.running;
            let answers = running.agent.is_ready() || running.qemu_agent().is_some();
            if answers && asked.is_none_or(|at| at.elapsed() >= ASK_AGAIN) {
                asked = Some(Instant::now());
                tokio::task::spawn_blocking({
                    let vm = self.vm.clone();
                    move || match vm.running.guest_info() {
                        Ok(info) => vm.has_told(Guest::of(info)),
                        Err(why) => tracing::debug!("what the guest is and has: {why}"),
                    }
                });
            }
            let now = self.vm.now();
            if told.as_ref() != Some(&now) {
                let event = self.event(told.is_none(), &now);
                tokio::select! {
                    () = self.notifier.tell(&event) => told = Some(now),
                    outcome = &mut ended => break outcome,
                }
                continue;
            }
            let changes = self.vm.running.changes();
            let came = tokio::select! {
                () = poll_fn(|context| changes.poll(&mut seen, context)) => Came::Change,
                () = sleep(ASK_AGAIN), if answers => Came::Change,
                Some(event) = self.events.recv() => Came::Event(event),
                outcome = &mut ended => Came::End(outcome.ok().flatten()),
            };
            match came {
                Came::Change => {}
                Came::Event(event) => self.notifier.tell(&Told::Event(event)).await,
                Came::End(outcome) => break Ok(outcome),
            }
        };
        self.end(outcome.ok().flatten()).await;
    }

    fn event(&self, first: bool, now: &Now) -> Told {
        let kind = if first { "ADDED" } else { "MODIFIED" };
        Told::Domain(kind, self.vm.domain.json(now))
    }

    /// How it ended; and that there is no domain any more, once virt-handler wants none.
    async fn end(mut self, outcome: Option<Outcome>) {
        self.vm.end(outcome.as_ref());
        if let Some(Outcome::Panicked(_)) = outcome {
            let why = "the guest's kernel panicked";
            let event = warning(&self.vm.domain, "GuestPanicked", why);
            self.notifier.tell(&Told::Event(event)).await;
        }
        let event = self.event(false, &self.vm.now());
        self.notifier.tell(&event).await;
        if !self.notifier.is_heard() {
            return;
        }
        if timeout(DELETION, self.shared.deleted.notified())
            .await
            .is_err()
        {
            tracing::info!("virt-handler has not deleted the domain; it goes all the same");
        }
        self.vm.delete();
        let event = self.event(false, &self.vm.now());
        self.notifier.tell(&event).await;
    }
}
