//! What calls from other threads have the engine do.

use std::net::SocketAddr;

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{Engine, KIND, PORT, Run};
use crate::config::Transport;
use crate::control::{Error, Flows, Kept};
use crate::forward::{Forwards, ListeningPort};
use crate::link::capture::Capture;

impl Engine {
    fn kept(&mut self) -> Kept {
        Kept {
            forwards: std::mem::take(&mut self.forwards),
            capture: self.capture.take(),
        }
    }

    pub(super) fn take_back(&mut self, kept: Kept) {
        self.forwards = kept.forwards;
        self.capture = kept.capture;
    }

    /// Nobody runs, after all.
    pub(super) fn park(&mut self) {
        let mut kept = self.kept();
        kept.forwards.forget();
        // Jobs end unanswered, which is an answer.
        while let Some((_, again)) = self.desk.close(kept) {
            kept = again;
        }
    }
}

impl Run<'_> {
    /// Does what was called for.
    pub(super) fn calls(&mut self) {
        for job in self.engine.desk.jobs() {
            job(self);
        }
    }

    /// The guest is gone: what outlives it is put away.
    pub(super) fn end(&mut self) {
        self.engine.forwards.forget();
        loop {
            self.engine.capture = self.link.capture.take();
            let kept = self.engine.kept();
            let Some((jobs, kept)) = self.engine.desk.close(kept) else {
                return;
            };
            self.engine.take_back(kept);
            self.link.capture = self.engine.capture.take();
            for job in jobs {
                job(self);
            }
            self.engine.forwards.forget();
        }
    }

    pub(crate) fn forwards(&self) -> &Forwards {
        &self.engine.forwards
    }

    /// Forwards one more port.
    pub(crate) fn add_forward(&mut self, mut port: ListeningPort) -> Result<(), Error> {
        let (fd, transport, bound) = (port.descriptor(), port.transport(), port.bound());
        let open = match port.tcp() {
            Some(tcp) if !self.engine.config.eager => self.probes.add(tcp, self.now),
            _ => true,
        };
        let watch = |error| Error::Watch(bound, error);
        port.set_listening(open).map_err(watch)?;
        let index = self.engine.forwards.insert(port)?;
        if open {
            let event = EpollEvent::new(EventSet::IN, PORT << KIND | index as u64);
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, event) {
                self.engine.forwards.remove(transport, bound);
                return Err(watch(error));
            }
        }
        Ok(())
    }

    /// Forwards a port no longer; its socket's end ends the watch.
    pub(crate) fn remove_forward(&mut self, transport: Transport, bind: SocketAddr) -> Option<()> {
        let gone = self.engine.forwards.remove(transport, bind)?;
        if let Some(tcp) = gone.tcp()
            && !self
                .engine
                .forwards
                .ports()
                .any(|(_, port)| port.tcp() == Some(tcp))
        {
            self.probes.remove(tcp);
        }
        Some(())
    }

    pub(crate) fn guest_tells(&mut self, tells: bool) {
        self.probes.told(tells, self.now);
    }

    pub(crate) fn capture(&mut self) -> &mut Option<Box<Capture>> {
        &mut self.link.capture
    }

    pub(crate) fn list_flows(&self, most: usize) -> Flows {
        Flows {
            total: self.table.len(),
            flows: self.table.status(self.now, most),
        }
    }
}
