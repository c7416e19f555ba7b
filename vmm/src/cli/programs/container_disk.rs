//! `container-disk`: keeps the container of an image alive, whose disk virt-handler then mounts where
//! the launcher looks for it; or which is asked for the image's files by the launcher itself, where the
//! pod is one of `peapod pod`. A socket says that it is there; it ends when that is taken away, or by a
//! signal.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Stop;
use crate::disks::handed;
use crate::kubevirt::HANDED;

/// How soon it is seen that the socket is gone.
const GLANCE: Duration = Duration::from_secs(1);

/// Arguments of `container-disk`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The socket, without its `.sock`, at which the image's files can be had
    #[arg(short, long, value_name = "PATH", required_unless_present = "no_op")]
    copy_path: Option<PathBuf>,
    /// End at once: the image was pulled for this
    #[arg(short, long)]
    no_op: bool,
    /// Only see whether one is there, as a probe does
    #[arg(long)]
    check: bool,
}

/// Stays until it is not wanted any more.
pub fn stay(args: &Args) -> Result<(), String> {
    match &args.copy_path {
        Some(path) if !args.no_op => {
            let mut socket = path.clone().into_os_string();
            socket.push(HANDED);
            let socket = PathBuf::from(socket);
            let done = match args.check {
                true => UnixStream::connect(&socket).map(drop),
                false => serve(&socket),
            };
            done.map_err(|error| format!("{}: {error}", socket.display()))
        }
        _ => Ok(()),
    }
}

fn serve(socket: &Path) -> io::Result<()> {
    let stop = Stop::start()?;
    if let Some(folder) = socket.parent().filter(|folder| !folder.exists()) {
        fs::create_dir(folder)?;
    }
    // One that was killed has left it.
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    listener.set_nonblocking(true)?;
    let waiting = OwnedFd::from(listener.try_clone()?);
    while !stop.came(Some(&waiting), GLANCE)? {
        while let Ok((stream, _)) = listener.accept() {
            // Who goes amid it asks again.
            let _ = handed::give(&stream, Path::new("/"));
        }
        if !socket.exists() {
            return Ok(());
        }
    }
    fs::remove_file(socket)
}
