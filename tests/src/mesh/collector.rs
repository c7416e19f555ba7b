//! A collector of spans, as Zipkin's and Jaeger's are.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;

use super::Server;

/// One that keeps all spans; ends with this.
#[derive(Debug)]
pub struct Collector {
    spans: Arc<Mutex<Vec<Value>>>,
    _server: Server,
}

impl Collector {
    /// Starts one at a socket.
    pub fn start(listener: TcpListener) -> Self {
        let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
        let kept = Arc::clone(&spans);
        let keep = async move |Json(more): Json<Vec<Value>>| {
            kept.lock().unwrap().extend(more);
            StatusCode::ACCEPTED
        };
        let routes = Router::new().route("/api/v2/spans", post(keep));
        Self {
            spans,
            _server: Server::start(listener, routes),
        }
    }

    /// The spans of one trace that have come, in Zipkin's JSON.
    pub fn trace(&self, id: &str) -> Vec<Value> {
        let spans = self.spans.lock().unwrap();
        spans
            .iter()
            .filter(|span| span["traceId"] == id)
            .cloned()
            .collect()
    }
}
