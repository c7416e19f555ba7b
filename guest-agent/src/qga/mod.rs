//! QEMU's guest agent's protocol, for a VMM that is not Peapod: JSON on a port of virtio-serial. A
//! root that has QEMU's own agent keeps the port to it.

mod command;
mod exec;
mod files;
mod serve;
mod split;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::say;
pub use command::{Command, Failure, parse};
pub use serve::Server;
pub use split::Splitter;

/// The port's name, by which QEMU and libvirt have it.
pub const PORT: &str = "org.qemu.guest_agent.0";
const PORTS: &str = "/sys/class/virtio-ports";
/// QEMU's own agent, where distributions put it.
const OTHERS: [&str; 2] = ["/usr/sbin/qemu-ga", "/usr/bin/qemu-ga"];
/// How long the port may take to appear, and how often it is looked for.
const TRIES: usize = 60;
const PAUSE: Duration = Duration::from_secs(2);
/// How soon a VMM that has come is heard, and one that has gone is seen.
const GLANCE: Duration = Duration::from_millis(200);
/// What a message begins with that follows what may be a broken one.
const MARK: u8 = 0xff;

/// Serves the port on a thread of its own, if there is one that nobody else holds.
pub fn serve() {
    if OTHERS.iter().any(|other| Path::new(other).exists()) {
        return;
    }
    thread::spawn(|| {
        let Some(mut port) = wait_for_port() else {
            return;
        };
        say!("speaks QEMU's guest agent's protocol at {PORT}");
        let mut server = Server::default();
        loop {
            // Nothing is read while nobody is at the other end.
            if let Err(error) = speak(&mut port, &mut server) {
                say!("{PORT}: {error}");
                return;
            }
            thread::sleep(GLANCE);
        }
    });
}

/// The port, once it is there; `None` where there is none, or another program has it.
fn wait_for_port() -> Option<File> {
    for _ in 0..TRIES {
        if let Some(path) = find_port() {
            let opened = File::options().read(true).write(true).open(&path);
            return match opened {
                Ok(port) => Some(port),
                // It is somebody else's.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
                Err(error) => {
                    say!("{}: {error}", path.display());
                    None
                }
            };
        }
        thread::sleep(PAUSE);
    }
    None
}

fn find_port() -> Option<PathBuf> {
    let mut ports = fs::read_dir(PORTS).ok()?.flatten();
    let ours = |port: &fs::DirEntry| {
        let name = fs::read_to_string(port.path().join("name"));
        name.is_ok_and(|name| name.trim() == PORT)
    };
    let port = ports.find(ours)?;
    Some(Path::new("/dev").join(port.file_name()))
}

/// Answers until the other end is silent for good.
pub fn speak(port: &mut (impl Read + Write), server: &mut Server) -> io::Result<()> {
    let mut splitter = Splitter::default();
    let mut bytes = [0; 4096];
    loop {
        let count = match port.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        for byte in bytes.get(..count).unwrap_or_default() {
            if let Some(message) = splitter.push(*byte)
                && let Some(answer) = answer(&message, server)
            {
                port.write_all(&answer)?;
            }
        }
    }
}

/// The answer to a message, as it goes back; `None` where the command has none.
fn answer(message: &[u8], server: &mut Server) -> Option<Vec<u8>> {
    let (id, command) = command::parse(message);
    let marked = matches!(command, Ok(Command::GuestSyncDelimited { .. }));
    let result = command.and_then(|command| server.run(command));
    let mut answer = match result {
        Ok(value) => json!({ "return": value? }),
        Err(Failure { class, why }) => json!({ "error": { "class": class, "desc": why } }),
    };
    if let (Some(id), Value::Object(fields)) = (id, &mut answer) {
        fields.insert("id".to_owned(), id);
    }
    let mut bytes = Vec::new();
    if marked {
        bytes.push(MARK);
    }
    bytes.extend(answer.to_string().bytes());
    bytes.push(b'\n');
    Some(bytes)
}

#[cfg(test)]
mod tests;
