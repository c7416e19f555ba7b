//! The VM behind the door, and what is to be told of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::agent::program::Programs;
use crate::calendar;
use crate::domain::{self, Domain, Guest, Now, State};
use crate::plan::Outcome;
use crate::running::Running;

pub struct Vm {
    pub running: Arc<Running>,
    pub domain: Domain,
    pub agent: Programs,
    known: Mutex<Known>,
}

/// What is remembered of it.
#[derive(Default)]
struct Known {
    guest: Guest,
    stopping: Option<u64>,
    ended: Option<(State, bool)>,
    deleted: Option<u64>,
}

impl Vm {
    pub fn new(running: Arc<Running>, domain: Domain, agent: Programs) -> Self {
        Self {
            running,
            domain,
            agent,
            known: Mutex::default(),
        }
    }

    /// How it is now.
    pub fn now(&self) -> Now {
        let mut known = self.known();
        if known.stopping.is_none() && domain::is_stopping(&self.running) {
            known.stopping = Some(calendar::now());
        }
        let (state, panicked) = match (known.deleted, known.ended) {
            (Some(_), ended) => (State::GONE, ended.is_some_and(|ended| ended.1)),
            (None, Some(ended)) => ended,
            (None, None) => (State::of(&self.running), false),
        };
        Now {
            state,
            agent: known.ended.is_none() && self.running.is_answered(),
            guest: known.guest.clone(),
            stopping: known.stopping,
            deleted: known.deleted,
            panicked,
        }
    }

    /// The guest has told this of itself.
    pub fn has_told(&self, guest: Guest) {
        self.known().guest = guest;
        self.running.changes().tell();
    }

    /// The guest's file systems stand still from now on, or go on.
    pub fn set_frozen(&self, frozen: bool) {
        self.known().guest.set_frozen(frozen);
        self.running.changes().tell();
    }

    /// It has ended.
    pub fn end(&self, outcome: Option<&Outcome>) {
        let panicked = matches!(outcome, Some(Outcome::Panicked(_)));
        self.known().ended = Some((State::after(outcome), panicked));
    }

    /// Whether it has.
    pub fn has_ended(&self) -> bool {
        self.known().ended.is_some()
    }

    /// Nobody wants to know of it any more.
    pub fn delete(&self) {
        self.known().deleted = Some(calendar::now());
    }

    /// Whether that is so.
    pub fn is_deleted(&self) -> bool {
        self.known().deleted.is_some()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
