//! `peapod-net control`: asks a network, and shows what it answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::Failure;
use crate::args::{Capture, Control, Question};
use crate::protocol::{Action, MAX_ANSWER, Request};
use crate::publish::Publish;

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
            publish: written(publish),
        },
        Question::Remove { publish } => Request::Remove {
            publish: written(publish),
        },
        Question::Flows { most } => Request::Flows { most: *most },
        Question::Counters => Request::Counters,
        Question::Metrics => Request::Metrics,
        Question::Capture(capture) => {
            let (mut path, mut snaplen, mut max_bytes) = (None, None, None);
            let action = match capture {
                Capture::Start {
                    file,
                    snaplen: frame,
                    max_bytes: all,
                } => {
                    // The network is in another directory.
                    path = Some(std::path::absolute(file).map_err(Failure::input)?);
                    (snaplen, max_bytes) = (*frame, *all);
                    Action::Start
                }
                Capture::Stop => Action::Stop,
                Capture::Status => Action::Status,
            };
            Request::Capture {
                action,
                path,
                snaplen,
                max_bytes,
            }
        }
    })
}

/// What was parsed, as it is written.
fn written(publish: &Publish) -> String {
    let (first, last) = (*publish.host.start(), *publish.host.end());
    let guest_last = publish.guest.saturating_add(last - first);
    let address = publish.address.map_or(String::new(), |address| {
        if address.is_ipv6() {
            format!("[{address}]:")
        } else {
            format!("{address}:")
        }
    });
    let guest = publish.guest;
    format!(
        "{address}{first}-{last}:{guest}-{guest_last}/{}",
        publish.transport
    )
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

/// The answer for people.
fn show(request: &Request, answer: &Value) -> String {
    let list = |name: &str| match answer.get(name) {
        Some(Value::Array(list)) => list.clone(),
        _ => Vec::new(),
    };
    match request {
        Request::Forwards => table(
            &list("forwards"),
            &[
                ("TRANSPORT", "transport"),
                ("BIND", "bind"),
                ("GUEST PORT", "guest_port"),
                ("LISTENS", "listens"),
                ("CONNECTIONS", "connections"),
                ("REFUSED", "refused"),
                ("BYTES IN", "bytes_in"),
                ("BYTES OUT", "bytes_out"),
            ],
        ),
        Request::Add { .. } | Request::Remove { .. } => table(
            &list("forwards"),
            &[
                ("TRANSPORT", "transport"),
                ("BIND", "bind"),
                ("GUEST PORT", "guest_port"),
            ],
        ),
        Request::Flows { .. } => {
            let flows = list("flows");
            let table = table(
                &flows,
                &[
                    ("TRANSPORT", "transport"),
                    ("GUEST PORT", "guest_port"),
                    ("REMOTE", "remote"),
                    ("FORWARDED", "forwarded"),
                    ("STATE", "state"),
                    ("AGE", "age_seconds"),
                    ("BYTES IN", "bytes_in"),
                    ("BYTES OUT", "bytes_out"),
                ],
            );
            let total = answer.get("total").and_then(Value::as_u64).unwrap_or(0);
            let shown = flows.len() as u64;
            if shown < total {
                format!("{table}{shown} of {total} flows\n")
            } else {
                table
            }
        }
        Request::Counters => {
            let counters = answer.get("counters").and_then(Value::as_object);
            let lines = counters.into_iter().flatten();
            let rows = lines.map(|(name, value)| vec![name.clone(), text(value)]);
            align(&rows.collect::<Vec<_>>())
        }
        Request::Metrics => answer.get("metrics").map_or(String::new(), text),
        Request::Capture { .. } => match answer.get("capture") {
            Some(capture @ Value::Object(_)) => table(
                std::slice::from_ref(capture),
                &[
                    ("FILE", "path"),
                    ("FRAMES", "frames"),
                    ("BYTES", "bytes"),
                    ("LOST", "lost"),
                    ("ENDED", "ended"),
                ],
            ),
            _ => "nothing is captured\n".to_owned(),
        },
    }
}

/// Rows of the values of some keys, below their headings.
fn table(rows: &[Value], columns: &[(&str, &str)]) -> String {
    let headings = columns.iter().map(|(heading, _)| (*heading).to_owned());
    let mut lines = vec![headings.collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| {
        let cells = columns
            .iter()
            .map(|(_, key)| row.get(key).map_or(String::new(), text));
        cells.collect()
    }));
    align(&lines)
}

/// Cells in columns, two spaces apart.
fn align(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut all = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        all.push_str(line.join("  ").trim_end());
        all.push('\n');
    }
    all
}

/// A value for people: no quotes, and no control characters of anybody's.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text
            .chars()
            .filter(|c| !c.is_control() || *c == '\n')
            .collect(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Null => String::new(),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => whole.to_string(),
            None => format!("{:.1}", number.as_f64().unwrap_or_default()),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_a_table_for_people() {
        let answer = json!({ "total": 3, "flows": [
            { "transport": "tcp", "guest_port": 80, "remote": "192.0.2.1:40000", "forwarded": true,
              "state": "open", "age_seconds": 1.25, "bytes_in": 10, "bytes_out": 20_000 },
            { "transport": "udp", "guest_port": 5353, "remote": "[2001:db8::1]:53",
              "forwarded": false, "state": "open", "age_seconds": 0.0, "bytes_in": 1, "bytes_out": 2 },
        ]});
        let shown = show(&Request::Flows { most: None }, &answer);
        assert_eq!(
            shown,
            "TRANSPORT  GUEST PORT  REMOTE            FORWARDED  STATE  AGE  BYTES IN  BYTES OUT\n\
             tcp        80          192.0.2.1:40000   yes        open   1.2  10        20000\n\
             udp        5353        [2001:db8::1]:53  no         open   0.0  1         2\n\
             2 of 3 flows\n"
        );
    }

    #[test]
    fn what_is_asked_for_is_what_was_written() {
        for (given, asked) in [
            ("80:8080", "80-80:8080-8080/tcp"),
            ("[::1]:1-2:3-4/udp", "[::1]:1-2:3-4/udp"),
        ] {
            let publish: Publish = given.parse().unwrap();
            let again = written(&publish);
            assert_eq!(again, asked);
            assert_eq!(again.parse(), Ok(publish));
        }
    }

    #[test]
    fn no_answer_speaks_to_the_terminal() {
        assert_eq!(text(&json!("a\u{1b}[2Jb")), "a[2Jb");
    }
}
