//! A folder with a seed's files in it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Found, MAX_FILE};
use crate::yaml::{self, Map, Value};

/// Whether it has what makes a seed.
pub fn is_seed(folder: &Path) -> bool {
    folder.join("meta-data").exists() && folder.join("user-data").exists()
}

/// Reads it: meta-data and user-data have to be there.
pub fn read(folder: &Path) -> Result<Found, String> {
    Ok(Found {
        meta_data: meta_data(&file(&folder.join("meta-data"))?)?,
        user_data: Some(file(&folder.join("user-data"))?),
        vendor_data: optional(&folder.join("vendor-data"))?,
        network_config: optional(&folder.join("network-config"))?,
        origins: Vec::new(),
    })
}

/// What meta-data say: YAML, so JSON too; nothing is a mapping of nothing.
pub fn meta_data(bytes: &[u8]) -> Result<Map, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("meta-data: {error}"))?;
    let node = yaml::read("meta-data", text)?;
    match node.value {
        Value::Map(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(node.wrong("", "not a mapping")),
    }
}

/// A file that may be missing.
pub fn optional(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match path.exists() {
        true => file(path).map(Some),
        false => Ok(None),
    }
}

/// A file's bytes; one that is too long is refused.
pub fn file(path: &Path) -> Result<Vec<u8>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let failed = |error: io::Error| format!("{name}: {error}");
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(format!("{name}: {size} bytes; it may have {MAX_FILE}"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}
