//! A network, from its command line to its end.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::{self, JoinHandle};

use netdev::addresses::{self, Networks, View};
use netdev::config::{Config, Forward};
use netdev::control::MAX_FORWARDS;
use netdev::engine::Engine;
use netdev::netns;
use netdev::pod::Pod;
use netdev::process;
use netdev::vhost_user;
use tracing_subscriber::EnvFilter;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::Failure;
use crate::args::Network as Args;
use crate::server;
use netdev::publish::Publish;
use netdev::socket::Listener;

/// Is a network until SIGTERM.
pub fn run(args: &Args) -> Result<(), Failure> {
    start_log(io::stderr);
    args.options.refuse_proxy().map_err(Failure::Input)?;
    let config = config(args)?;
    process::make_room_for_descriptors();
    process::give_large_buffers_back();
    let stop = process::stop_signals().map_err(Failure::runtime)?;
    let mut engine = Engine::new(config.clone()).map_err(Failure::input)?;
    engine.poll_beside(1);
    let control = args.control.as_deref();
    let control = control.map(|path| Listener::bind(path, true)).transpose();
    let control = control.map_err(Failure::Input)?;
    if config.forwards.is_empty() {
        tracing::info!("no port is published: nobody calls the guest");
    }
    let ready = |engine: &Engine| {
        if let Some(control) = &control {
            server::start(control.get(), engine.control()).map_err(Failure::runtime)?;
        }
        println!("ready");
        io::stdout().flush().map_err(Failure::runtime)
    };
    if let Some(target) = &args.side.netns {
        let interface = args.interface.as_deref().unwrap_or("eth0");
        // Before there are threads: it forks.
        let tap = netns::tap(target, interface, &config, args.config_net);
        let mut tap = tap.map_err(Failure::input)?;
        ready(&engine)?;
        return engine
            .run(&mut tap, stop.as_raw_fd())
            .map_err(|error| Failure::runtime(format!("the network has stopped: {error}")));
    }
    let Some(path) = &args.side.vhost_user else {
        return Ok(());
    };
    let listener = Listener::bind(path, false).map_err(Failure::Input)?;
    ready(&engine)?;
    serve(listener.get(), engine, &stop, false)
}

/// What goes wrong is told by `writer`; RUST_LOG says how much more.
pub fn start_log<W>(writer: W)
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .with_default_directive(tracing_subscriber::filter::LevelFilter::WARN.into())
        .from_env_lossy();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(false)
        .init();
}

fn config(args: &Args) -> Result<Config, Failure> {
    let pod = Pod::open().map_err(|error| Failure::runtime(format!("netlink: {error}")))?;
    let wishes = args.own.wishes().map_err(Failure::Input)?;
    let view = View::of(&pod);
    let networks = addresses::choose(&args.addresses.base(&view), &wishes, &view);
    let networks = networks.map_err(Failure::Input)?;
    let hostname = args.hostname.clone().unwrap_or_default();
    let forwards = forwards(&args.publish, networks)?;
    Ok(args.options.config(&pod, networks, hostname, forwards))
}

/// A forward for each port that is published, in the families that the guest has.
pub fn forwards(publish: &[Publish], (v4, v6): Networks) -> Result<Vec<Forward>, Failure> {
    let mut forwards = Vec::new();
    for publish in publish {
        if let Some(address) = publish.address
            && !(if address.is_ipv6() {
                v6.is_some()
            } else {
                v4.is_some()
            })
        {
            return Err(Failure::input(format!(
                "a port at {address} cannot be the guest's, which has no such address"
            )));
        }
        forwards.extend(publish.forwards(v4.is_some(), v6.is_some()));
        if forwards.len() > MAX_FORWARDS {
            return Err(Failure::input(format!(
                "more than {MAX_FORWARDS} ports are published, each of which is a socket"
            )));
        }
    }
    Ok(forwards)
}

/// Serves the VMMs that connect, one after another, until `stop` can be read; or the first alone.
pub fn serve(
    listener: &UnixListener,
    mut engine: Engine,
    stop: &OwnedFd,
    one_off: bool,
) -> Result<(), Failure> {
    let stop = stop.as_raw_fd();
    loop {
        if first_ready([stop, listener.as_raw_fd()]).map_err(Failure::runtime)? == stop {
            return Ok(());
        }
        let connected = listener.accept().map_err(Failure::runtime);
        let (socket, ended) = (connected?.0, EventFd::new(EFD_NONBLOCK));
        let ended = ended.map_err(Failure::runtime)?;
        let copy = socket.try_clone().map_err(Failure::runtime)?;
        let thread = vmm(socket, engine, &ended).map_err(Failure::runtime)?;
        let stopped = first_ready([stop, ended.as_raw_fd()]).map_err(Failure::runtime)? == stop;
        if stopped {
            // It may be gone already.
            let _ = copy.shutdown(Shutdown::Both);
        }
        let Ok((back, result)) = thread.join() else {
            return Err(Failure::runtime("the network has failed"));
        };
        if let Err(error) = result {
            tracing::warn!("the VMM's connection has ended: {error}");
        }
        engine = back.ok_or_else(|| Failure::runtime("the network has failed"))?;
        if stopped || one_off {
            return Ok(());
        }
    }
}

type Served = (Option<Engine>, io::Result<()>);

fn vmm(socket: UnixStream, engine: Engine, ended: &EventFd) -> io::Result<JoinHandle<Served>> {
    let ended = ended.try_clone()?;
    thread::Builder::new()
        .name("vmm".to_owned())
        .spawn(move || {
            let served = vhost_user::serve(socket, engine);
            // The counter cannot be full: this is its only write.
            let _ = ended.write(1);
            served
        })
}

/// Waits until one of them can be read, and says which; the first, if both can.
fn first_ready(descriptors: [RawFd; 2]) -> io::Result<RawFd> {
    let epoll = Epoll::new()?;
    for fd in descriptors {
        let event = EpollEvent::new(EventSet::IN, fd as u64);
        epoll.ctl(ControlOperation::Add, fd, event)?;
    }
    let mut events = [EpollEvent::default(); 2];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        let ready = |fd: &RawFd| events.iter().take(count).any(|e| e.data() == *fd as u64);
        if let Some(fd) = descriptors.into_iter().find(ready) {
            return Ok(fd);
        }
    }
}
