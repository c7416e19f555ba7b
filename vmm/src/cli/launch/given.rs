//! A VMI that virt-handler gives.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value};

use super::{Args, STANDALONE, run};
use crate::api::door::{Came, Door};
use crate::kubevirt::SECRETS;
use crate::launch;
use crate::plan::Plan;
use run::Error;

/// What it is called in problems.
const NAME: &str = "VMI";

/// Waits for one that will do. Of each that will not, virt-handler is told why: it is in the VMI's
/// conditions then.
pub fn wait(args: &Args, mut door: Door) -> Result<Option<(Plan, Option<Door>)>, Error> {
    launch::block_signals().map_err(Error::Signals)?;
    let end = Instant::now() + args.qemu_timeout;
    loop {
        let signals = launch::signals().map_err(Error::Signals)?;
        let left = end.saturating_duration_since(Instant::now());
        match door.wait(signals, left).map_err(Error::Signals)? {
            Came::Stop => return Ok(None),
            Came::Nobody => {
                let why = format!(
                    "virt-handler gave none in {} s",
                    args.qemu_timeout.as_secs()
                );
                return Err(Error::NoVmi(STANDALONE, why));
            }
            Came::Vmi(json) => {
                let machine = run::parse_manifest(NAME, &whole(json));
                let plan = machine.and_then(|vm| super::plan(args, NAME.to_owned(), vm));
                match plan {
                    Ok(plan) => return Ok(Some((plan, Some(door)))),
                    Err(error) => {
                        crate::cli::complain(&error);
                        door.refuse(&error.to_string());
                    }
                }
            }
        }
    }
}

/// Go's clients leave out what an object is, where its type says it.
fn whole(json: Vec<u8>) -> Vec<u8> {
    let Ok(Value::Object(mut vmi)) = serde_json::from_slice(&json) else {
        return json;
    };
    let mut default = |name: &str, value: &str| {
        let there = vmi.get(name).and_then(Value::as_str);
        if there.is_none_or(str::is_empty) {
            vmi.insert(name.to_owned(), value.into());
        }
    };
    default("kind", "VirtualMachineInstance");
    default("apiVersion", "kubevirt.io/v1");
    let volumes = vmi.get_mut("spec").and_then(|spec| spec.get_mut("volumes"));
    let volumes = volumes.and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        let name = volume["name"].as_str().unwrap_or_default().to_owned();
        for form in ["cloudInitNoCloud", "cloudInitConfigDrive"] {
            if let Some(Value::Object(seed)) = volume.get_mut(form) {
                take_secrets(seed, Path::new(SECRETS), &name);
            }
        }
    }
    Value::Object(vmi).to_string().into_bytes()
}

/// Puts in what Kubernetes has mounted of the Secrets that a seed names.
fn take_secrets(seed: &mut Map<String, Value>, below: &Path, volume: &str) {
    for (reference, names, data) in [
        ("secretRef", ["userdata", "userData"], "userDataBase64"),
        (
            "networkDataSecretRef",
            ["networkdata", "networkData"],
            "networkDataBase64",
        ),
    ] {
        let mut files = names.iter().map(|name| below.join(volume).join(name));
        let read = files.find_map(|file| std::fs::read(file).ok());
        if let Some(bytes) = read.filter(|_| seed.contains_key(reference)) {
            seed.remove(reference);
            seed.insert(data.to_owned(), BASE64_STANDARD.encode(bytes).into());
        }
    }
}

/// A duration as Go writes them: numbers with units.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a duration is written as 4m, 240s or 1m30s".to_owned();
    let (mut all, mut rest) = (Duration::ZERO, text);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'));
        let (number, units) = rest.split_at(number.ok_or_else(wrong)?);
        let unit = units.find(|c: char| c.is_ascii_digit());
        let (unit, next) = units.split_at(unit.unwrap_or(units.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        all = all.saturating_add(part);
        rest = next;
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, seconds) in [
            ("5m", 300.0),
            ("244s", 244.0),
            ("1m30s", 90.0),
            ("1.5s", 1.5),
        ] {
            assert_eq!(duration(text).unwrap().as_secs_f64(), seconds, "{text}");
        }
        for text in ["", "5", "m", "5d", "1.2.3s", "-1s", "1e9h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mounted_secret_is_put_where_it_is_named() {
        let below = tempfile::tempdir().unwrap();
        std::fs::create_dir(below.path().join("seed")).unwrap();
        std::fs::write(below.path().join("seed/userData"), "#!/bin/sh\n").unwrap();
        let mut seed = Map::new();
        take_secrets(&mut seed, below.path(), "seed");
        assert!(seed.is_empty());
        for reference in ["secretRef", "networkDataSecretRef"] {
            seed.insert(reference.to_owned(), serde_json::json!({"name": "s"}));
        }
        take_secrets(&mut seed, below.path(), "seed");
        assert_eq!(
            seed["userDataBase64"],
            BASE64_STANDARD.encode("#!/bin/sh\n")
        );
        assert!(!seed.contains_key("secretRef") && seed.contains_key("networkDataSecretRef"));
    }

    #[test]
    fn a_vmi_without_its_kind_gets_it() {
        let read: Value = serde_json::from_slice(&whole(b"{\"kind\":\"\"}".to_vec())).unwrap();
        assert_eq!(read["kind"], "VirtualMachineInstance");
        assert_eq!(read["apiVersion"], "kubevirt.io/v1");
        assert_eq!(whole(b"odd".to_vec()), b"odd");
    }
}
