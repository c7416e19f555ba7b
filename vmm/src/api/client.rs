//! Asks a VM's API, for the command line: one connection a call.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use crate::agent;

/// The protocol to which a console's connection is switched: bytes both ways.
pub const CONSOLE: &str = "peapod-console";
/// How long an answer may take, and one for which the guest's agent is asked.
const PATIENCE: Duration = Duration::from_secs(10);
const WITH_AGENT: Duration = agent::PATIENCE.saturating_add(PATIENCE);
/// The longest answer that is read whole, in bytes: as many flows as are listed.
const MAX_ANSWER: usize = 8 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error("{path}: the VM does not answer: {cause}", path = .0.display(), cause = .1)]
    Connect(PathBuf, io::Error),
    /// It did not answer in time.
    #[error("{path}: the VM did not answer within {patience} s", path = .0.display(), patience = .1.as_secs())]
    Late(PathBuf, Duration),
    /// It spoke otherwise than it should.
    #[error("{path}: {cause}", path = .0.display(), cause = .1)]
    Http(PathBuf, String),
    /// It refused.
    #[error("{1}")]
    Refused(StatusCode, String),
    /// What it said could not be passed on.
    #[error("cannot write: {0}")]
    Output(io::Error),
}

/// A VM's API.
pub struct Client {
    socket: PathBuf,
    patience: Duration,
    runtime: Runtime,
}

impl Client {
    /// The API at that socket; nobody is asked yet.
    pub fn new(socket: &Path) -> io::Result<Self> {
        let mut builder = Builder::new_current_thread();
        Ok(Self {
            socket: socket.to_owned(),
            patience: PATIENCE,
            runtime: builder.enable_io().enable_time().build()?,
        })
    }

    /// The same for calls that have to wait for the guest's agent.
    pub fn patient(self) -> Self {
        let patience = WITH_AGENT;
        Self { patience, ..self }
    }

    /// Asks for JSON.
    pub fn get(&self, path: &str) -> Result<Value, Error> {
        self.json(Method::GET, path, None)
    }

    /// Asks for JSON, with a body of JSON where one is given.
    pub fn json(&self, method: Method, path: &str, body: Option<Value>) -> Result<Value, Error> {
        let bytes = self.whole(method, path, body)?;
        serde_json::from_slice(&bytes).map_err(|error| self.http(error))
    }

    /// Asks for text.
    pub fn text(&self, path: &str) -> Result<String, Error> {
        let bytes = self.whole(Method::GET, path, None)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn whole(&self, method: Method, path: &str, body: Option<Value>) -> Result<Bytes, Error> {
        let answer = async {
            let response = self.send(request(method, path, body, None)).await?;
            let status = response.status();
            let bytes = Limited::new(response, MAX_ANSWER).collect().await;
            let bytes = bytes.map_err(|error| self.http(error))?.to_bytes();
            refuse(status, &bytes)?;
            Ok(bytes)
        };
        self.runtime
            .block_on(async { tokio::time::timeout(self.patience, answer).await })
            .unwrap_or_else(|_| Err(Error::Late(self.socket.clone(), self.patience)))
    }

    /// Copies an answer to `out` as it comes, until the VM or whoever reads has ended.
    pub fn copy(&self, method: Method, path: &str, out: &mut impl Write) -> Result<(), Error> {
        self.runtime.block_on(async {
            let mut response = self.send(request(method, path, None, None)).await?;
            let status = response.status();
            if !status.is_success() {
                let bytes = Limited::new(response, MAX_ANSWER).collect().await;
                let bytes = bytes.map_err(|error| self.http(error))?.to_bytes();
                return refuse(status, &bytes);
            }
            while let Some(frame) = response.frame().await {
                // The VM has ended.
                let Ok(frame) = frame else { break };
                let bytes = frame.into_data().unwrap_or_default();
                let written = out.write_all(&bytes).and_then(|()| out.flush());
                written.map_err(Error::Output)?;
            }
            Ok(())
        })
    }

    /// Joins standard input and output to the console, until the VM ends, or `leave` is typed.
    pub fn console(&self, leave: u8) -> Result<(), Error> {
        self.runtime.block_on(async {
            let request = request(Method::GET, "/v1/vm/console", None, Some(CONSOLE));
            let response = self.send(request).await?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                let status = response.status();
                return Err(Error::Refused(status, status.to_string()));
            }
            let stream = hyper::upgrade::on(response).await;
            let stream = TokioIo::new(stream.map_err(|error| self.http(error))?);
            let (mut screen, mut typed) = tokio::io::split(stream);
            let typing = tokio::spawn(async move {
                let (mut input, mut buffer) = (tokio::io::stdin(), [0; 256]);
                while let Ok(count @ 1..) = input.read(&mut buffer).await {
                    let bytes = buffer.get(..count).unwrap_or_default();
                    let end = bytes.iter().position(|byte| *byte == leave);
                    let before = bytes.get(..end.unwrap_or(count)).unwrap_or_default();
                    if typed.write_all(before).await.is_err() || end.is_some() {
                        // Whoever listens hears it as the end.
                        let _ = typed.shutdown().await;
                        return;
                    }
                }
                // Nobody types any more; what the guest writes is still wanted.
                std::future::pending::<()>().await;
            });
            let (mut output, mut buffer) = (tokio::io::stdout(), [0; 4096]);
            while let Ok(count @ 1..) = screen.read(&mut buffer).await {
                let bytes = buffer.get(..count).unwrap_or_default();
                let written = output.write_all(bytes).await;
                written.map_err(Error::Output)?;
                output.flush().await.map_err(Error::Output)?;
            }
            typing.abort();
            Ok(())
        })
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| Error::Connect(self.socket.clone(), error))?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.http(error))?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await;
        response.map_err(|error| self.http(error))
    }

    fn http(&self, error: impl ToString) -> Error {
        Error::Http(self.socket.clone(), error.to_string())
    }

    /// Lets go of a standard input that is still waited for.
    pub fn leave(self) {
        self.runtime.shutdown_background();
    }
}

fn request(
    method: Method,
    path: &str,
    body: Option<Value>,
    upgrade: Option<&'static str>,
) -> Request<Full<Bytes>> {
    let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
    let mut request = Request::new(Full::new(bytes));
    *request.method_mut() = method;
    // The paths are ours, with what is a user's in them escaped.
    *request.uri_mut() = path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    let value = header::HeaderValue::from_static;
    headers.insert(header::HOST, value("peapod"));
    headers.insert(header::CONTENT_TYPE, value("application/json"));
    if let Some(protocol) = upgrade {
        headers.insert(header::UPGRADE, value(protocol));
        headers.insert(header::CONNECTION, value("upgrade"));
    }
    request
}

/// An error where the answer is one, in the VM's words.
fn refuse(status: StatusCode, body: &Bytes) -> Result<(), Error> {
    if status.is_success() {
        return Ok(());
    }
    let why = serde_json::from_slice::<Value>(body).ok();
    let why = why.and_then(|value| value.get("error")?.as_str().map(str::to_owned));
    let text = || String::from_utf8_lossy(body).trim().to_owned();
    Err(Error::Refused(status, why.unwrap_or_else(text)))
}
