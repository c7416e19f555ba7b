//! An agent of a few lines, and what one may say that is none. QEMU's own is asked by
//! `tests/guests/handler.rs`.

use std::io::{BufRead, BufReader, Write};
use std::thread::{self, JoinHandle};

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// A client of an agent that is there, and gives `answer` to each question but the first, which asks
/// for a number that both know.
fn agent(answer: impl Fn(&Value) -> Vec<u8> + Send + 'static) -> (Qga, JoinHandle<Vec<Value>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let open = Arc::new(AtomicBool::new(true));
    let qga = Qga::new(ours, open, Changes::default()).unwrap();
    let asked = thread::spawn(move || {
        let mut asked = Vec::new();
        let mut lines = BufReader::new(theirs.try_clone().unwrap()).split(b'\n');
        while let Some(Ok(line)) = lines.next() {
            let fresh = line.rsplit(|byte| *byte == 0xff).next().unwrap();
            let question: Value = serde_json::from_slice(fresh).unwrap();
            let answer = match &question["arguments"]["id"] {
                Value::Null => answer(&question),
                id => {
                    let number = format!("{{\"return\": {id}}}\n");
                    [&b"of yesterday\n\xff"[..], number.as_bytes()].concat()
                }
            };
            asked.push(question);
            // Who has asked for the end may be gone before it hears of it.
            let _ = (&theirs).write_all(&answer);
        }
        asked
    });
    (qga, asked)
}

#[test]
fn a_program_is_run_and_its_end_waited_for() {
    let (qga, asked) = agent(|question| {
        let answer = match question["execute"].as_str().unwrap() {
            "guest-exec" => json!({ "return": { "pid": 7 } }),
            "guest-exec-status" => json!({ "return": {
                "exited": true, "exitcode": 3, "out-data": "b3V0cHV0"
            } }),
            _ => json!({ "return": {} }),
        };
        format!("{answer}\n").into_bytes()
    });
    let argv = ["/bin/sh".to_owned(), "-c".to_owned(), "exit 3".to_owned()];
    let ended = qga.run(&argv, LONG, 3).unwrap();
    let output = b"out".to_vec();
    assert_eq!(ended, Ended { status: 3, output });
    qga.ping(LONG).unwrap();
    qga.look();
    assert_eq!(qga.version().as_deref(), Some("unknown"));
    assert!(qga.power_off());
    drop(qga);
    let asked = asked.join().unwrap();
    let names: Vec<_> = asked
        .iter()
        .map(|q| q["execute"].as_str().unwrap())
        .collect();
    let wanted = [
        "guest-sync-delimited",
        "guest-exec",
        "guest-exec-status",
        "guest-ping",
        "guest-info",
        "guest-shutdown",
    ];
    assert_eq!(names, wanted);
    assert_eq!(asked[1]["arguments"]["arg"], json!(["-c", "exit 3"]));
}

#[test]
fn file_systems_that_stand_still_go_on_when_their_time_is_over_or_they_are_told_to() {
    let (qga, asked) = agent(|_| b"{\"return\": 2}\n".to_vec());
    for seconds in [Some(0), Some(600), None] {
        qga.stand_still(StandStill::For(seconds)).unwrap();
        qga.thaw_in_time();
    }
    qga.stand_still(StandStill::NoMore).unwrap();
    drop(qga);
    let asked = asked.join().unwrap();
    let names: Vec<_> = asked
        .iter()
        .filter_map(|q| q["execute"].as_str()?.strip_prefix("guest-fsfreeze-"))
        .collect();
    assert_eq!(names, ["freeze", "thaw", "freeze", "freeze", "thaw"]);
}

#[test]
fn a_refusal_is_shown_without_what_a_terminal_would_obey() {
    let (qga, _) = agent(|_| b"{\"error\": {\"desc\": \"no\\u001b[2J\"}}\n".to_vec());
    let said = qga.ping(LONG).unwrap_err().to_string();
    assert!(
        said.starts_with("no") && !said.contains('\u{1b}'),
        "{said:?}"
    );
}

#[test]
fn what_is_no_answer_is_an_error_and_the_next_question_begins_anew() {
    let (qga, asked) = agent(|_| b"[1, \xff\n".to_vec());
    for _ in 0..2 {
        assert!(matches!(qga.ping(LONG), Err(Error::Refused(_))));
    }
    drop(qga);
    assert_eq!(asked.join().unwrap().len(), 4);
}

#[test]
fn an_agent_that_is_silent_or_not_there_is_not_waited_for() {
    let (qga, _) = agent(|_| Vec::new());
    let short = Duration::from_millis(50);
    assert!(matches!(qga.ping(short), Err(Error::Late)));
    qga.0.open.store(false, Ordering::Release);
    assert!(matches!(qga.ping(LONG), Err(Error::NoAgent)));
    assert!(!qga.power_off());
}

#[test]
fn what_the_guest_is_and_has_is_put_together_and_what_is_kept_from_us_is_empty() {
    let (qga, _) = agent(|question| {
        let said = match question["execute"].as_str().unwrap() {
            "guest-get-osinfo" => json!({ "id": "debian", "kernel-release": "6.1" }),
            "guest-get-host-name" => json!({ "host-name": "d\u{1b}[2J" }),
            "guest-get-timezone" => json!({ "zone": "CET", "offset": 3600 }),
            "guest-get-fsinfo" => json!([
                { "name": "vda1", "mountpoint": "/", "type": "ext4", "total-bytes": 9, "used-bytes": 4 },
            ]),
            "guest-fsfreeze-status" => json!("frozen"),
            "guest-get-users" => {
                let answer = json!({ "error": { "desc": "the command is disabled" } });
                return format!("{answer}\n").into_bytes();
            }
            _ => json!([
                7,
                { "name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [
                    { "ip-address": "10.0.2.2", "prefix": 24 }, { "ip-address": "nowhere" },
                ], "statistics": { "rx-bytes": 5 } },
            ]),
        };
        format!("{}\n", json!({ "return": said })).into_bytes()
    });
    let info = qga.info().unwrap();
    assert_eq!((&*info.os.id, &*info.os.kernel_release), ("debian", "6.1"));
    assert!(info.hostname.starts_with('d') && !info.hostname.contains('\u{1b}'));
    assert_eq!(info.timezone.offset_seconds, 3600);
    assert!(info.frozen && info.users.is_empty());
    let disk = &info.filesystems[0];
    assert_eq!((&*disk.mountpoint, disk.total, disk.available), ("/", 9, 5));
    let [odd, card] = &info.interfaces[..] else {
        panic!("{:?}", info.interfaces)
    };
    assert!(odd.name.is_empty());
    assert_eq!((card.addresses.len(), card.received.bytes), (1, 5));
    assert_eq!(card.addresses[0].ip.to_string(), "10.0.2.2");
}

proptest::proptest! {
    #[test]
    fn no_word_of_an_agent_s_panics(said: Vec<u8>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(&said).unwrap();
        (&theirs).write_all(b"\n{\"return\": 1}\n").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let open = Arc::new(AtomicBool::new(true));
        let qga = Qga::new(ours, open, Changes::default()).unwrap();
        proptest::prop_assert!(qga.info().is_err());
    }
}
