//! The VM itself.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::Deserialize;

use super::Refusal;
use crate::devices::virtio::balloon::{Figures, SizeError};
use crate::running::{Running, Status};

pub async fn status(State(running): State<Arc<Running>>) -> Json<Status> {
    Json(running.status())
}

pub async fn pause(State(running): State<Arc<Running>>) -> Result<Json<Status>, Refusal> {
    let refused = |why: &str| Refusal(StatusCode::CONFLICT, why.to_owned());
    running.pause().map_err(refused)?;
    Ok(Json(running.status()))
}

pub async fn resume(State(running): State<Arc<Running>>) -> Json<Status> {
    running.resume();
    Json(running.status())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    grace_seconds: Option<u32>,
}

pub async fn stop(
    State(running): State<Arc<Running>>,
    Query(stop): Query<Stop>,
) -> (StatusCode, Json<Status>) {
    let seconds = stop.grace_seconds.map(u64::from);
    running.stop(seconds.map(Duration::from_secs));
    (StatusCode::ACCEPTED, Json(running.status()))
}

pub async fn kill(State(running): State<Arc<Running>>) -> (StatusCode, Json<Status>) {
    running.kill();
    (StatusCode::ACCEPTED, Json(running.status()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    target: u64,
}

pub async fn memory(State(running): State<Arc<Running>>) -> Result<Json<Figures>, Refusal> {
    running.balloon().map(Json).ok_or_else(no_balloon)
}

pub async fn set_memory(
    State(running): State<Arc<Running>>,
    Json(Memory { target }): Json<Memory>,
) -> Result<Json<Figures>, Refusal> {
    let balloon = running.balloon.as_ref().ok_or_else(no_balloon)?;
    let refused = |why: SizeError| Refusal(StatusCode::BAD_REQUEST, why.to_string());
    balloon.set_target(target).map_err(refused)?;
    Ok(Json(balloon.figures(false)))
}

fn no_balloon() -> Refusal {
    let why = "the VM has no memory balloon: its manifest has autoattachMemBalloon: false";
    Refusal(StatusCode::CONFLICT, why.to_owned())
}
