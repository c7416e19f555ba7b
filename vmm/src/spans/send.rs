//! A request to a collector.

use std::time::Duration;

use axum::body::Bytes;
use guest_agent::http;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tokio::net::TcpStream;

use super::asked::Asked;

/// How long a collector may take (OTEL_EXPORTER_OTLP_TIMEOUT's default).
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends it.
pub async fn send(asked: &Asked, request: &ExportTraceServiceRequest) -> Result<(), String> {
    let sent = tokio::time::timeout(PATIENCE, once(asked, request)).await;
    sent.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

async fn once(asked: &Asked, request: &ExportTraceServiceRequest) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    let mut last = format!("no address of {} is known", asked.host);
    let mut stream = None;
    // This may take a nameserver's patience; the others go on meanwhile.
    let addresses = tokio::task::block_in_place(|| http::addresses(&asked.host));
    for address in addresses {
        match TcpStream::connect((address, asked.port)).await {
            Ok(open) => {
                stream = Some(open);
                break;
            }
            Err(error) => last = format!("{address}: {error}"),
        }
    }
    let stream = stream.ok_or(last)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| said(&error))?;
    tokio::spawn(connection);
    let authority = asked.url.authority().map(|host| host.as_str());
    let path = asked.url.path_and_query().map_or("/", |path| path.as_str());
    let mut message = Request::post(path)
        .header(header::HOST, authority.unwrap_or_default())
        .header(header::CONTENT_TYPE, "application/x-protobuf");
    for (name, value) in &asked.headers {
        message = message.header(name, value);
    }
    let body = Full::new(Bytes::from(request.encode_to_vec()));
    let message = message.body(body).map_err(|error| said(&error))?;
    let answer = sender.send_request(message).await;
    let status = answer.map_err(|error| said(&error))?.status();
    match status.is_success() {
        true => Ok(()),
        false => Err(format!("it answered {status}")),
    }
}
