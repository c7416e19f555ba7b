//! What the guest's agent is asked for.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use guest_agent::protocol::{GuestInfo, Reply, Request};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Refusal;
use crate::agent::{PATIENCE, Unanswered, answered};
use crate::running::Running;

/// An answer, for which no thread waits.
async fn ask(running: &Running, request: &Request) -> Result<Reply, Refusal> {
    let (give, given) = oneshot::channel();
    let asked = running.agent.ask_then(request, |reply| {
        // Who is gone needs none.
        let _ = give.send(reply);
    });
    let answer = match asked {
        Ok(()) => match timeout(PATIENCE, given).await {
            Ok(Ok(reply)) => answered(reply),
            Ok(Err(_)) => Err(Unanswered::Gone),
            Err(_) => Err(Unanswered::Late),
        },
        Err(error) => Err(error),
    };
    answer.map_err(|error| Refusal(StatusCode::CONFLICT, error.to_string()))
}

fn odd() -> Refusal {
    Refusal(StatusCode::CONFLICT, Unanswered::Odd.to_string())
}

pub async fn info(State(running): State<Arc<Running>>) -> Result<Json<GuestInfo>, Refusal> {
    match ask(&running, &Request::GuestInfo).await? {
        Reply::GuestInfo(info) => Ok(Json(*info)),
        _ => Err(odd()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freeze {
    seconds: Option<u32>,
}

pub async fn freeze(
    State(running): State<Arc<Running>>,
    Query(Freeze { seconds }): Query<Freeze>,
) -> Result<Json<Value>, Refusal> {
    match ask(&running, &Request::Freeze { seconds }).await? {
        Reply::Frozen(count) => Ok(Json(json!({ "filesystems": count }))),
        _ => Err(odd()),
    }
}

pub async fn thaw(State(running): State<Arc<Running>>) -> Result<Json<Value>, Refusal> {
    match ask(&running, &Request::Thaw).await? {
        Reply::Thawed(count) => Ok(Json(json!({ "filesystems": count }))),
        _ => Err(odd()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Password {
    user: String,
    password: String,
    #[serde(default)]
    hashed: bool,
}

pub async fn set_password(
    State(running): State<Arc<Running>>,
    Json(Password {
        user,
        password,
        hashed,
    }): Json<Password>,
) -> Result<Json<Value>, Refusal> {
    let request = Request::SetPassword {
        user,
        password,
        hashed,
    };
    ask(&running, &request).await.map(|_| Json(json!({})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    user: String,
}

pub async fn keys(
    State(running): State<Arc<Running>>,
    Query(Whose { user }): Query<Whose>,
) -> Result<Json<Value>, Refusal> {
    match ask(&running, &Request::AuthorizedKeys { user }).await? {
        Reply::AuthorizedKeys(keys) => Ok(Json(json!({ "keys": keys }))),
        _ => Err(odd()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    user: String,
    keys: Vec<String>,
}

pub async fn add_keys(
    State(running): State<Arc<Running>>,
    Json(Keys { user, keys }): Json<Keys>,
) -> Result<Json<Value>, Refusal> {
    let request = Request::AddAuthorizedKeys { user, keys };
    ask(&running, &request).await.map(|_| Json(json!({})))
}

pub async fn remove_keys(
    State(running): State<Arc<Running>>,
    Json(Keys { user, keys }): Json<Keys>,
) -> Result<Json<Value>, Refusal> {
    let request = Request::RemoveAuthorizedKeys { user, keys };
    ask(&running, &request).await.map(|_| Json(json!({})))
}
