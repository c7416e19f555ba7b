//! What the guest listens on, by its agent: it is published where nobody has said which ports are to be,
//! and the ports that somebody has named are asked for when it changes.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netdev::access::MESH_PORTS;
use netdev::config::{Forward, Transport};
use netdev::control::{Control, Error};
use netdev::forward::Told;

/// Ports that are followed at once, each of which is a socket; a guest may listen on any number.
const MOST: usize = 512;

/// A port of the guest's.
type Port = (Transport, u16);

/// The guest's ports that are published because it listens on them.
pub struct Follower {
    network: Control,
    addresses: Vec<IpAddr>,
    /// Those that it listens on, and whether they could be published.
    ports: BTreeMap<Port, bool>,
}

impl Follower {
    /// Publishes ports of `network`'s guest at `addresses`, under their own numbers; with none, no port.
    pub fn new(network: Control, addresses: Vec<IpAddr>) -> Self {
        Self {
            network,
            addresses,
            ports: BTreeMap::new(),
        }
    }

    /// The guest listens on these ports now, and on no others; but of UDP's that are `clients`', from the
    /// first to the last, nothing is said. The mesh's own are passed over.
    pub fn follow(&mut self, tcp: &[u16], udp: &[u16], clients: Option<(u16, u16)>) {
        if !self.addresses.is_empty() {
            self.publish_all(tcp, udp);
        }
        // An agent of before does not say which are.
        let (first, last) = clients.unwrap_or((0, u16::MAX));
        self.tell(Some(Told {
            udp: udp.to_vec(),
            unknown: first..=last,
        }));
    }

    /// Nobody knows what it listens on now.
    pub fn lose(&mut self) {
        self.publish_all(&[], &[]);
        self.tell(None);
    }

    fn tell(&self, told: Option<Told>) {
        match self.network.guest_tells(told) {
            // There is no guest any more that could.
            Ok(()) | Err(Error::NotRunning) => {}
            Err(error) => tracing::debug!("what the guest listens on is not asked now: {error}"),
        }
    }

    fn publish_all(&mut self, tcp: &[u16], udp: &[u16]) {
        let tcp = tcp.iter().map(|port| (Transport::Tcp, *port));
        let all = tcp.chain(udp.iter().map(|port| (Transport::Udp, *port)));
        let wanted: Vec<_> = all
            .filter(|(_, port)| *port != 0 && !MESH_PORTS.contains(port))
            .collect();
        if wanted.len() > MOST {
            tracing::warn!("the guest listens on more than {MOST} ports; the first are published");
        }
        let wanted = wanted.get(..MOST).unwrap_or(&wanted);
        let gone: Vec<_> = self
            .ports
            .keys()
            .filter(|p| !wanted.contains(p))
            .copied()
            .collect();
        for port in gone {
            self.withdraw(port);
        }
        for port in wanted {
            if !self.ports.contains_key(port) {
                self.publish(*port);
            }
        }
    }

    fn publish(&mut self, (transport, port): Port) {
        let mut published = false;
        for address in &self.addresses {
            let forward = Forward {
                transport,
                bind: SocketAddr::new(*address, port),
                guest_port: port,
            };
            match self.network.add_forward(&forward) {
                Ok(()) => {
                    published = true;
                    tracing::info!("{forward} is the guest's port {port}, which it listens on");
                }
                Err(error) => {
                    tracing::warn!("the guest's port {port} is not published: {error}");
                }
            }
        }
        self.ports.insert((transport, port), published);
    }

    fn withdraw(&mut self, (transport, port): Port) {
        if self.ports.remove(&(transport, port)) != Some(true) {
            return;
        }
        for address in &self.addresses {
            let bind = SocketAddr::new(*address, port);
            match self.network.remove_forward(transport, bind) {
                // It could not be published there in the first place.
                Err(Error::NoForward(..)) => {}
                Ok(()) => {
                    tracing::info!("{bind} is not the guest's any more: it has stopped listening");
                }
                Err(error) => tracing::warn!("{bind} stays published: {error}"),
            }
        }
    }
}
