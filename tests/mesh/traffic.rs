//! Clients in a pod that ask for one thing after another, several at a time, and keep each answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use peapod_tests::mesh::Pod;
use peapod_tests::until;

use crate::site::{DETAILS, at_once, told};

/// As many ask at a time.
const CLIENTS: usize = 4;

/// A request and how it ended.
#[derive(Debug, Clone)]
pub struct Call {
    /// What was asked for, by nobody else.
    pub path: String,
    pub start: Instant,
    pub end: Instant,
    /// 0 where there was no answer.
    pub status: u16,
    pub body: String,
}

/// They go on until they are told to stop.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Has that pod ask the service that the guest is behind.
    pub fn start(pod: &Pod) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
        let clients = (0..CLIENTS).map(|client| {
            let (stop, calls, space) = (Arc::clone(&stop), Arc::clone(&calls), pod.space());
            let work = move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let call = ask(format!("/{client}/{number}"));
                    calls.lock().unwrap().push(call);
                    // All of the machine would be busy with refusals else.
                    thread::sleep(at_once() / 200);
                }
            };
            thread::spawn(move || space.inside(work).unwrap())
        });
        let clients = clients.collect();
        Self {
            stop,
            calls,
            clients,
        }
    }

    /// Waits until one that has been asked since is answered so.
    #[track_caller]
    pub fn becomes(&self, status: u16) {
        let now = Instant::now();
        until(&format!("nobody is answered {status}"), || {
            let calls = self.calls.lock().unwrap();
            let mut last = calls.iter().rev().take_while(|call| call.end > now);
            last.any(|call| call.start > now && call.status == status)
                .then_some(())
        });
    }

    /// All that was asked: each was answered at once, by what was asked for or by 503.
    #[track_caller]
    pub fn stop(self) -> Vec<Call> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
        let calls = std::mem::take(&mut *self.calls.lock().unwrap());
        for call in &calls {
            assert!(call.end - call.start < at_once(), "{call:?}");
            match call.status {
                200 => assert_eq!(told(&call.body)["path"], call.path, "{call:?}"),
                status => assert_eq!(status, 503, "{call:?}"),
            }
        }
        calls
    }
}

fn ask(path: String) -> Call {
    let start = Instant::now();
    let request = ureq::get(format!("http://{DETAILS}:9080{path}"))
        .config()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .build();
    let answer = request.call().and_then(|mut answer| {
        let body = answer.body_mut().read_to_string()?;
        Ok((answer.status().as_u16(), body))
    });
    let (status, body) = answer.unwrap_or_else(|error| (0, error.to_string()));
    Call {
        path,
        start,
        end: Instant::now(),
        status,
        body,
    }
}
