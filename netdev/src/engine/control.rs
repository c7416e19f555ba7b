//! What calls from other threads have the engine do.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::{Engine, KIND, PORT, Run};
use crate::config::Transport;
use crate::control::{Error, Flows, Kept};
use crate::forward::{Forwards, ListeningPort, Told};
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
        let (transport, bound) = (port.transport(), port.bound());
        let open = match port.tcp() {
            _ if self.engine.config.eager => true,
            Some(tcp) => self.probes.add(tcp, self.now),
            None => true,
        };
        let watch = |error| Error::Watch(bound, error);
        port.set_listening(open).map_err(watch)?;
        if !self.engine.config.eager {
            port.follow(self.told.as_ref()).map_err(watch)?;
        }
        let fd = port.descriptor();
        let index = self.engine.forwards.insert(port)?;
        if open && let Err(error) = self.watch_port(index, fd) {
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
        let mut opened = Vec::new();
        for (index, port) in self.engine.forwards.ports_mut() {
            match port.follow(self.told.as_ref()) {
                Ok(true) => opened.push((index, port.descriptor())),
                Ok(false) => {}
                Err(error) => tracing::warn!("port {}: {error}", port.bound()),
            }
        }
        for (index, fd) in opened {
            if let Err(error) = self.watch_port(index, fd) {
                tracing::warn!("a forwarded port could not be watched: {error}");
            }
        }
    }

    /// Has epoll tell of what comes to the forward at that place.
    fn watch_port(&self, index: usize, fd: RawFd) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, PORT << KIND | index as u64);
        self.epoll.ctl(ControlOperation::Add, fd, event)
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
