//! Sessions as the VMM has them, over a socket pair.

use super::*;
use crate::children;
use crate::protocol::{Exec, Size, stream};
use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::{Pid, Signal, kill_process};

/// What a session said: its streams, and how it ended.
#[derive(Debug, Default)]
struct Said {
    streams: [Vec<u8>; 3],
    reply: Option<Reply>,
}

impl Said {
    fn out(&self) -> String {
        String::from_utf8(self.streams[1].clone()).unwrap()
    }
}

/// Opens a session; the children that end meanwhile are reaped.
fn session(request: &Request) -> UnixStream {
    children::reap_always();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    thread::spawn(move || converse(theirs, true));
    protocol::write(&mut ours, &request.frame(7)).unwrap();
    ours
}

fn data(stream: &mut UnixStream, bytes: &[u8]) {
    let frame = Frame::data(7, stream::IN, bytes);
    protocol::write(stream, &frame).unwrap();
}

fn hear(stream: &mut UnixStream) -> Said {
    let mut said = Said::default();
    while let Ok(Some(frame)) = protocol::read(stream) {
        assert_eq!(frame.number, 7);
        match frame.kind {
            Kind::Data => said.streams[usize::from(frame.payload[0])].extend(&frame.payload[1..]),
            Kind::Reply => said.reply = serde_json::from_slice(&frame.payload).ok(),
            other => panic!("{other:?}"),
        }
    }
    said
}

fn sh(script: &str, terminal: Option<Size>) -> Request {
    Request::Exec(Exec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: [("WORD".to_owned(), "hello".to_owned())].into(),
        terminal,
        ..Exec::default()
    })
}

#[test]
fn a_program_has_its_three_streams_and_its_end_is_told() {
    let mut session = session(&sh("echo $WORD; cat; echo oh >&2; exit 3", None));
    data(&mut session, b"over ");
    data(&mut session, b"there");
    data(&mut session, b"");
    let said = hear(&mut session);
    assert_eq!(said.out(), "hello\nover there");
    assert_eq!(said.streams[2], b"oh\n");
    assert_eq!(
        said.reply,
        Some(Reply::Exited {
            code: Some(3),
            signal: None
        })
    );
}

#[test]
fn what_is_left_in_the_background_does_not_keep_the_session_and_lives_on() {
    let said = hear(&mut session(&sh("sleep 60 & echo $!; kill -9 $$", None)));
    let pid = said.out().trim().to_owned();
    // The session's own end comes after its reply.
    thread::sleep(Duration::from_millis(50));
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("S (sleeping)"), "{status}");
    let pid = pid.parse().ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(
        said.reply,
        Some(Reply::Exited {
            code: None,
            signal: Some(9)
        })
    );
}

#[test]
fn all_of_its_output_comes_before_its_end_however_slowly_it_is_taken() {
    let mut session = session(&sh("head -c 300000 /dev/zero", None));
    let mut count = 0;
    while let Ok(Some(frame)) = protocol::read(&mut session) {
        if frame.kind == Kind::Data {
            count += frame.payload.len() - 1;
            thread::sleep(Duration::from_millis(30));
        }
    }
    assert_eq!(count, 300_000);
}

#[test]
fn a_program_that_does_not_read_is_hung_up_too() {
    let mut session = session(&sh("sleep 60", None));
    data(&mut session, &[0; 100_000]);
    session.shutdown(std::net::Shutdown::Write).unwrap();
    let said = hear(&mut session);
    assert_eq!(
        said.reply,
        Some(Reply::Exited {
            code: None,
            signal: Some(1)
        })
    );
}

#[test]
fn a_program_on_a_terminal_knows_its_size() {
    let size = Size {
        rows: 7,
        columns: 33,
    };
    let script = "stty size; read line; stty size; echo heard $line";
    let mut session = session(&sh(script, Some(size)));
    let wider = Size {
        rows: 8,
        columns: 34,
    };
    protocol::write(&mut session, &Request::Resize(wider).frame(7)).unwrap();
    data(&mut session, b"it\n");
    let said = hear(&mut session).out();
    assert!(
        said.contains("8 34\r\n") && said.contains("heard it\r\n"),
        "{said}"
    );
}

#[test]
fn a_program_whose_caller_is_gone_is_hung_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hung-up");
    let script = format!(
        "trap 'echo yes > {}; exit' HUP; echo up; sleep 60 & wait",
        file.display()
    );
    let mut session = session(&sh(&script, None));
    let up = protocol::read(&mut session).unwrap().unwrap();
    assert_eq!(up.payload, b"\x01up\n");
    drop(session);
    for _ in 0..1000 {
        if file.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it goes on");
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let request = Request::Exec(Exec {
        argv: vec!["/nonexistent".to_owned()],
        ..Exec::default()
    });
    let said = hear(&mut session(&request));
    let Some(Reply::Error(why)) = said.reply else {
        panic!("{said:?}");
    };
    assert!(why.starts_with("/nonexistent: "), "{why}");
    let none = hear(&mut session(&Request::Exec(Exec::default())));
    assert!(matches!(none.reply, Some(Reply::Error(_))));
    let other = hear(&mut session(&Request::PowerOff));
    assert!(matches!(other.reply, Some(Reply::Error(_))));
}

#[test]
fn a_file_is_written_as_a_whole_or_not_at_all_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file").display().to_string();
    let write = |mode, pieces: &[&[u8]]| {
        let path = path.clone();
        let mut session = session(&Request::WriteFile { path, mode });
        pieces.iter().for_each(|piece| data(&mut session, piece));
        session.shutdown(std::net::Shutdown::Write).unwrap();
        hear(&mut session).reply
    };
    assert!(matches!(write(None, &[b"half"]), Some(Reply::Error(_))));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(write(Some(0o600), &[b"who", b"le", b""]), Some(Reply::Ok));
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (fs::read(&path).unwrap(), mode()),
        (b"whole".to_vec(), 0o600)
    );
    assert_eq!(write(None, &[b"again", b""]), Some(Reply::Ok));
    assert_eq!(mode(), 0o600);
    let read = |path: &str| {
        hear(&mut session(&Request::ReadFile {
            path: path.to_owned(),
        }))
    };
    let said = read(&path);
    assert_eq!(said.out(), "again");
    assert_eq!(said.reply, Some(Reply::File { mode: 0o600 }));
    assert!(matches!(read("/").reply, Some(Reply::Error(_))));
}
