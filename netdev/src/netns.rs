//! Another network namespace: joining it, making a tap in it, and setting that up.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::config::Config;
use crate::link::tap::Tap;
use crate::netlink::{Netlink, Route};

/// Which namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A namespace's file, as `ip netns` and container runtimes bind it.
    Path(PathBuf),
    /// That of a process, with the user namespace that it belongs to.
    Process(u32),
}

impl std::str::FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.parse() {
            Ok(pid) => Self::Process(pid),
            Err(_) => Self::Path(text.into()),
        })
    }
}

/// What could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such namespace, or it may not be entered.
    #[error("cannot enter the network namespace {0}: {1}")]
    Enter(String, io::Error),
    /// No tap.
    #[error("cannot make the tap `{0}`: {1}")]
    Tap(String, io::Error),
    /// The tap could not be given addresses and routes.
    #[error("cannot set up the tap `{0}`: {1}")]
    SetUp(String, io::Error),
    /// The process that does it.
    #[error("cannot make a process that enters the namespace: {0}")]
    Process(io::Error),
    /// What that process said.
    #[error("{0}")]
    Said(String),
}

/// Makes a tap called `name` in `target`, and gives it `config`'s addresses and routes if
/// `set_up`. The caller, which must have one thread only, stays where it is: a child goes there.
pub fn tap(target: &Target, name: &str, config: &Config, set_up: bool) -> Result<Tap, Error> {
    let (ours, mut theirs) = UnixStream::pair().map_err(Error::Process)?;
    // SAFETY: there is one thread only, so the child has all that it might wait for.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(Error::Process(io::Error::last_os_error()));
    }
    if child == 0 {
        drop(ours);
        let status = match make(target, name, config, set_up)
            .and_then(|tap| give(&theirs, tap.into_descriptor()).map_err(Error::Process))
        {
            Ok(()) => 0,
            Err(error) => {
                // The parent is there still, or there is nobody to tell.
                let _ = theirs.write_all(error.to_string().as_bytes());
                1
            }
        };
        // SAFETY: ends the child at once; what belongs to the parent is not touched.
        unsafe { libc::_exit(status) }
    }
    drop(theirs);
    let tap = take(&ours);
    let mut status = 0;
    // SAFETY: waits for the child that was made above and writes to the local integer.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    Tap::from_descriptor(tap?).map_err(|error| Error::Tap(name.to_owned(), error))
}

fn make(target: &Target, name: &str, config: &Config, set_up: bool) -> Result<Tap, Error> {
    enter(target)?;
    let tap = Tap::create(name).map_err(|error| Error::Tap(name.to_owned(), error))?;
    if set_up {
        configure(name, config).map_err(|error| Error::SetUp(name.to_owned(), error))?;
    }
    Ok(tap)
}

fn enter(target: &Target) -> Result<(), Error> {
    let join = |path: &Path, kind: LinkNameSpaceType| {
        let file = File::open(path)?;
        move_into_link_name_space(file.as_fd(), Some(kind)).map_err(io::Error::from)
    };
    let (net, shown) = match target {
        Target::Path(path) => (path.clone(), path.display().to_string()),
        Target::Process(pid) => {
            let user = PathBuf::from(format!("/proc/{pid}/ns/user"));
            // One that is our own cannot be entered, and need not be.
            let same =
                std::fs::read_link(&user).ok() == std::fs::read_link("/proc/self/ns/user").ok();
            if !same {
                join(&user, LinkNameSpaceType::User)
                    .map_err(|error| Error::Enter(format!("of process {pid}"), error))?;
            }
            (
                PathBuf::from(format!("/proc/{pid}/ns/net")),
                format!("of process {pid}"),
            )
        }
    };
    join(&net, LinkNameSpaceType::Network).map_err(|error| Error::Enter(shown, error))
}

/// What DHCP and router advertisements would do.
fn configure(name: &str, config: &Config) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    for link in links.iter().filter(|link| link.is_loopback) {
        netlink.bring_up(link.index, None)?;
    }
    let Some(link) = links.iter().find(|link| link.name == name) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    netlink.bring_up(link.index, Some(config.mtu))?;
    let v4 = config
        .v4
        .map(|v4| (IpAddr::from(v4.guest), v4.prefix, IpAddr::from(v4.gateway)));
    let v6 = config
        .v6
        .map(|v6| (IpAddr::from(v6.guest), v6.prefix, IpAddr::from(v6.gateway)));
    for (address, prefix, gateway) in v4.into_iter().chain(v6) {
        netlink.add_address(link.index, address, prefix)?;
        netlink.add_route(link.index, &Route::leased_default(gateway))?;
    }
    Ok(())
}

fn give(socket: &UnixStream, fd: OwnedFd) -> io::Result<()> {
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(
        socket,
        &[io::IoSlice::new(b"t")],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

/// The child's descriptor, or what it says of its failure.
fn take(socket: &UnixStream) -> Result<OwnedFd, Error> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 512];
    let received = recvmsg(
        socket,
        &mut [io::IoSliceMut::new(&mut text)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(|error| Error::Process(error.into()))?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    let text = text.get(..received.bytes).unwrap_or_default();
    if text.is_empty() {
        return Err(Error::Process(io::ErrorKind::UnexpectedEof.into()));
    }
    Err(Error::Said(String::from_utf8_lossy(text).into_owned()))
}
