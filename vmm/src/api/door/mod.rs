//! virt-handler's door: KubeVirt's gRPC services on a launcher's socket. By it a VMI comes, is asked
//! about and is ended; and virt-handler is told how its domain is.
//!
//! The door is open before there is a VM, while the process has one thread and no sandbox yet, so one
//! thread serves it all: the main one until a VMI has come, then one of its own, confined as the
//! API's are. A call that has begun before goes on after.

mod cmd;
mod life;
mod notify;
pub mod probe;
#[cfg(test)]
mod tests;
mod vm;
mod wire;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use netdev::socket::Listener;
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::agent::program::Programs;
use crate::domain::Domain;
use crate::plan::Outcome;
use crate::running::Running;
use crate::sandbox::{self, Kind};

use vm::Vm;

/// In KubeVirt's share directory: sockets of launchers, for virt-handler.
const SOCKETS: &str = "sockets";
/// A launcher's socket while it gets ready, and when it is.
const UNREADY: &str = "launcher-init-sock";
const READY: &str = "launcher-sock";
/// In KubeVirt's share directory: virt-handler's.
const NOTIFY: &str = "domain-notify-pipe.sock";
/// Calls that wait, of those that give a VMI, and events that do.
const WAITING: usize = 16;
/// Calls at once that wait for the guest or its network.
const BLOCKING: usize = 8;
/// How long whoever gave a VMI that did not start may take to hear of it.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The door, until it is closed.
pub struct Door {
    shared: Arc<Shared>,
    share: PathBuf,
    uid: String,
    /// Who gave the VMI, and waits.
    giver: Option<Answer>,
    served: Served,
}

enum Served {
    /// By the main thread, while that waits.
    Here {
        runtime: Runtime,
        given: mpsc::Receiver<Given>,
        events: mpsc::Receiver<Value>,
    },
    /// By a thread of its own.
    Elsewhere {
        end: oneshot::Sender<Option<Outcome>>,
        thread: JoinHandle<()>,
    },
    Nowhere,
}

/// A VMI as JSON, and who waits for what comes of it.
type Given = (Vec<u8>, Answer);
type Answer = oneshot::Sender<Result<(), String>>;

/// What the main thread waited for.
#[derive(Debug, PartialEq, Eq)]
pub enum Came {
    /// A VMI, as JSON.
    Vmi(Vec<u8>),
    /// A signal to stop.
    Stop,
    /// Nobody, for so long.
    Nobody,
}

/// What calls share.
struct Shared {
    stage: Mutex<Stage>,
    give: mpsc::Sender<Given>,
    /// Kubernetes' events for the VMI.
    events: mpsc::Sender<Value>,
    /// The domain of a VM that has ended is not wanted any more.
    deleted: Notify,
}

#[derive(Clone)]
enum Stage {
    /// For a VMI.
    Waiting,
    /// Its VM is there, or was.
    Has(Arc<Vm>),
}

impl Shared {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm(&self) -> Option<Arc<Vm>> {
        match &*self.stage() {
            Stage::Waiting => None,
            Stage::Has(vm) => Some(vm.clone()),
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Door({})", self.share.display())
    }
}

impl Door {
    /// Listens where virt-handler looks for a launcher, below KubeVirt's share directory; `uid` is the
    /// VMI's.
    pub fn open(share: &Path, uid: &str) -> Result<Self, String> {
        let sockets = share.join(SOCKETS);
        let shown = |path: &Path, error: io::Error| format!("{}: {error}", path.display());
        std::fs::create_dir_all(&sockets).map_err(|error| shown(&sockets, error))?;
        let (unready, ready) = (sockets.join(UNREADY), sockets.join(READY));
        let listener = Listener::bind(&unready, true)?;
        let (give, given) = mpsc::channel(WAITING);
        let (tell, events) = mpsc::channel(WAITING);
        let shared = Arc::new(Shared {
            stage: Mutex::new(Stage::Waiting),
            give,
            events: tell,
            deleted: Notify::new(),
        });
        let serve = || {
            let runtime = Builder::new_current_thread()
                .thread_name(Kind::Api.name())
                .max_blocking_threads(BLOCKING)
                .enable_all()
                .build()?;
            let inside = runtime.enter();
            let socket = listener.get().try_clone()?;
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UnixListener::from_std(socket)?;
            runtime.spawn(wire::serve(socket, shared.clone()));
            drop(inside);
            Ok(runtime)
        };
        let runtime = serve().map_err(|error| shown(&unready, error))?;
        std::fs::rename(&unready, &ready).map_err(|error| shown(&ready, error))?;
        tracing::info!("virt-handler's door: {}", ready.display());
        Ok(Self {
            shared,
            share: share.to_owned(),
            uid: uid.to_owned(),
            giver: None,
            served: Served::Here {
                runtime,
                given,
                events,
            },
        })
    }

    /// Serves until a VMI comes, or a signal by `signals`, or `limit` is over.
    pub fn wait(&mut self, signals: OwnedFd, limit: Duration) -> io::Result<Came> {
        let Served::Here { runtime, given, .. } = &mut self.served else {
            return Ok(Came::Nobody);
        };
        let came = runtime.block_on(async {
            // SAFETY: the descriptor is owned: it is open, and the same one, as long as this lasts.
            let signals = unsafe { AsyncFd::register(signals) }?;
            Ok::<_, io::Error>(tokio::select! {
                given = given.recv() => Ok(given),
                stop = signals.readable() => stop.map(|_| None).map_err(|_| Came::Stop),
                () = tokio::time::sleep(limit) => Err(Came::Nobody),
            })
        })?;
        Ok(match came {
            Ok(Some((vmi, giver))) => {
                let uid = serde_json::from_slice::<Value>(&vmi).ok();
                let uid =
                    uid.and_then(|vmi| Some(vmi.pointer("/metadata/uid")?.as_str()?.to_owned()));
                self.uid = uid.unwrap_or_default();
                self.giver = Some(giver);
                Came::Vmi(vmi)
            }
            Ok(None) => Came::Stop,
            Err(came) => came,
        })
    }

    /// Tells who gave the VMI that it will not do. Another may come.
    pub fn refuse(&mut self, why: &str) {
        self.answer(Err(why.to_owned()));
    }

    fn answer(&mut self, answer: Result<(), String>) {
        if let Some(giver) = self.giver.take() {
            // A giver that has gone asks again.
            let _ = giver.send(answer);
        }
    }

    /// The VMI's.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// The VM is there: who gave its VMI is told, and a thread of its own serves from now on.
    pub fn serve(
        &mut self,
        running: Arc<Running>,
        domain: Domain,
        agent: Programs,
    ) -> io::Result<()> {
        let given = self.giver.is_some();
        let vm = Arc::new(Vm::new(running, domain, agent));
        *self.shared.stage() = Stage::Has(vm.clone());
        self.answer(Ok(()));
        let here = std::mem::replace(&mut self.served, Served::Nowhere);
        let Served::Here {
            runtime, events, ..
        } = here
        else {
            return Ok(());
        };
        let (end, ended) = oneshot::channel();
        let life = life::Life {
            vm,
            shared: self.shared.clone(),
            events,
            notifier: notify::Notifier::new(self.share.join(NOTIFY), given),
        };
        let thread = sandbox::spawn(Kind::Api, move || {
            runtime.block_on(life.live(ended));
            runtime.shutdown_background();
        })?;
        self.served = Served::Elsewhere { end, thread };
        Ok(())
    }

    /// The VM has ended so, or did not start for that reason: virt-handler is told.
    pub fn close(mut self, end: Result<&Outcome, String>) {
        let outcome = end.as_ref().ok().map(|outcome| (*outcome).clone());
        let waits = self.giver.is_some();
        if let Err(why) = end {
            self.refuse(&why);
        }
        match self.served {
            Served::Elsewhere { end, thread } => {
                // Where the thread has failed nobody hears.
                let _ = end.send(outcome);
                let _ = thread.join();
            }
            Served::Here { runtime, .. } if waits => {
                runtime.block_on(tokio::time::sleep(LAST_WORDS));
            }
            Served::Here { .. } | Served::Nowhere => {}
        }
    }
}
