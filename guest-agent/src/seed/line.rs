//! A seed in one word: `ds=nocloud;KEY=VALUE;...`, of the kernel's command line or of the SMBIOS
//! serial number (cloud-init's NoCloud).

use super::Found;
use crate::yaml::{Node, Value};

/// Reads the word; `None` where it is none of these.
pub fn parse(word: &str) -> Option<Found> {
    let word = word.trim();
    let rest = ["ds=nocloud-net", "ds=nocloud"]
        .into_iter()
        .find_map(|start| word.strip_prefix(start))?;
    if !(rest.is_empty() || rest.starts_with(';')) {
        return None;
    }
    let pairs = rest.split(';').filter_map(|pair| pair.split_once('='));
    let meta_data = pairs.map(|(key, value)| {
        let key = match key {
            "h" => "local-hostname",
            "i" => "instance-id",
            "s" => "seedfrom",
            key => key,
        };
        (key.to_owned(), Node::from(Value::Text(value.to_owned())))
    });
    Some(Found {
        meta_data: meta_data.collect(),
        ..Found::default()
    })
}
