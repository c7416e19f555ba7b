//! `peapod cp`: a file into a guest or out of it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write, stdin, stdout};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guest_agent::protocol::{Reply, Request};

use super::vms::{Error, Vm};
use crate::agent::session::{self, Said, Session};

const PIECE: usize = 256 << 10;
const PERMISSIONS: u32 = 0o777;

/// Arguments of `cp`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file: `VM:PATH` in a guest, PATH here, `-` for standard input
    from: String,
    /// Where it goes, in the same way; `-` for standard output. A directory gets it under its name
    to: String,
}

/// Copies it. It is there as a whole, or what was there before.
pub fn cp(args: &Args) -> Result<(), Error> {
    match (guest(&args.from), guest(&args.to)) {
        (Some((vm, path)), None) => out_of(&vm, path, &args.to),
        (None, Some((vm, path))) => into(&vm, path, &args.from),
        _ => Err(Error::Sides),
    }
}

/// The VM and the path in it; `None` for a path of this host.
fn guest(word: &str) -> Option<(Vm, &str)> {
    let (vm, path) = word.split_once(':')?;
    // A path with a colon is one of this host's, but for a state directory's.
    let here = vm.is_empty() || (vm.contains('/') && !Path::new(vm).is_dir());
    (!here && !path.is_empty()).then(|| (Vm::called(vm), path))
}

fn into(vm: &Vm, path: &str, from: &str) -> Result<(), Error> {
    let failed = |error| Error::File(from.to_owned(), error);
    let (mut source, mode): (Box<dyn Read>, _) = match from {
        "-" => (Box::new(stdin().lock()), None),
        _ => {
            let file = File::open(from).map_err(failed)?;
            let found = file.metadata().map_err(failed)?;
            if found.is_dir() {
                return Err(failed(directory()));
            }
            (
                Box::new(file),
                Some(found.permissions().mode() & PERMISSIONS),
            )
        }
    };
    let path = match (path.ends_with('/'), Path::new(from).file_name()) {
        (true, Some(name)) => format!("{path}{}", name.to_string_lossy()),
        _ => path.to_owned(),
    };
    let mut session = vm.session(&Request::WriteFile { path, mode })?;
    let writer = session.writer();
    let mut bytes = vec![0; PIECE];
    loop {
        let count = match source.read(&mut bytes) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Without its end the agent keeps nothing of it.
            Err(error) => return Err(failed(error)),
        };
        // An agent that has refused says why.
        if writer.data(bytes.get(..count).unwrap_or_default()).is_err() || count == 0 {
            break;
        }
    }
    loop {
        if let Said::Reply(_) = session.hear().map_err(|error| vm.said(error))? {
            return Ok(());
        }
    }
}

fn out_of(vm: &Vm, path: &str, to: &str) -> Result<(), Error> {
    let mut session = vm.session(&Request::ReadFile {
        path: path.to_owned(),
    })?;
    if to == "-" {
        let mut out = stdout().lock();
        let copied =
            receive(&mut session, &mut out).and_then(|mode| Ok(out.flush().map(|()| mode)?));
        return copied.map(drop).map_err(|error| told(error, vm, to));
    }
    let target = match Path::new(to) {
        to if to.is_dir() => to.join(Path::new(path).file_name().unwrap_or_default()),
        to => to.to_owned(),
    };
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!(".peapod-{}", std::process::id()));
    let place = target.with_file_name(name);
    let copied = receive_as(&mut session, &place, &target);
    if copied.is_err() {
        // It may not have come to that.
        let _ = fs::remove_file(&place);
    }
    copied.map_err(|error| told(error, vm, to))
}

enum Failure {
    Session(session::Error),
    Here(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Here(error)
    }
}

fn told(failure: Failure, vm: &Vm, to: &str) -> Error {
    match failure {
        Failure::Session(error) => vm.said(error),
        Failure::Here(error) => Error::File(to.to_owned(), error),
    }
}

fn receive_as(session: &mut Session, place: &PathBuf, target: &Path) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(place)?;
    let mode = receive(session, &mut file)?;
    file.set_permissions(fs::Permissions::from_mode(mode & PERMISSIONS))?;
    Ok(fs::rename(place, target)?)
}

/// The file's bytes; its permissions at the end.
fn receive(session: &mut Session, to: &mut impl Write) -> Result<u32, Failure> {
    loop {
        match session.hear().map_err(Failure::Session)? {
            Said::Output(bytes) => to.write_all(&bytes)?,
            Said::Reply(Reply::File { mode }) => return Ok(mode),
            Said::Complaint(_) | Said::Reply(_) => {}
        }
    }
}

fn directory() -> io::Error {
    io::Error::other("a directory: `tar -c DIR | peapod exec -i VM -- tar -x` copies one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_with_a_vm_before_its_colon_is_a_guest_s() {
        let path = |word| guest(word).map(|(_, path)| path);
        assert_eq!(path("vm:/etc/hosts"), Some("/etc/hosts"));
        assert_eq!(path("vm:a:b"), Some("a:b"));
        assert_eq!(path("/tmp:/a"), Some("/a"));
        for here in ["/etc/hosts", "./a:b", "-", ":a", "vm:"] {
            assert_eq!(path(here), None, "{here}");
        }
    }
}
