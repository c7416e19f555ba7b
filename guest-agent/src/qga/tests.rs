//! The protocol as it goes over the port, which here is a socket.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::*;
use crate::children;

/// A VMM's end of a port behind which the agent answers.
struct Vmm(BufReader<UnixStream>);

impl Vmm {
    fn new() -> Self {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || speak(&mut theirs, &mut Server::default()));
        Self(BufReader::new(ours))
    }

    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, name: &str, arguments: Value) -> Value {
        self.send(&json!({ "execute": name, "arguments": arguments }).to_string());
        self.hear()
    }

    /// What is returned, without which the test fails.
    fn returned(&mut self, name: &str, arguments: Value) -> Value {
        let mut answer = self.ask(name, arguments);
        assert!(answer.get("return").is_some(), "{name}: {answer}");
        answer["return"].take()
    }

    fn error(&mut self, name: &str, arguments: Value) -> String {
        let answer = self.ask(name, arguments);
        answer["error"]["desc"].as_str().unwrap().to_owned()
    }
}

#[test]
fn an_answer_carries_its_question_s_id_and_an_error_ends_nothing() {
    let mut vmm = Vmm::new();
    vmm.send(r#"{"execute":"guest-ping","id":{"a":1}}"#);
    assert_eq!(vmm.hear(), json!({ "return": {}, "id": {"a": 1} }));
    vmm.send("nonsense\n");
    assert_eq!(vmm.hear()["error"]["class"], "GenericError");
    vmm.send(r#"{"execute":"guest-dance","id":2}"#);
    let answer = vmm.hear();
    assert_eq!(
        (&answer["error"]["class"], &answer["id"]),
        (&json!("CommandNotFound"), &json!(2))
    );
    assert_eq!(vmm.returned("guest-sync", json!({"id": 9})), 9);
}

#[test]
fn what_has_begun_is_ended_by_a_mark_and_the_answer_has_one() {
    let mut vmm = Vmm::new();
    vmm.send(r#"{"execute":"guest-pi"#);
    vmm.0.get_mut().write_all(&[MARK]).unwrap();
    vmm.send(r#"{"execute":"guest-sync-delimited","arguments":{"id":5}}"#);
    let mut bytes = Vec::new();
    vmm.0.read_until(b'\n', &mut bytes).unwrap();
    assert_eq!(bytes, b"\xff{\"return\":5}\n");
}

#[test]
fn what_it_tells_is_of_this_machine() {
    let mut vmm = Vmm::new();
    let info = vmm.returned("guest-info", json!({}));
    assert_eq!(
        info["supported_commands"].as_array().unwrap().len(),
        command::NAMES.len()
    );
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    assert_eq!(
        vmm.returned("guest-get-host-name", json!({}))["host-name"],
        json!(name)
    );
    let load = vmm.returned("guest-get-load", json!({}));
    assert!(load["load15m"].as_f64().unwrap() >= 0.0, "{load}");
    let links = vmm.returned("guest-network-get-interfaces", json!({}));
    assert!(links.to_string().contains("127.0.0.1"), "{links}");
    let time = vmm.returned("guest-get-time", json!({})).as_u64().unwrap();
    assert!(clock().abs_diff(time) < 60_000_000_000);
    for name in ["guest-get-fsinfo", "guest-get-users", "guest-get-vcpus"] {
        assert!(vmm.returned(name, json!({})).is_array(), "{name}");
    }
}

fn clock() -> u64 {
    crate::guest::clock::now()
}

#[test]
fn a_file_is_written_and_read_and_its_handle_is_gone_in_the_end() {
    let mut vmm = Vmm::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let handle = vmm.returned("guest-file-open", json!({"path": path, "mode": "w"}));
    let data = json!({"handle": handle, "buf-b64": "aGVsbG8=", "count": 4});
    assert_eq!(vmm.returned("guest-file-write", data)["count"], 4);
    vmm.returned("guest-file-close", json!({"handle": handle}));
    let why = vmm.error("guest-file-close", json!({"handle": handle}));
    assert!(why.contains("has not been found"), "{why}");
    let handle = vmm.returned("guest-file-open", json!({"path": path}));
    let read = vmm.returned("guest-file-read", json!({"handle": handle}));
    assert_eq!(
        read,
        json!({"count": 4, "buf-b64": "aGVsbA==", "eof": true})
    );
    let far = json!({"handle": handle, "offset": -1, "whence": "end"});
    assert_eq!(vmm.returned("guest-file-seek", far)["position"], 3);
    for (name, arguments) in [
        ("guest-file-open", json!({"path": path, "mode": "rwx"})),
        ("guest-file-open", json!({"path": "/no/such"})),
        ("guest-file-read", json!({"handle": handle, "count": -1})),
        (
            "guest-file-read",
            json!({"handle": handle, "count": 1u64 << 40}),
        ),
        (
            "guest-file-write",
            json!({"handle": handle, "buf-b64": "?"}),
        ),
        (
            "guest-file-seek",
            json!({"handle": handle, "offset": -1, "whence": 0}),
        ),
    ] {
        vmm.error(name, arguments);
    }
}

#[test]
fn a_program_s_end_and_output_are_told_once() {
    children::reap_always();
    let mut vmm = Vmm::new();
    let mut end = |arguments: Value| {
        let pid = vmm.returned("guest-exec", arguments)["pid"].clone();
        let start = Instant::now();
        let status = loop {
            let status = vmm.returned("guest-exec-status", json!({"pid": pid}));
            if status["exited"] == true {
                break status;
            }
            assert!(start.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(10));
        };
        assert!(
            vmm.error("guest-exec-status", json!({"pid": pid}))
                .contains("not exist")
        );
        status
    };
    let script = |script: &str, capture: Value| {
        json!({
            "path": "/bin/sh", "arg": ["-c", script], "input-data": "aGk=", "capture-output": capture,
        })
    };
    assert_eq!(
        end(script("cat; echo no >&2; exit 3", true.into())),
        json!({"exited": true, "exitcode": 3, "out-data": "aGk=", "err-data": "bm8K"})
    );
    assert_eq!(
        end(script("printf a; printf b >&2", "merged".into())),
        json!({"exited": true, "exitcode": 0, "out-data": "YWI="})
    );
    assert_eq!(
        end(script("kill -9 $$", false.into())),
        json!({"exited": true, "signal": 9})
    );
    let most = end(script("head -c 5000000 /dev/zero", "stdout".into()));
    assert_eq!(most["out-truncated"], true);
    let why = vmm.error("guest-exec", json!({"path": "/no/such"}));
    assert!(why.contains("failed to execute /no/such"), "{why}");
    vmm.error("guest-exec", script("true", "loud".into()));
}
