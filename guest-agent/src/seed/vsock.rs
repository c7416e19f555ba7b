//! A seed that the VMM itself hands out, where there is neither a disk nor a network: each file is
//! asked for as the VMM asks for one of the guest's (docs/agent-protocol.md).

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use super::MAX_FILE;
use crate::protocol::{self, Kind, Reply, Request, stream};
use crate::voice;

/// What `seedfrom` is then.
pub const ADDRESS: &str = "vsock:";
/// In every error that is the VMM's own answer.
pub const REFUSED: &str = "the VMM answered: ";
/// How long a root's own kernel may take to load what vsock needs, and how often it is asked.
const UNLOADED: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);
/// How long the VMM may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The one request's number.
const NUMBER: u32 = 1;

/// A file of the seed.
pub fn get(name: &str) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::ConnectionReset => "this VMM has no seed to hand out".to_owned(),
        _ => error.to_string(),
    };
    let mut stream = connect().map_err(failed)?;
    let path = name.to_owned();
    protocol::write(&mut stream, &Request::ReadFile { path }.frame(NUMBER)).map_err(failed)?;
    collect(&mut stream)
}

fn connect() -> io::Result<UnixStream> {
    let end = Instant::now() + UNLOADED;
    loop {
        match voice::attempt(protocol::SEED) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if voice::is_unloaded(&error) && Instant::now() < end => {
                thread::sleep(PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The data, when their reply has come.
fn collect(from: &mut impl Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(frame) = protocol::read(from).map_err(|error| error.to_string())? {
        match (frame.kind, frame.payload.split_first()) {
            (Kind::Data, Some((&stream::OUT, more))) => bytes.extend(more),
            (Kind::Reply, _) => {
                return match serde_json::from_slice(&frame.payload) {
                    Ok(Reply::File { .. }) => Ok(bytes),
                    Ok(Reply::Error(why)) => Err(format!("{REFUSED}{why}")),
                    _ => Err(format!("{REFUSED}something else")),
                };
            }
            _ => {}
        }
        if bytes.len() as u64 > MAX_FILE {
            return Err(format!("it may have {MAX_FILE} bytes"));
        }
    }
    Err("the VMM ended amid it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Frame;

    fn answer(pieces: &[&[u8]], reply: Option<Reply>) -> Result<Vec<u8>, String> {
        let mut sent = Vec::new();
        for piece in pieces {
            let data = Frame::data(NUMBER, stream::OUT, piece);
            protocol::write(&mut sent, &data).unwrap();
        }
        if let Some(reply) = reply {
            protocol::write(&mut sent, &reply.frame(NUMBER)).unwrap();
        }
        collect(&mut &sent[..])
    }

    #[test]
    fn a_file_is_whole_or_an_error() {
        let done = || Some(Reply::File { mode: 0o600 });
        assert_eq!(
            answer(&[b"#!", b"/bin/sh", b""], done()).unwrap(),
            b"#!/bin/sh"
        );
        assert_eq!(answer(&[], done()).unwrap(), b"");
        assert_eq!(answer(&[b"x"], None).unwrap_err(), "the VMM ended amid it");
        let missing = Some(Reply::Error("vendor-data: no such file".to_owned()));
        assert!(answer(&[], missing).unwrap_err().starts_with(REFUSED));
        let mib = vec![b'x'; MAX_FILE as usize];
        assert_eq!(answer(&[&mib], done()).unwrap().len(), mib.len());
        let why = answer(&[&mib, b"x"], done()).unwrap_err();
        assert_eq!(why, "it may have 1048576 bytes");
    }
}
