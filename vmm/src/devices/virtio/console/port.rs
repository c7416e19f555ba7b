//! A port: what is on its way to the guest and from it, and the end of ours that it leads to.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::control::event;
use crate::devices::terminal::Keyboard;
use crate::devices::virtio::buffers;
use crate::devices::virtio::queue::{BadChain, Chain};

/// A guest has no reason to write more at once.
const MAX_CHAIN: usize = 64 << 10;
const PIECE: usize = 4 << 10;

/// Our end of the guest's console, `hvc0`.
pub struct Terminal {
    /// Where what the guest writes goes.
    pub screen: Box<dyn Write + Send>,
    /// Where what it reads comes from.
    pub keyboard: Box<dyn Keyboard>,
    /// Written to when there is something typed; it does not block.
    pub typed: EventFd,
}

/// Our end of a port with a name.
pub struct Named {
    /// The name.
    pub name: &'static str,
    /// It does not block.
    pub stream: UnixStream,
    /// Whether a program of the guest's has it open.
    pub open: Arc<AtomicBool>,
}

/// What a port leads to.
pub enum End {
    Terminal(Terminal),
    Named(Named),
}

impl End {
    /// What becomes readable when there is something for the guest.
    pub fn fd(&self) -> RawFd {
        match self {
            Self::Terminal(terminal) => terminal.typed.as_raw_fd(),
            Self::Named(named) => named.stream.as_raw_fd(),
        }
    }

    /// What the driver is told of the port once it has it: the message's kind, and the text that follows.
    /// The last is that the host's end is there.
    pub fn introduction(&self) -> [(u16, &'static str); 2] {
        match self {
            Self::Terminal(_) => [(event::CONSOLE_PORT, ""), (event::PORT_OPEN, "")],
            Self::Named(named) => [(event::PORT_NAME, named.name), (event::PORT_OPEN, "")],
        }
    }
}

/// A port.
pub struct Port {
    pub end: End,
    /// For the guest, at most a piece.
    incoming: Vec<u8>,
    /// Of the guest, at most a chain.
    outgoing: Vec<u8>,
}

impl Port {
    /// One with nothing on its way.
    pub fn new(end: End) -> Self {
        Self {
            end,
            incoming: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// A program of the guest's has opened it, or closed it: it gets nothing that was another's.
    pub fn opened(&mut self, open: bool) {
        if let End::Named(named) = &self.end {
            named.open.store(open, Ordering::Release);
            self.incoming.clear();
        }
    }

    /// Gives on what the guest wrote; whether all of it is gone.
    pub fn flush(&mut self) -> bool {
        let stream = match &mut self.end {
            End::Terminal(terminal) => {
                // It may be gone, as a closed pipe is; the guest must not notice.
                let _ = terminal.screen.write_all(&self.outgoing);
                let _ = terminal.screen.flush();
                self.outgoing.clear();
                return true;
            }
            End::Named(named) => &mut named.stream,
        };
        while !self.outgoing.is_empty() {
            match stream.write(&self.outgoing) {
                Ok(written) => drop(self.outgoing.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // Nobody is there who would read it.
                Err(_) => self.outgoing.clear(),
            }
        }
        true
    }

    /// Takes what there is for the guest; whether it has some. A port that is not open has none.
    pub fn fill(&mut self) -> bool {
        let named = match &mut self.end {
            End::Terminal(terminal) => {
                if self.incoming.is_empty() {
                    // What comes from now on is heard of again.
                    let _ = terminal.typed.read();
                    self.incoming = terminal.keyboard.take(PIECE);
                }
                return !self.incoming.is_empty();
            }
            End::Named(named) => named,
        };
        let mut bytes = [0; PIECE];
        while self.incoming.is_empty() {
            match named.stream.read(&mut bytes) {
                Ok(read) if read > 0 => {
                    if named.open.load(Ordering::Acquire) {
                        self.incoming.extend(bytes.iter().take(read));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return false,
            }
        }
        true
    }

    /// Takes what the guest wrote, once all before it is gone.
    pub fn take(&mut self, chain: &Chain<'_>) -> Result<u32, BadChain> {
        let (from, _) = buffers::gather(chain)?;
        if buffers::len(&from) > MAX_CHAIN {
            return Err(BadChain);
        }
        for slice in from {
            let at = self.outgoing.len();
            self.outgoing.resize(at + slice.len(), 0);
            slice.copy_to(self.outgoing.get_mut(at..).unwrap_or_default());
        }
        Ok(0)
    }

    /// Gives the guest what there is, as far as there is room.
    pub fn give(&mut self, chain: &Chain<'_>) -> Result<u32, BadChain> {
        let (_, mut to) = buffers::gather(chain)?;
        let room = buffers::len(&to).min(self.incoming.len());
        let bytes: Vec<u8> = self.incoming.drain(..room).collect();
        buffers::put(&mut to, &bytes).ok_or(BadChain)?;
        if room == 0 {
            return Err(BadChain);
        }
        Ok(room as u32)
    }
}
