//! A world of its own for each test: the engine with its host sockets, the wire, the guest, and
//! a clock that stands still while anything moves.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use netdev::config::{Config, Forward, Network, Policy, Transport};
use netdev::counters::Counters;
use netdev::engine::{Engine, Run};
use netdev::link::Capabilities;
use netdev::resolver::Resolver;
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as GuestInstant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpAddress, IpCidr};
use socket2::SockRef;

use super::lender::Lender;
use super::wire::{Card, Faults, Port, Wire};

/// The guest's MAC address.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The gateway's addresses.
pub const GATEWAY: IpAddr = IpAddr::V4(Network::<Ipv4Addr>::MASQUERADE.gateway);
pub const GATEWAY6: IpAddr = IpAddr::V6(Network::<Ipv6Addr>::MASQUERADE.gateway);
/// The port of the guest that [`Setup::forward`] leads to.
pub const SERVICE: u16 = 80;
/// Virtual time after which something is taken for stuck.
const PATIENCE: Duration = Duration::from_secs(3600);
/// The same, in steps and in real time.
const STEPS: usize = 2_000_000;
const REAL: Duration = Duration::from_secs(60);

/// Real time that the kernel gets to move its own bytes before the clock goes on.
const LEAST_PAUSE: Duration = Duration::from_micros(20);
const MOST_PAUSE: Duration = Duration::from_millis(5);

/// What a world is like.
pub struct Setup {
    pub config: Config,
    pub faults: Faults,
    pub latency: Duration,
    pub capabilities: Capabilities,
    pub room: usize,
    pub unscaled: bool,
    /// What the guest's device takes, without Ethernet's header.
    pub mtu: usize,
    /// The guest's addresses.
    pub addresses: Vec<IpCidr>,
    /// The size of the buffers that the guest's sockets read from and write to.
    pub buffers: (usize, usize),
}

impl Default for Setup {
    fn default() -> Self {
        let (v4, v6) = (
            Network::<Ipv4Addr>::MASQUERADE,
            Network::<Ipv6Addr>::MASQUERADE,
        );
        Self {
            config: Config {
                v4: Some(v4),
                v6: Some(v6),
                mtu: 1500,
                hostname: String::new(),
                resolver: Resolver::default(),
                forwards: Vec::new(),
                eager: true,
                open_loopback: Vec::new(),
                max_flows: 64,
                memory: 128 << 20,
                policy: Policy::default(),
            },
            faults: Faults::default(),
            latency: Duration::ZERO,
            capabilities: Capabilities::default(),
            room: usize::MAX,
            unscaled: false,
            mtu: 1500,
            addresses: vec![
                IpCidr::new(v4.guest.into(), v4.prefix),
                IpCidr::new(v6.guest.into(), v6.prefix),
            ],
            buffers: (100_000, 100_000),
        }
    }
}

impl Setup {
    /// With that port of the host's loopback open to the guest.
    pub fn open(mut self, to: SocketAddr) -> Self {
        self.config.open_loopback.push(to.port());
        self
    }

    /// With those faults.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// With a forward to the guest's [`SERVICE`], and where it can be called.
    pub fn forward(mut self, transport: Transport) -> (Self, SocketAddr) {
        let bind = SocketAddr::new(free_loopback(), 8080);
        self.config.forwards.push(Forward {
            transport,
            bind,
            guest_port: SERVICE,
        });
        (self, bind)
    }

    /// With a card that takes checksums and cutting off the engine.
    pub fn offloads(mut self) -> Self {
        self.capabilities = Capabilities {
            checksum: true,
            tso4: true,
            tso6: true,
            uso: true,
        };
        self
    }

    /// Does `what` in such a world, at the end of which no flow may be left.
    pub fn run<T>(self, what: impl FnOnce(&mut World<'_>) -> T) -> T {
        let mut wire = Wire::new(self.faults);
        wire.latency = self.latency;
        wire.capabilities = self.capabilities;
        wire.room = self.room;
        wire.unscaled = self.unscaled;
        wire.mtu = self.mtu;
        let wire = Rc::new(RefCell::new(wire));
        let mut engine = Engine::new(self.config).unwrap();
        let counters = engine.counters();
        // Every other world's card lends what it can.
        let lends = self.faults.seed % 2 == 1 || self.capabilities.tso4;
        let mut card = Card {
            wire: wire.clone(),
            lender: Lender::new(lends),
        };
        let start = Instant::now();
        let now = Rc::new(Cell::new(Duration::ZERO));
        let clock = {
            let now = now.clone();
            move || start + now.get()
        };
        let mut port = Port(wire.clone());
        let mut config =
            smoltcp::iface::Config::new(HardwareAddress::Ethernet(EthernetAddress(MAC)));
        config.random_seed = self.faults.seed;
        let mut interface = Interface::new(config, &mut port, GuestInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for address in self.addresses {
                addresses.push(address).unwrap();
            }
        });
        let routes = interface.routes_mut();
        let v4 = Network::<Ipv4Addr>::MASQUERADE.gateway;
        routes.add_default_ipv4_route(v4).unwrap();
        let mut world = World {
            run: engine.attach(&mut card, &clock).unwrap(),
            counters,
            wire,
            port,
            interface,
            sockets: SocketSet::new(Vec::new()),
            now,
            start,
            begun: Instant::now(),
            buffers: self.buffers,
            next_port: 50_000,
            wake: None,
            moved: 0,
        };
        let result = what(&mut world);
        world.until("no flow is left", |world| world.run.flows() == 0);
        result
    }
}

/// An address of the loopback network that nobody else listens at.
fn free_loopback() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed) as u8;
        let address = IpAddr::V4(Ipv4Addr::new(127, high ^ 0x80, low, next));
        if TcpListener::bind((address, 8080)).is_ok() {
            return address;
        }
    }
}

/// A socket of the host's loopback that listens.
pub fn listener(address: IpAddr) -> TcpListener {
    let listener = TcpListener::bind((address, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// IPv4's loopback.
pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A world.
pub struct World<'a> {
    pub run: Run<'a>,
    pub counters: Arc<Counters>,
    pub wire: Rc<RefCell<Wire>>,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    /// Counts what moves outside the wire.
    pub moved: u64,
    port: Port,
    now: Rc<Cell<Duration>>,
    start: Instant,
    begun: Instant,
    buffers: (usize, usize),
    next_port: u16,
    wake: Option<Duration>,
}

impl World<'_> {
    /// The time since the world began.
    pub fn now(&self) -> Duration {
        self.now.get()
    }

    fn guest_now(&self) -> GuestInstant {
        GuestInstant::from_micros(self.now().as_micros() as i64)
    }

    /// Lets everybody work once.
    fn turn(&mut self) {
        let mut wire = self.wire.borrow_mut();
        wire.now = self.now.get();
        wire.arrive();
        drop(wire);
        self.run.turn(false).unwrap();
        self.wire.borrow_mut().arrive();
        let now = self.guest_now();
        self.interface.poll(now, &mut self.port, &mut self.sockets);
    }

    /// How often something moved.
    fn motion(&self) -> u64 {
        self.moved + self.wire.borrow().moved
    }

    /// When something happens by itself.
    fn next(&mut self) -> Option<Duration> {
        let now = self.guest_now();
        let guest = self.interface.poll_at(now, &self.sockets);
        let guest = guest.map(|at| Duration::from_micros(at.total_micros() as u64));
        let engine = self.run.next_timer();
        let engine = engine.map(|at| at.saturating_duration_since(self.start));
        let wire = self.wire.borrow().next();
        [guest, engine, wire, self.wake]
            .into_iter()
            .flatten()
            .min()
            // The clocks tell microseconds, and a step that takes no time leads nowhere.
            .map(|at| {
                let micros = at.as_nanos().div_ceil(1000) as u64;
                Duration::from_micros(micros).max(self.now() + Duration::from_micros(1))
            })
    }

    /// Lets time go on until `step`, which does the sockets' work, says that `what` has come true.
    pub fn until(&mut self, what: &str, mut step: impl FnMut(&mut Self) -> bool) {
        let (begun, mut quiet) = (self.now(), 0);
        for _ in 0..STEPS {
            let before = self.motion();
            if step(self) {
                return;
            }
            self.turn();
            if self.motion() != before {
                quiet = 0;
                continue;
            }
            quiet += 1;
            // The engine moves bytes that only the next step or turn sees, and the kernel takes
            // a moment to move them.
            if quiet < 3 {
                continue;
            }
            let Some(next) = self.next() else {
                self.stuck(what, "nothing moves and no timer runs");
            };
            let leap = next - self.now();
            if quiet == 3 {
                thread::sleep((leap / 1000).clamp(LEAST_PAUSE, MOST_PAUSE));
                continue;
            }
            if next - begun > PATIENCE.max(self.wake.unwrap_or_default().saturating_sub(begun)) {
                self.stuck(what, "it takes too long");
            }
            if self.begun.elapsed() > REAL {
                self.stuck(what, "it takes too long in real time");
            }
            self.now.set(next);
            quiet = 0;
        }
        self.stuck(what, "there is no end of motion");
    }

    /// Lets so much time pass.
    pub fn pass(&mut self, time: Duration, mut step: impl FnMut(&mut Self)) {
        let end = self.now() + time;
        self.wake = Some(end);
        self.until("time passes", |world| {
            step(world);
            world.now() >= end
        });
        self.wake = None;
    }

    fn stuck(&self, what: &str, why: &str) -> ! {
        let states: Vec<String> = self
            .sockets
            .iter()
            .filter_map(|(_, socket)| match socket {
                smoltcp::socket::Socket::Tcp(socket) => Some(format!(
                    "{} {:?}, {} to send, {} to read",
                    socket.state(),
                    socket.local_endpoint(),
                    socket.send_queue(),
                    socket.recv_queue(),
                )),
                _ => None,
            })
            .collect();
        let counters = self.counters.all();
        let counters: Vec<_> = counters.iter().filter(|(_, value)| *value > 0).collect();
        panic!(
            "not yet after {:?}: {what}: {why}; {} flows; guest: {states:?}; {counters:?}; \
             last frames:\n{}",
            self.now(),
            self.run.flows(),
            self.wire.borrow().watch.log(),
        );
    }

    fn socket(&mut self) -> tcp::Socket<'static> {
        let (read, write) = self.buffers;
        tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; read]),
            tcp::SocketBuffer::new(vec![0; write]),
        )
    }

    /// A port that the guest has not used yet.
    pub fn fresh_port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// The guest begins to connect.
    pub fn connect(&mut self, to: IpAddr, port: u16) -> SocketHandle {
        let mut socket = self.socket();
        let own = self.fresh_port();
        let to = (IpAddress::from(to), port);
        socket.connect(self.interface.context(), to, own).unwrap();
        self.moved += 1;
        self.sockets.add(socket)
    }

    /// The guest listens.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = self.socket();
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// A connection that the guest has opened to a listener of the host's.
    pub fn connected(&mut self, to: IpAddr, listener: &TcpListener) -> (SocketHandle, TcpStream) {
        let port = listener.local_addr().unwrap().port();
        let guest = self.connect(to, port);
        let host = self.accept(listener);
        self.until("the guest is connected", |world| {
            world.tcp(guest).may_send()
        });
        (guest, host)
    }

    /// A connection from the host to a guest that listens.
    pub fn called(&mut self, forward: SocketAddr) -> (SocketHandle, TcpStream) {
        let guest = self.listen(SERVICE);
        let host = call(forward);
        self.until("the guest is called", |world| world.tcp(guest).may_send());
        (guest, host)
    }

    /// The host's side of a connection to its listener.
    pub fn accept(&mut self, listener: &TcpListener) -> TcpStream {
        let mut stream = None;
        self.until("the host is called", |_| {
            stream = listener.accept().ok();
            stream.is_some()
        });
        let (stream, _) = stream.unwrap();
        ready(&stream);
        stream
    }

    /// A connection's socket in the guest.
    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

/// A client of the host's that calls `to`.
pub fn call(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    ready(&stream);
    stream
}

fn ready(stream: &TcpStream) {
    stream.set_nonblocking(true).unwrap();
    // Nothing waits for a timer of the kernel's, which knows no virtual time.
    stream.set_nodelay(true).unwrap();
}

/// Makes the close of a host's socket a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream.as_fd())
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}
