//! instance-data.json: what templates and `cloud-init query` know of the instance.

use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{RUN, files};
use crate::os::Os;
use crate::seed::Seed;

/// What stands for what only root may read.
const REDACTED: &str = "redacted for non-root user";

/// Everything that is known.
pub fn of(seed: &Seed, os: &Os) -> Value {
    let uname = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let name = seed.hostname.clone();
    let name = name.unwrap_or_else(|| word(uname.nodename()));
    let short = name.split('.').next().unwrap_or_default();
    let user_data = String::from_utf8_lossy(&seed.user_data);
    let vendor_data = String::from_utf8_lossy(&seed.vendor_data);
    let v1 = json!({
        "availability_zone": null,
        "availability-zone": null,
        "cloud_id": seed.cloud,
        "cloud_name": "unknown",
        "cloud-name": "unknown",
        "distro": os.id,
        "distro_release": os.codename,
        "distro_version": os.version,
        "instance_id": seed.instance_id,
        "instance-id": seed.instance_id,
        "kernel_release": word(uname.release()),
        "local_hostname": short,
        "local-hostname": short,
        "machine": word(uname.machine()),
        "platform": seed.cloud,
        "public_ssh_keys": seed.public_keys(),
        "region": null,
        "subplatform": format!("seed-dir ({})", seed.origin),
        "system_platform": format!("Linux-{}-{}", word(uname.release()), word(uname.machine())),
        "variant": os.id,
    });
    json!({
        "base64_encoded_keys": [],
        "ds": {"_doc": "EXPERIMENTAL: The structure and format of content scoped under the 'ds' key may change in subsequent releases of cloud-init.", "meta_data": seed.meta_data.json()},
        "sensitive_keys": ["ds/user_data", "ds/vendor_data", "userdata", "vendordata"],
        "userdata": user_data,
        "v1": v1,
        "vendordata": vendor_data,
    })
}

/// The variables of a template: those of `v1` also without it, and names with `_` for what a dot or
/// a dash would mean.
pub fn variables(data: &Value) -> Value {
    let mut all = aliased(data);
    if let Some(v1) = data.get("v1").map(aliased)
        && let (Some(v1), Some(all)) = (v1.as_object(), all.as_object_mut())
    {
        for (key, value) in v1 {
            all.insert(key.clone(), value.clone());
        }
    }
    all
}

fn aliased(value: &Value) -> Value {
    let Some(map) = value.as_object() else {
        return value.clone();
    };
    let mut result = Map::new();
    for (key, value) in map {
        let value = aliased(value);
        let alias = key.replace(|c: char| "-.+*/%~<>=|".contains(c), "_");
        if alias != *key {
            result.insert(alias, value.clone());
        }
        result.insert(key.clone(), value);
    }
    Value::Object(result)
}

/// Writes it below /run/cloud-init: for everybody what everybody may read, and all of it for root.
pub fn write(data: &Value) -> io::Result<()> {
    let mut open = data.clone();
    for key in ["userdata", "vendordata"] {
        if let Some(value) = open.get_mut(key) {
            *value = json!(REDACTED);
        }
    }
    let run = Path::new(RUN);
    files::write(
        &run.join("instance-data.json"),
        format!("{open:#}\n").as_bytes(),
        0o644,
    )?;
    let all = format!("{data:#}\n");
    files::write(
        &run.join("instance-data-sensitive.json"),
        all.as_bytes(),
        0o600,
    )?;
    let cloud = data.pointer("/v1/cloud_id").and_then(Value::as_str);
    let id = run.join(format!("cloud-id-{}", cloud.unwrap_or("none")));
    files::write(
        &id,
        format!("{}\n", cloud.unwrap_or("none")).as_bytes(),
        0o644,
    )?;
    match std::os::unix::fs::symlink(&id, run.join("cloud-id")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
