//! A question that is repeated until it is answered, as DHCP's clients ask theirs.

use std::io::{self, ErrorKind};
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

/// What a client must be able to take (RFC 2131, section 2), and more. A longer answer is none.
pub const LONGEST: usize = 1500;
/// How long a question that could not be sent yet is kept.
const PAUSE: Duration = Duration::from_millis(20);

/// How long an answer may take before the question is repeated.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// At first; twice that at each repetition, ...
    pub first: Duration,
    /// ... and at most.
    pub most: Duration,
}

/// Has `send` ask until `read` takes something that came for an answer; `None` where nothing did
/// before `end`. `send` says whether it could already.
pub fn exchange<T>(
    socket: &UdpSocket,
    patience: Patience,
    end: Instant,
    send: impl Fn() -> io::Result<bool>,
    read: impl Fn(&[u8]) -> io::Result<Option<T>>,
) -> io::Result<Option<T>> {
    let mut wait = patience.first;
    while Instant::now() < end {
        if !send()? {
            thread::sleep(PAUSE);
            continue;
        }
        let again = Instant::now() + wait;
        while let Some(left) = again
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
        {
            socket.set_read_timeout(Some(left))?;
            let mut answer = [0; LONGEST];
            let len = match socket.recv(&mut answer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if let Some(answer) = read(answer.get(..len).unwrap_or_default())? {
                return Ok(Some(answer));
            }
        }
        wait = (wait * 2).min(patience.most);
    }
    Ok(None)
}
