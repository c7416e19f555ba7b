//! Whether the VM lives, and whether its guest serves: what a kubelet's probes ask.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;

use crate::running::Running;

/// The process is there and its VM has not ended, or nobody would answer.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The guest is set up, and something in it listens behind every forward.
pub async fn readyz(State(running): State<Arc<Running>>) -> (StatusCode, String) {
    let reasons = running.unready();
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
}
