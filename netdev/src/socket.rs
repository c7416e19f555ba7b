//! Unix sockets that somebody connects to by their path.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use socket2::{Domain, SockAddr, Socket, Type};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 16;

/// A socket that listens; its file goes with it.
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Which file that is: another one at the path is another's.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`, for the user alone if `private`. What a process left there that is gone
    /// is removed; a socket with somebody behind it, or any other file, is an error.
    pub fn bind(path: &Path, private: bool) -> Result<Self, String> {
        let shown = path.display();
        if std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket()) {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(|error| format!("{shown}: {error}"))?;
                }
                _ => return Err(format!("{shown}: somebody listens there; choose another")),
            }
        }
        let listener = listen(path, private).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => format!("{shown}: there is a file; choose another name"),
            _ => format!("{shown}: {error}"),
        })?;
        Ok(Self {
            listener,
            file: identity(path),
            path: path.to_owned(),
        })
    }

    /// The socket.
    pub fn get(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            // Where it stays, whoever comes next removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let there = std::fs::symlink_metadata(path).ok()?;
    Some((there.dev(), there.ino()))
}

fn listen(path: &Path, private: bool) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    if private {
        // Linux makes the file with the socket's mode, so that nobody comes between.
        fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_socket_is_the_user_s_alone_and_goes_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Listener::bind(&path, true).unwrap();
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = Listener::bind(&path, true).err().unwrap();
        assert!(
            error.ends_with("somebody listens there; choose another"),
            "{error}"
        );
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_left_of_another_process_is_replaced_and_no_other_file_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = Listener::bind(&path, false).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path, false).unwrap();
        // It leaves the other's alone.
        drop(first);
        assert!(path.exists());
        drop(second);
        std::fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path, false).err().unwrap();
        assert!(
            error.ends_with("there is a file; choose another name"),
            "{error}"
        );
        assert!(path.exists());
    }
}
