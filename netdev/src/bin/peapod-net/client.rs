//! `peapod-net control`: asks a network, and shows what it answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use netdev::requests::show::{show, text};
use netdev::requests::{Action, MAX_ANSWER, Request};
use serde_json::Value;

use crate::Failure;
use crate::args::{Capture, Control, Question};

/// How long the network may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks, and prints the answer.
pub fn run(args: &Control) -> Result<(), Failure> {
    let request = request(&args.question)?;
    let answer = ask(&args.socket, &request)?;
    if args.json {
        return print(&format!("{answer}\n"));
    }
    if let Some(error) = answer.get("error") {
        return Err(Failure::runtime(text(error)));
    }
    print(&show(&request, &answer))
}

fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::runtime(error))
        }
        _ => Ok(()),
    }
}

fn request(question: &Question) -> Result<Request, Failure> {
    Ok(match question {
        Question::Forwards => Request::Forwards,
        Question::Add { publish } => Request::Add {
            publish: publish.to_string(),
        },
        Question::Remove { publish } => Request::Remove {
            publish: publish.to_string(),
        },
        Question::Flows { most } => Request::Flows { most: *most },
        Question::Counters => Request::Counters,
        Question::Metrics => Request::Metrics,
        Question::Capture(Capture::Start {
            file,
            snaplen,
            max_bytes,
        }) => Request::Capture {
            action: Action::Start,
            // The network is in another directory.
            path: Some(std::path::absolute(file).map_err(Failure::input)?),
            snaplen: *snaplen,
            max_bytes: *max_bytes,
        },
        Question::Capture(Capture::Stop) => Request::capture(Action::Stop),
        Question::Capture(Capture::Status) => Request::capture(Action::Status),
    })
}

fn ask(socket: &Path, request: &Request) -> Result<Value, Failure> {
    let shown = socket.display();
    let failed = |error: std::io::Error| Failure::runtime(format!("{shown}: {error}"));
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let line = serde_json::to_string(request).map_err(Failure::input)?;
    stream
        .write_all(format!("{line}\n").as_bytes())
        .map_err(failed)?;
    let mut answer = String::new();
    let mut reader = BufReader::new(stream).take(MAX_ANSWER);
    reader.read_line(&mut answer).map_err(failed)?;
    serde_json::from_str(&answer).map_err(|error| {
        Failure::runtime(format!("{shown}: the answer is not understood: {error}"))
    })
}
