//! The boot as spans, for whoever collects traces: OTLP over HTTP, in protobuf, to where
//! OpenTelemetry's own environment variables say (OpenTelemetry specification 1.49, "Environment
//! Variable Specification" and "OpenTelemetry Protocol Exporter"). Nothing is sent where none is set.

mod asked;
mod boot;
mod send;

pub use asked::{Asked, Error};
pub use boot::Times;

use std::sync::Arc;

use crate::running::Running;

/// Sends the spans of a boot once it is over, and gives up on a collector that cannot be had.
pub async fn export(asked: Asked, running: Arc<Running>) {
    running.until_the_agent_is_ready().await;
    let request = boot::request(&asked, &running);
    match send::send(&asked, &request).await {
        Ok(()) => tracing::debug!("the boot's spans are at {}", asked.url),
        Err(why) => tracing::warn!("the boot's spans did not reach {}: {why}", asked.url),
    }
}
