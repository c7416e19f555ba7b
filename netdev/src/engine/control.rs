//! What calls from other threads have the engine do.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Engine, KIND, PORT, Run};
use crate::config::Transport;
use crate::control::{Error, Flows, Kept};
use crate::forward::{Forwards, ListeningPort, Told};
use crate::link::capture::Capture;

/// Has `epoll` tell of what comes to the forward at that place.
pub(super) fn watch_port(epoll: &Epoll, index: usize, fd: RawFd) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN, PORT << KIND | index as u64);
    epoll.ctl(ControlOperation::Add, fd, event)
}

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
        let (transport, bound) = (port.transport(), port.bound());
        let open = match port.tcp() {
            _ if self.engine.config.eager => true,
            Some(tcp) => self.probes.add(tcp, self.now),
            None => port.is_wanted(self.told.as_ref()),
        };
        let watch = |error| Error::Watch(bound, error);
        port.set_listening(open).map_err(watch)?;
        let fd = port.descriptor();
        let index = self.engine.forwards.insert(port)?;
        if open && let Err(error) = watch_port(&self.epoll, index, fd) {
            self.engine.forwards.remove(transport, bound);
            return Err(watch(error));
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

    pub(crate) fn guest_tells(&mut self, told: Option<Told>) {
        self.probes.told(told.is_some(), self.now);
        self.told = told;
        if self.engine.config.eager {
            return;
        }
        for (index, port) in self.engine.forwards.ports_mut() {
            let followed = match port.follow(self.told.as_ref()) {
                Ok(true) => watch_port(&self.epoll, index, port.descriptor()),
                other => other.map(drop),
            };
            if let Err(error) = followed {
                tracing::warn!("port {}: {error}", port.bound());
            }
        }
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
