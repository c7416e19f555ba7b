//! `phone_home`

use std::fs;
use std::time::Duration;

use super::hostname;
use crate::http;
use crate::os::CloudInit;
use crate::userdata::context::Context;
use crate::yaml::Node;

const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(3);
const KEYS: [&str; 7] = [
    "pub_key_dsa",
    "pub_key_rsa",
    "pub_key_ecdsa",
    "pub_key_ed25519",
    "instance_id",
    "hostname",
    "fqdn",
];

/// Tells an address who this is.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(node) = context.get("phone_home") else {
        return Ok(());
    };
    let word = |key: &str| node.get(key).and_then(Node::scalar);
    let address = word("url").ok_or_else(|| node.wrong("phone_home", "it has no url"))?;
    let tries = match word("tries") {
        Some(text) => text
            .parse()
            .map_err(|_| node.wrong("phone_home.tries", format!("{text:?} is no number")))?,
        None => TRIES,
    };
    let id = &context.seed.instance_id;
    let address = address
        .replace("${INSTANCE_ID}", id)
        .replace("$INSTANCE_ID", id);
    let wanted = match node.get("post") {
        Some(list) if list.list().is_some() => list.scalars(),
        _ => {
            let mut all = KEYS.map(str::to_owned).to_vec();
            if context.os.cloud_init >= CloudInit::V25 {
                // Of a kind that OpenSSH knows no more.
                all.retain(|key| key != "pub_key_dsa");
            }
            all
        }
    };
    let (host, full) = hostname::by_seed(context);
    let value = |key: &str| match key {
        "instance_id" => Some(id.clone()),
        "hostname" => Some(host.clone()),
        "fqdn" => Some(full.clone()),
        key => {
            let kind = key
                .strip_prefix("pub_key_")
                .filter(|_| KEYS.contains(&key))?;
            fs::read_to_string(format!("/etc/ssh/ssh_host_{kind}_key.pub")).ok()
        }
    };
    let fields = wanted.iter().map(|key| {
        let value = value(key).unwrap_or_else(|| "N/A".to_owned());
        (&**key, value)
    });
    let fields: Vec<(&str, String)> = fields.collect();
    http::post(&address, &fields, tries, PAUSE)
        .map_err(|why| node.wrong("phone_home", format!("{address}: {why}")))
}
