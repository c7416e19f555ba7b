//! What a device holds, for a snapshot: plain data, as JSON.

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What was saved is not of such a device, or the device cannot go on from there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfit(String);

impl Unfit {
    /// For that reason.
    pub fn new(why: impl Display) -> Self {
        Self(why.to_string())
    }

    /// The same of a part that is called so.
    pub fn of(self, part: impl Display) -> Self {
        Self(format!("{part}: {}", self.0))
    }
}

/// Plain data of ours: numbers, texts, and lists of these.
pub fn write(held: &impl Serialize) -> Value {
    // Fails only for a map whose keys are no texts, and for what refuses to be serialised.
    serde_json::to_value(held).unwrap_or_default()
}

/// Reads what [`write`] made of the same type.
pub fn read<T: DeserializeOwned>(saved: &Value) -> Result<T, Unfit> {
    T::deserialize(saved).map_err(Unfit::new)
}
