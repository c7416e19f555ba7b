//! A snapshot of the VM, which stands still while it is read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use serde::Deserialize;
use tokio::sync::oneshot;
use vm_memory::GuestMemoryMmap;

use super::Refusal;
use crate::machine::still::Still;
use crate::machine::{MachineError, state};
use crate::running::{Running, Source};
use crate::snapshot::stream::{Next, Stream};
use crate::snapshot::{SavedDisk, Snapshot};

/// How long a machine may take to stand still.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often is looked whether a machine that stands still has been ended.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Nobody will let the VM go on.
    #[serde(default)]
    last: bool,
}

/// A machine that stands still until what is in the middle is dropped.
type Taken = (state::State, Sender<()>, GuestMemoryMmap);

pub async fn take(
    State(running): State<Arc<Running>>,
    Query(Asked { last }): Query<Asked>,
) -> Result<Response, Refusal> {
    let refused = |why: String| Refusal(StatusCode::CONFLICT, why);
    let Source { line, layers, kept } = running.source.clone();
    let Some(line) = line else {
        let why = "only a VM that `peapod run` started can be restored";
        return Err(refused(why.to_owned()));
    };
    if let (Some(kept), false) = (kept.first(), last) {
        return Err(refused(format!(
            "the guest would go on writing to the disk `{kept}`, which stays, and the snapshot would \
             not fit it any more; --stop ends the VM with its snapshot"
        )));
    }
    if last && !running.power().is_paused() {
        let why = "the last snapshot of a VM is taken while it is paused";
        return Err(refused(why.to_owned()));
    }
    let (give, given) = oneshot::channel();
    let stand = move |still: &Still<'_>| stand(still, give);
    running.errands.ask(&running.power(), Box::new(stand));
    let late = |_| refused("the VM did not stand still in time".to_owned());
    let gone = |_| refused("the VM has ended".to_owned());
    let taken = tokio::time::timeout(PATIENCE, given).await;
    let taken = taken.map_err(late)?.map_err(gone)?;
    let (machine, held, memory) = taken.map_err(|why| refused(why.to_string()))?;
    let (disks, layers): (Vec<_>, Vec<_>) = layers
        .into_iter()
        .map(|(name, layer)| {
            let (size, written) = (layer.size, layer.written());
            (
                SavedDisk {
                    name,
                    size,
                    written,
                },
                layer,
            )
        })
        .unzip();
    let snapshot = Snapshot {
        software: concat!("peapod ", env!("CARGO_PKG_VERSION")).to_owned(),
        line,
        memory: running.memory,
        disks,
        kept,
        machine,
    };
    let state = serde_json::to_vec(&snapshot);
    let state = state.map_err(|error| refused(error.to_string()))?;
    tracing::info!("a snapshot is taken");
    let body = Body::new(Pieces(Stream::new(state, memory, layers, held)));
    let binary = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((binary, body).into_response())
}

/// Stands still until whoever takes the snapshot is done, or gone.
fn stand(still: &Still<'_>, give: oneshot::Sender<Result<Taken, MachineError>>) {
    let (held, until) = channel();
    let taken = still.save().map(|state| (state, held, still.memory()));
    if give.send(taken).is_ok() {
        wait(still, &until);
    }
}

fn wait(still: &Still<'_>, until: &Receiver<()>) {
    while !still.is_off() && until.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {}
}

/// The stream as a body.
struct Pieces(Stream);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.0.pull() {
            Ok(Next::Piece(piece)) => Poll::Ready(Some(Ok(Frame::data(piece.into())))),
            Ok(Next::End) => Poll::Ready(None),
            Ok(Next::Later) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }
}
