//! The network's side of its control socket. Everything from there is bounded: connections, the
//! length of a line, and how long one of them may be silent.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use netdev::control::Control;
use netdev::requests::{MAX_REQUEST, answer};
use serde_json::{Value, json};

/// Connections at once.
const CONNECTIONS: usize = 16;
/// How long one may be silent, or not take its answer.
const SILENCE: Duration = Duration::from_secs(60);
/// What is waited after an accept() that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers at `listener`, in a thread of its own, as long as the process lives.
pub fn start(listener: &UnixListener, control: Control) -> io::Result<()> {
    let listener = listener.try_clone()?;
    let connections = Arc::new(AtomicUsize::new(0));
    let answer = move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => connect(stream, &control, &connections),
                // No descriptors, most likely: there may be some later.
                Err(_) => thread::sleep(PAUSE),
            }
        }
    };
    let thread = thread::Builder::new().name("control".to_owned());
    thread.spawn(answer).map(drop)
}

fn connect(stream: UnixStream, control: &Control, connections: &Arc<AtomicUsize>) {
    let place = Place::take(connections);
    let Some(place) = place else {
        let _ = say(&stream, &refusal("too many connections"));
        return;
    };
    let control = control.clone();
    let answer = move || {
        // Whoever is gone has heard enough.
        let _ = converse(&stream, &control);
        drop(place);
    };
    let thread = thread::Builder::new().name("client".to_owned());
    if let Err(error) = thread.spawn(answer) {
        tracing::warn!("a control connection could not be served: {error}");
    }
}

/// One of the connections that there may be at once.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(connections: &Arc<AtomicUsize>) -> Option<Self> {
        let all = Ordering::Relaxed;
        let more = |count| (count < CONNECTIONS).then_some(count + 1);
        connections.fetch_update(all, all, more).ok()?;
        Some(Self(connections.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(stream: &UnixStream, control: &Control) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        reader
            .by_ref()
            .take(MAX_REQUEST)
            .read_until(b'\n', &mut line)?;
        match line.pop() {
            None => return Ok(()),
            Some(b'\n') => {}
            Some(_) if line.len() as u64 + 1 == MAX_REQUEST => {
                return say(stream, &refusal("the request is too long"));
            }
            // Cut short.
            Some(_) => return Ok(()),
        }
        let answer = match serde_json::from_slice(&line) {
            Ok(request) => answer(request, control).unwrap_or_else(|error| refusal(&error)),
            Err(error) => refusal(&format!("the request is not understood: {error}")),
        };
        say(stream, &answer)?;
    }
}

fn say(mut stream: &UnixStream, answer: &Value) -> io::Result<()> {
    stream.set_write_timeout(Some(SILENCE))?;
    stream.write_all(format!("{answer}\n").as_bytes())
}

fn refusal(why: &str) -> Value {
    json!({ "error": why })
}
