//! Requests as lines at a control socket, what is answered, and what is shown of an answer: of the network's, and
//! of one of any making.
#![no_main]

mod network;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use netdev::control::Control;
use netdev::engine::Engine;
use netdev::publish::Publish;
use netdev::requests::show::show;
use netdev::requests::{Action, Request, answer};
use serde_json::Value;

/// A connection may bring more.
const LINES: usize = 8;
/// A socket for each port takes its time.
const FORWARDS: usize = 16;

/// A network without a guest, and where it captures to.
struct Asked {
    _engine: Engine,
    control: Control,
    folder: tempfile::TempDir,
}

impl Asked {
    fn new() -> Self {
        let engine = Engine::new(network::config()).unwrap();
        Self {
            control: engine.control(),
            _engine: engine,
            folder: tempfile::tempdir_in("/dev/shm").unwrap(),
        }
    }

    fn ask(&self, line: &[u8]) {
        let Ok(mut request) = serde_json::from_slice::<Request>(line) else {
            return;
        };
        // As a client writes it.
        let written = serde_json::to_vec(&request).unwrap();
        serde_json::from_slice::<Request>(&written).unwrap();
        match &mut request {
            Request::Capture {
                path: Some(path), ..
            } => *path = self.folder.path().join("capture"),
            Request::Add { publish } | Request::Remove { publish } => {
                let parsed = publish.parse::<Publish>();
                if parsed.is_ok_and(|publish| publish.host.len() > FORWARDS) {
                    return;
                }
            }
            _ => {}
        }
        let written = serde_json::to_vec(&request).unwrap();
        if let Ok(value) = answer(request, &self.control) {
            shown(&serde_json::from_slice(&written).unwrap(), &value);
        }
    }

    /// Leaves nothing for the next.
    fn clear(&self) {
        for status in self.control.forwards().unwrap() {
            let forward = status.forward;
            self.control
                .remove_forward(forward.transport, forward.bind)
                .unwrap();
        }
        let _ = self.control.stop_capture();
        let _ = std::fs::remove_file(self.folder.path().join("capture"));
    }
}

/// Nothing of it speaks to a terminal.
fn shown(request: &Request, answer: &Value) {
    let text = show(request, answer);
    assert!(text.chars().all(|c| !c.is_control() || c == '\n'));
}

thread_local! {
    static ASKED: RefCell<Asked> = RefCell::new(Asked::new());
}

fuzz_target!(|bytes: &[u8]| {
    ASKED.with_borrow(|asked| {
        for line in bytes.split(|byte| *byte == b'\n').take(LINES) {
            asked.ask(line);
        }
        asked.clear();
    });
    if let Ok(answer) = serde_json::from_slice(bytes) {
        let remove = Request::Remove {
            publish: String::new(),
        };
        for request in [
            Request::Forwards,
            remove,
            Request::Flows { most: None },
            Request::Counters,
            Request::Metrics,
            Request::capture(Action::Status),
        ] {
            shown(&request, &answer);
        }
    }
});
