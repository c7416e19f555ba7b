//! From the sockets to the guest: a flow's socket is ready, or somebody calls a forwarded port.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;

use socket2::SockRef;
use vmm_sys_util::epoll::EventSet;

use super::table::Flow;
use super::{Run, Verdict};
use crate::config::Transport;
use crate::counters::ForwardCounters;
use crate::flow::Key;
use crate::flow::tcp::Tcp;
use crate::forward::Port;
use crate::wire::{Protocol, Udp as Datagram};
use crate::{access, sys};

/// Connections accepted, and datagrams read, of one socket before others get their turn.
const TURN: usize = 64;

/// A descriptor kept back, so that a caller can be sent away when there are no others.
#[derive(Default)]
pub struct Spare(Option<File>);

impl Spare {
    /// Makes sure that there is one.
    pub fn keep(&mut self) {
        if self.0.is_none() {
            self.0 = File::open("/dev/null").ok();
        }
    }

    /// Gives it up for whoever comes next.
    pub fn spend(&mut self) -> bool {
        self.0.take().is_some()
    }
}

impl Run<'_> {
    /// A flow's socket is ready.
    pub(super) fn socket(&mut self, token: u64, events: EventSet) {
        let Some(index) = self.table.of_token(token) else {
            return;
        };
        let failed = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        let tcp = match self.table.get(index) {
            Some(Flow::Tcp(tcp)) => tcp,
            Some(_) => {
                self.datagrams(index);
                if failed && let Some(Flow::Udp(udp)) = self.table.get(index) {
                    sys::forget_errors(SockRef::from(&udp.socket));
                }
                return;
            }
            None => return,
        };
        let mut verdict = Verdict::Keep;
        if failed || events.contains(EventSet::OUT) {
            verdict = tcp.connected();
        }
        if verdict == Verdict::Keep {
            tcp.ready(
                events.contains(EventSet::IN),
                events.contains(EventSet::OUT),
                failed || events.intersects(EventSet::READ_HANG_UP | EventSet::PRIORITY),
            );
            verdict = tcp.drain(&mut self.pool);
        }
        if verdict == Verdict::Keep {
            self.push(index);
        } else {
            self.judge(index, verdict);
        }
    }

    /// Answers of the far end of a flow of datagrams or echoes.
    pub(super) fn datagrams(&mut self, index: u32) {
        let mut scratch = std::mem::take(&mut self.scratch);
        // Watched for changes only: everything there is has to be read.
        while self.answer(index, &mut scratch) {}
        self.scratch = scratch;
    }

    /// One answer, or several joined ones; false where there are no more.
    fn answer(&mut self, index: u32, scratch: &mut [u8]) -> bool {
        let now = self.now;
        let (key, received) = match self.table.get(index) {
            Some(Flow::Udp(udp)) => {
                udp.touch(now);
                let received = sys::receive_from(SockRef::from(&udp.socket), scratch);
                (udp.key, received)
            }
            Some(Flow::Echo(echo)) => {
                let Ok(n) = echo.socket.recv(scratch) else {
                    return false;
                };
                let key = echo.key;
                let Some(guest) = self.engine.config.guest(key.remote.ip()) else {
                    return false;
                };
                echo.carried.to_guest += n as u64;
                let bytes = scratch.get(..n).unwrap_or_default();
                if let Some(answer) = echo.answer(bytes) {
                    let packet = answer.packet(key.remote.ip(), guest);
                    self.packet(&packet);
                }
                return true;
            }
            _ => return false,
        };
        match received {
            Ok((len, size, _)) => {
                if let Some(Flow::Udp(udp)) = self.table.get(index) {
                    udp.carried.to_guest += len as u64;
                }
                let data = scratch.get(..len).unwrap_or_default();
                let size = size.map_or(len, usize::from);
                let fits = self.give_datagrams(key.remote, key.guest_port, data, size);
                if !fits {
                    // The rest waits where it is until the guest has made room.
                    self.blocked.push(index);
                }
                fits
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) => {
                let remote = key.remote;
                let header = Datagram::header(key.guest_port, remote.port(), 0, 0);
                let packet = self.guest_packet(remote.ip(), Protocol::Udp, &header);
                self.unsent(index, &error, &packet);
                // The error is taken with that; there may be answers behind it.
                true
            }
        }
    }

    /// Gives the guest datagrams from `from`, each of `size` bytes but the last; false where it had no
    /// room for some, which are lost.
    fn give_datagrams(&mut self, from: SocketAddr, port: u16, data: &[u8], size: usize) -> bool {
        let Some(guest) = self.engine.config.guest(from.ip()) else {
            return true;
        };
        let lost = self.outlet().datagrams(from, (guest, port), data, size);
        self.engine.counters.dropped_no_room.add_many(lost);
        lost == 0
    }

    /// Somebody outside speaks to a forwarded port.
    pub(super) fn port(&mut self, index: usize) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for _ in 0..TURN {
            self.engine.spare.keep();
            let Some(port) = self.engine.forwards.port(index) else {
                break;
            };
            match port.take(&mut scratch) {
                Ok(Port::Nothing) => break,
                Ok(Port::Datagrams {
                    len,
                    size,
                    client,
                    local,
                    guest_port,
                }) => {
                    let config = &self.engine.config;
                    let Some(seen) = access::client_address(config, client.ip(), local) else {
                        continue;
                    };
                    let seen = SocketAddr::new(seen, client.port());
                    let forwards = &mut self.engine.forwards;
                    forwards.remember(guest_port, seen, client, index);
                    if let Some(port) = forwards.port(index) {
                        port.counters().to_guest.add_many(len as u64);
                    }
                    let data = scratch.get(..len).unwrap_or_default();
                    self.give_datagrams(seen, guest_port, data, size);
                }
                Ok(Port::Connection {
                    socket,
                    client,
                    local,
                    guest_port,
                }) => {
                    let forward = port.counters().clone();
                    self.accept(socket, client, local, guest_port, forward);
                }
                Err(error) => {
                    // Accepted with the descriptor that was kept back, only to be sent away; for
                    // want of one the kernel does not say that there is nobody.
                    if is_shortage(&error)
                        && self.engine.spare.spend()
                        && let Some(port) = self.engine.forwards.port(index)
                        && let Ok(Port::Connection { socket, .. }) = port.take(&mut [])
                    {
                        port.counters().refused.add();
                        self.engine.counters.refused_shortage.add();
                        send_away(&socket);
                    } else {
                        break;
                    }
                }
            }
        }
        // Before somebody else has it.
        self.engine.spare.keep();
        self.scratch = scratch;
    }

    /// Counts an error that says that there are no descriptors or no memory left.
    pub(super) fn note_shortage(&mut self, error: &io::Error) -> bool {
        let short = is_shortage(error);
        if short {
            self.engine.counters.refused_shortage.add();
        }
        short
    }

    fn accept(
        &mut self,
        socket: TcpStream,
        client: SocketAddr,
        local: IpAddr,
        guest_port: u16,
        forward: Arc<ForwardCounters>,
    ) {
        let counters = self.engine.counters.clone();
        let Some(seen) = access::client_address(&self.engine.config, client.ip(), local) else {
            counters.refused_family.add();
            forward.refused.add();
            return send_away(&socket);
        };
        let key = Key {
            transport: Transport::Tcp,
            guest_port,
            remote: SocketAddr::new(seen, client.port()),
        };
        // A name that is taken: two clients of one port, from addresses that look the same.
        if self.table.len() >= self.engine.config.max_flows || self.table.find(&key).is_some() {
            counters.refused_limit.add();
            forward.refused.add();
            return send_away(&socket);
        }
        counters.tcp_in.add();
        forward.connections.add();
        let first = self.engine.first_sequence(&key);
        let tcp = Tcp::incoming(key, socket, first, self.first_promise());
        if let Some(index) = self.insert(Flow::Tcp(Box::new(tcp))) {
            self.table.came_by(index, forward);
            self.push(index);
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// Makes the socket's close a reset.
fn send_away(socket: &TcpStream) {
    // Where it fails the close is an ordinary one.
    let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}
