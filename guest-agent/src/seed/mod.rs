//! Where the guest's set-up comes from: the sources of cloud-init's DataSourceNoCloud, in its order,
//! each adding to the one before; where none of them is, a config drive.

mod config_drive;
mod disk;
mod folder;
pub mod label;
mod line;
#[cfg(test)]
mod tests;
mod vsock;

pub use disk::file_systems;

use std::fs;
use std::path::Path;

use crate::http;
use crate::yaml::{Map, Node, Value};

/// What user-data may have: a Kubernetes Secret holds no more.
pub const MAX_FILE: u64 = 1 << 20;
/// cloud-init's, where the meta-data have none.
const DEFAULT_INSTANCE: &str = "nocloud";
const FOLDERS: [&str; 2] = [
    "/var/lib/cloud/seed/nocloud",
    "/var/lib/cloud/seed/nocloud-net",
];
const DMI_SERIAL: &str = "/sys/class/dmi/id/product_serial";
const COMMAND_LINE: &str = "/proc/cmdline";

/// A seed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seed {
    /// Which instance this is; what is done once is done once for each.
    pub instance_id: String,
    /// The guest's name, where the seed has one.
    pub hostname: Option<String>,
    /// Everything that the meta-data say.
    pub meta_data: Node,
    /// What its user wants done.
    pub user_data: Vec<u8>,
    /// What the cloud's owner wants done, where the user does not say otherwise.
    pub vendor_data: Vec<u8>,
    /// The network's configuration, version 1 or 2.
    pub network_config: Option<Vec<u8>>,
    /// The cloud's name, as `cloud-id` tells it.
    pub cloud: &'static str,
    /// Where it was found, for a person.
    pub origin: String,
}

impl Seed {
    /// The keys that may log in, by the meta-data.
    pub fn public_keys(&self) -> Vec<String> {
        let keys = self
            .meta_data
            .get("public-keys")
            .or_else(|| self.meta_data.get("public_keys"));
        match keys.map(|keys| &keys.value) {
            Some(Value::Text(text)) => text.lines().map(str::to_owned).collect(),
            Some(Value::List(list)) => list.iter().filter_map(Node::scalar).collect(),
            Some(Value::Map(map)) => map
                .iter()
                .flat_map(|(_, keys)| match keys.get("openssh-key") {
                    Some(key) => key.scalars(),
                    None => keys.scalars(),
                })
                .filter(|key| !key.is_empty())
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// What the sources have said so far.
#[derive(Debug, Default)]
struct Found {
    meta_data: Map,
    user_data: Option<Vec<u8>>,
    vendor_data: Option<Vec<u8>>,
    network_config: Option<Vec<u8>>,
    origins: Vec<String>,
}

impl Found {
    /// Adds a later source: of the meta-data the first word counts, of the rest the last.
    fn add(&mut self, origin: &str, later: Self) {
        for (key, node) in later.meta_data {
            if !self.meta_data.iter().any(|(known, _)| *known == key) {
                self.meta_data.push((key, node));
            }
        }
        for (old, new) in [
            (&mut self.user_data, later.user_data),
            (&mut self.vendor_data, later.vendor_data),
            (&mut self.network_config, later.network_config),
        ] {
            if new.is_some() {
                *old = new;
            }
        }
        self.origins.push(origin.to_owned());
    }

    fn value(&self, key: &str) -> Option<String> {
        let found = self.meta_data.iter().find(|(name, _)| name == key);
        found?.1.scalar().filter(|text| !text.is_empty())
    }
}

/// The seed of this guest, if it has one. `config` is the disk's own configuration. An error names
/// the source and the file.
pub fn find(config: &Node) -> Result<Option<Seed>, String> {
    let mut found = Found::default();
    let serial = fs::read_to_string(DMI_SERIAL).unwrap_or_default();
    if let Some(words) = line::parse(&serial) {
        found.add("dmi", words);
    }
    let command_line = fs::read_to_string(COMMAND_LINE).unwrap_or_default();
    if let Some(words) = command_line.split_whitespace().find_map(line::parse) {
        found.add("cmdline", words);
    }
    for folder in FOLDERS {
        let folder = Path::new(folder);
        if folder::is_seed(folder) {
            found.add(&folder.display().to_string(), folder::read(folder)?);
            break;
        }
    }
    let own = config.at(&["datasource", "NoCloud"]);
    if let Some(from) = own
        .and_then(|own| own.get("seedfrom"))
        .and_then(Node::scalar)
    {
        found.add("ds_config_seedfrom", seed_from(&from)?);
    }
    if let Some(own) = own
        && let (Some(meta), Some(user)) = (own.get("meta-data"), own.get("user-data"))
    {
        let inline = Found {
            meta_data: meta.map().cloned().unwrap_or_default(),
            user_data: user.scalar().map(String::into_bytes),
            ..Found::default()
        };
        found.add("ds_config", inline);
    }
    let label = own
        .and_then(|own| own.get("fs_label"))
        .and_then(Node::scalar)
        .unwrap_or_else(|| "cidata".to_owned());
    let no_disk =
        own.is_some_and(|own| own.entry("fs_label").is_some() && own.get("fs_label").is_none());
    if !no_disk {
        let labels = [label.to_uppercase(), label.to_lowercase(), label];
        if let Some((device, seed)) = disk::find(&labels, folder::read)? {
            found.add(&device, seed);
        }
    }
    if found.origins.is_empty() {
        return config_drive();
    }
    if let Some(from) = found.value("seedfrom") {
        found.add(&from, seed_from(&from)?);
    }
    Ok(Some(seed(found, "nocloud")))
}

fn config_drive() -> Result<Option<Seed>, String> {
    let labels = ["config-2", "CONFIG-2"].map(str::to_owned);
    let found = disk::find(&labels, config_drive::read)?;
    Ok(found.map(|(device, drive)| {
        let mut found = Found::default();
        found.add(&device, drive);
        seed(found, "configdrive")
    }))
}

fn seed(found: Found, cloud: &'static str) -> Seed {
    Seed {
        instance_id: found
            .value("instance-id")
            .unwrap_or_else(|| DEFAULT_INSTANCE.to_owned()),
        hostname: found.value("local-hostname"),
        user_data: found.user_data.unwrap_or_default(),
        vendor_data: found.vendor_data.unwrap_or_default(),
        network_config: found.network_config,
        cloud,
        origin: found.origins.join(","),
        meta_data: Value::Map(found.meta_data).into(),
    }
}

/// The seed at an address or in a folder; the files' names are put behind it.
fn seed_from(from: &str) -> Result<Found, String> {
    let path = from.strip_prefix("file://").unwrap_or(from);
    if path.starts_with('/') {
        return folder::read(Path::new(path)).map_err(|why| format!("seedfrom {from}: {why}"));
    }
    let address = expand_dmi(from);
    let get = |name: &str| {
        let got = match &*address {
            vsock::ADDRESS => vsock::get(name),
            _ => http::get(&format!("{address}{name}"), MAX_FILE),
        };
        got.map_err(|why| format!("seedfrom {address}{name}: {why}"))
    };
    let optional = |name: &str| match get(name) {
        Ok(bytes) => Ok(Some(bytes)),
        // A server that has the two others says by any status that it lacks this one.
        Err(why) if why.contains(http::STATUS) || why.contains(vsock::REFUSED) => Ok(None),
        Err(why) => Err(why),
    };
    Ok(Found {
        meta_data: folder::meta_data(&get("meta-data")?)?,
        user_data: Some(get("user-data")?),
        vendor_data: optional("vendor-data")?,
        network_config: optional("network-config")?,
        origins: Vec::new(),
    })
}

/// `__dmi.KEY__` in an address is what the machine's tables say of KEY (cloud-init's NoCloud).
fn expand_dmi(address: &str) -> String {
    const KEYS: [(&str, &str); 15] = [
        ("baseboard-asset-tag", "board_asset_tag"),
        ("baseboard-manufacturer", "board_vendor"),
        ("baseboard-product-name", "board_name"),
        ("baseboard-serial-number", "board_serial"),
        ("baseboard-version", "board_version"),
        ("bios-release-date", "bios_date"),
        ("bios-vendor", "bios_vendor"),
        ("bios-version", "bios_version"),
        ("chassis-asset-tag", "chassis_asset_tag"),
        ("chassis-manufacturer", "chassis_vendor"),
        ("chassis-serial-number", "chassis_serial"),
        ("chassis-version", "chassis_version"),
        ("system-manufacturer", "sys_vendor"),
        ("system-product-name", "product_name"),
        ("system-serial-number", "product_serial"),
    ];
    let mut address = address.to_owned();
    for (key, file) in KEYS {
        let mark = format!("__dmi.{key}__");
        if address.contains(&mark) {
            let value = fs::read_to_string(format!("/sys/class/dmi/id/{file}"));
            address = address.replace(&mark, value.unwrap_or_default().trim());
        }
    }
    address
}
