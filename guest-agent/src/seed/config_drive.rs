//! OpenStack's config drive (docs.openstack.org/nova, "Metadata service" and "Config drives").

use std::path::Path;

use super::Found;
use super::folder::{file, optional};
use crate::yaml::{self, Map, Node, Value};

/// Reads a drive that is mounted on `folder`.
pub fn read(folder: &Path) -> Result<Found, String> {
    let folder = folder.join("openstack/latest");
    let text = file(&folder.join("meta_data.json"))?;
    let text = String::from_utf8_lossy(&text);
    // JSON is YAML, and an error of this reader says the line.
    let meta = yaml::read("meta_data.json", &text)?;
    let mut meta_data = meta.map().cloned().unwrap_or_default();
    for (theirs, ours) in [
        ("uuid", "instance-id"),
        ("hostname", "local-hostname"),
        ("public_keys", "public-keys"),
    ] {
        if let Some(value) = meta.get(theirs) {
            meta_data.push((ours.to_owned(), value.clone()));
        }
    }
    Ok(Found {
        meta_data,
        user_data: optional(&folder.join("user_data"))?,
        vendor_data: vendor_data(&folder)?,
        network_config: network(&folder)?,
        origins: Vec::new(),
    })
}

/// vendor_data.json is text, or has it under `cloud-init`.
fn vendor_data(folder: &Path) -> Result<Option<Vec<u8>>, String> {
    let Some(text) = optional(&folder.join("vendor_data.json"))? else {
        return Ok(None);
    };
    let node = yaml::read("vendor_data.json", &String::from_utf8_lossy(&text))?;
    let text = node
        .scalar()
        .or_else(|| node.get("cloud-init").and_then(Node::scalar));
    Ok(text.map(String::into_bytes))
}

/// network_data.json as a configuration of version 1.
fn network(folder: &Path) -> Result<Option<Vec<u8>>, String> {
    let Some(text) = optional(&folder.join("network_data.json"))? else {
        return Ok(None);
    };
    let data = yaml::read("network_data.json", &String::from_utf8_lossy(&text))?;
    let list = |key: &str| data.get(key).and_then(Node::list).unwrap_or_default();
    let word = |node: &Node, key: &str| node.get(key).and_then(Node::scalar);
    let mut config: Vec<Node> = Vec::new();
    for link in list("links") {
        let id = word(link, "id");
        let subnets = list("networks")
            .iter()
            .filter(|net| word(net, "link") == id);
        let subnets: Vec<Node> = subnets.map(subnet).collect();
        let mut entry = Map::new();
        entry.push(("type".to_owned(), Node::from("physical")));
        let name = word(link, "name").or(id).unwrap_or_default();
        entry.push(("name".to_owned(), Value::Text(name).into()));
        for (theirs, ours) in [("ethernet_mac_address", "mac_address"), ("mtu", "mtu")] {
            if let Some(value) = link.get(theirs) {
                entry.push((ours.to_owned(), value.clone()));
            }
        }
        entry.push(("subnets".to_owned(), Value::List(subnets).into()));
        config.push(Value::Map(entry).into());
    }
    for service in list("services") {
        if let Some(address) = service.get("address") {
            let entry = vec![
                ("type".to_owned(), Node::from("nameserver")),
                ("address".to_owned(), address.clone()),
            ];
            config.push(Value::Map(entry).into());
        }
    }
    let mut network = Node::empty();
    network.set("version", Value::Int(1).into());
    network.set("config", Value::List(config).into());
    Ok(Some(yaml::write(&network).into_bytes()))
}

fn subnet(net: &Node) -> Node {
    let mut subnet = Node::empty();
    let kind = net.get("type").and_then(Node::scalar).unwrap_or_default();
    let kind = match &*kind {
        "ipv4_dhcp" => "dhcp4",
        "ipv6_dhcp" => "dhcp6",
        "ipv6" => "static6",
        _ => "static",
    };
    subnet.set("type", Node::from(kind));
    for (theirs, ours) in [("ip_address", "address"), ("netmask", "netmask")] {
        if let Some(value) = net.get(theirs) {
            subnet.set(ours, value.clone());
        }
    }
    let routes = net.get("routes").and_then(Node::list).unwrap_or_default();
    let default = routes.iter().find(|route| {
        let network = route.get("network").and_then(Node::scalar);
        network.is_some_and(|network| network == "0.0.0.0" || network == "::")
    });
    if let Some(gateway) = default.and_then(|route| route.get("gateway")) {
        subnet.set("gateway", gateway.clone());
    }
    subnet
}
