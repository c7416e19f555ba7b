//! The serial console: what it has shown, and a terminal on it.

use std::convert::Infallible;
use std::fs::File;
use std::future::poll_fn;
use std::io::{self, Seek, SeekFrom, Write};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;

use super::Refusal;
use super::client::CONSOLE;
use crate::console::{Console, Reader};
use crate::running::Running;

/// How long what the guest has no room for is kept before it is offered again.
const PAUSE: Duration = Duration::from_millis(20);
/// What the log on the disk may grow to before it is begun anew.
const LOG: usize = 2 << 20;
/// What comes within so long is written to it at once.
const TOGETHER: Duration = Duration::from_millis(20);
/// Between two pieces of it, for whoever follows it to read the end of one that is begun anew.
const READ: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    #[serde(default)]
    follow: bool,
}

/// What is kept of the guest's output; and, followed, what comes.
pub async fn log(State(running): State<Arc<Running>>, Query(log): Query<Log>) -> Response {
    let console = &running.console;
    let body = if log.follow {
        Body::new(Output(console.reader(false)))
    } else {
        Body::from(console.kept())
    };
    let text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (text, body).into_response()
}

/// The guest's output without an end.
struct Output(Reader);

impl HttpBody for Output {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = self.0.poll(context);
        bytes.map(|bytes| Some(Ok(Frame::data(bytes.into()))))
    }
}

/// Makes the connection a terminal: what comes is typed, what the guest writes from now on is sent.
pub async fn console(
    State(running): State<Arc<Running>>,
    headers: HeaderMap,
    mut request: Request,
) -> Result<Response, Refusal> {
    let wanted = headers.get(header::UPGRADE);
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let Some(upgrade) = upgrade.filter(|_| wanted.is_some_and(|wanted| wanted == CONSOLE)) else {
        let why = format!("ask for `Upgrade: {CONSOLE}`");
        return Err(Refusal(StatusCode::UPGRADE_REQUIRED, why));
    };
    let console = running.console.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => terminal(TokioIo::new(stream), console).await,
            Err(error) => tracing::debug!("a console's connection: {error}"),
        }
    });
    let headers = [(header::UPGRADE, CONSOLE), (header::CONNECTION, "upgrade")];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

/// The guest's output as a file, of which its last MiB at least is kept.
#[derive(Clone)]
pub struct LogFile(Arc<Mutex<Kept>>);

struct Kept {
    reader: Reader,
    file: File,
    len: usize,
}

impl LogFile {
    /// All that `console` keeps and gets from now on goes to `file`, which is empty.
    pub fn new(console: &Console, file: File) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            reader: console.reader(false),
            file,
            len: 0,
        })))
    }

    /// Writes what comes.
    pub async fn follow(self) {
        loop {
            match poll_fn(|context| self.write(context)).await {
                Ok(true) => tokio::time::sleep(READ).await,
                Ok(false) => tokio::time::sleep(TOGETHER).await,
                // The console itself is not lost.
                Err(error) => {
                    tracing::warn!("the console's log is not written any more: {error}");
                    return;
                }
            }
        }
    }

    /// Writes what there is yet.
    pub fn finish(&self) {
        let _ = self.write(&mut Context::from_waker(Waker::noop()));
    }

    /// Writes what has come, or is ready when something does; whether the file is full now.
    fn write(&self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.reader.poll(context).map(|bytes| kept.append(&bytes))
    }
}

impl Kept {
    fn append(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.len >= LOG {
            self.file.set_len(0)?;
            self.file.seek(SeekFrom::Start(0))?;
            self.len = 0;
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len();
        Ok(self.len >= LOG)
    }
}

/// Makes each connection a terminal, one after another, as QEMU's socket is.
pub async fn serve(listener: UnixListener, console: Console) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => terminal(stream, console.clone()).await,
            Err(error) => {
                tracing::debug!("the console's socket: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn terminal<S>(stream: S, console: Console)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (typed, mut screen) = tokio::io::split(stream);
    let mut reader = console.reader(true);
    let output = tokio::spawn(async move {
        loop {
            let bytes = poll_fn(|context| reader.poll(context)).await;
            if screen.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    type_all(typed, &console).await;
    output.abort();
}

/// Types what comes, as fast as the guest takes it, until nobody is there.
async fn type_all(mut typed: impl AsyncRead + Unpin, console: &Console) {
    let mut buffer = [0; 256];
    while let Ok(count @ 1..) = typed.read(&mut buffer).await {
        let mut rest = buffer.get(..count).unwrap_or_default();
        loop {
            let taken = console.type_in(rest);
            rest = rest.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_all_that_was_written_and_is_begun_anew_before_it_grows_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let console = Console::default();
        let mut screen = console.screen(crate::console::Port::Serial, io::sink());
        screen.write_all(b"boot\n").unwrap();
        let log = LogFile::new(&console, File::create(&path).unwrap());
        log.finish();
        assert_eq!(std::fs::read(&path).unwrap(), b"boot\n");
        let mut context = Context::from_waker(Waker::noop());
        let mut write = |size| {
            screen.write_all(&vec![b'x'; size]).unwrap();
            match log.write(&mut context) {
                Poll::Ready(full) => full.unwrap(),
                Poll::Pending => panic!("nothing came"),
            }
        };
        assert!(!write(LOG / 2));
        assert!(write(LOG / 2));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LOG as u64 + 5);
        assert!(!write(7));
        assert_eq!(std::fs::read(&path).unwrap(), b"xxxxxxx");
    }
}
