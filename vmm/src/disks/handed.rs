//! Files of a container image that is another container of the pod: a process there (`container-disk`)
//! opens them, and hands their descriptors over a unix socket in a directory that both have. Nothing is
//! copied, and nobody mounts anything.
//!
//! Who asks writes a path of the image, or nothing for the only file of its /disk, and a newline. The
//! answer is a zero byte with the descriptor (SCM_RIGHTS, unix(7)), or a sentence that says why not.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::mounted::{self, Error};

/// What a question or an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest question or answer.
const MOST: u64 = 4096;
/// The answer that a descriptor comes with.
const HERE: u8 = 0;

/// Answers who asks for a file of the image below `image`, which is all that it may ask for.
pub fn give(stream: &UnixStream, image: &Path) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut asked = String::new();
    BufReader::new(stream.take(MOST)).read_line(&mut asked)?;
    // Who only wants to see that somebody is here says nothing.
    let Some(path) = asked.strip_suffix('\n') else {
        return Ok(());
    };
    let path = Some(path).filter(|path| !path.is_empty());
    let file = mounted::in_image(image, path)
        .and_then(|path| File::open(&path).map_err(|error| Error::Read(path, error)));
    match file {
        Ok(file) => {
            let fds = [file.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut with = SendAncillaryBuffer::new(&mut space);
            with.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(
                stream,
                &[IoSlice::new(&[HERE])],
                &mut with,
                SendFlags::NOSIGNAL,
            )?;
            Ok(())
        }
        Err(why) => (&mut &*stream).write_all(why.to_string().as_bytes()),
    }
}

/// Asks at `socket` for the file at `path` of its image, or the only one in its /disk. The file is
/// there under the path that comes back as long as this process.
pub fn ask(socket: &Path, path: Option<&str>) -> Result<PathBuf, Error> {
    let failed = |error| Error::Read(socket.to_owned(), error);
    let stream = UnixStream::connect(socket).map_err(failed)?;
    let answer = question(&stream, path.unwrap_or_default()).map_err(failed)?;
    let fd = answer.map_err(|why| Error::Refused(socket.to_owned(), why))?;
    // It is opened once more by this name whenever somebody reads it.
    Ok(PathBuf::from(format!("/proc/self/fd/{}", fd.into_raw_fd())))
}

fn question(stream: &UnixStream, path: &str) -> io::Result<Result<OwnedFd, String>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    (&mut &*stream).write_all(format!("{path}\n").as_bytes())?;
    let mut first = [1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut first)];
    let got = recvmsg(stream, &mut into, &mut with, RecvFlags::CMSG_CLOEXEC)?;
    let descriptors = with.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    if let Some(fd) = descriptors.flatten().next() {
        return Ok(Ok(fd));
    }
    if got.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut why = first.to_vec();
    stream.take(MOST).read_to_end(&mut why)?;
    Ok(Err(String::from_utf8_lossy(&why).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_file_of_the_image_comes_over_the_socket_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let (image, socket) = (directory.path().join("image"), directory.path().join("s"));
        fs::create_dir_all(image.join("disk")).unwrap();
        fs::write(image.join("disk/a.img"), "the disk").unwrap();
        fs::write(image.join("vmlinuz"), "the kernel").unwrap();
        fs::write(directory.path().join("secret"), "").unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            for stream in listener.incoming().take(5) {
                give(&stream.unwrap(), &image).unwrap();
            }
        });
        let read =
            |path| fs::read_to_string(ask(&socket, path)?).map_err(|e| Error::Read("".into(), e));
        assert_eq!(read(None).unwrap(), "the disk");
        assert_eq!(read(Some("/vmlinuz")).unwrap(), "the kernel");
        for path in ["/../secret", "/none"] {
            let why = read(Some(path)).unwrap_err().to_string();
            let shown = socket.display().to_string();
            assert!(why.starts_with(&shown) && why.lines().count() == 1, "{why}");
        }
        // Somebody who says nothing.
        drop(UnixStream::connect(&socket).unwrap());
        server.join().unwrap();
        assert!(ask(Path::new("/nowhere.sock"), None).is_err());
    }
}
