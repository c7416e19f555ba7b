//! netplan's own format, which version 2 is (netplan's YAML configuration).

use super::model::{Config, Kind, Link};
use super::{File, HEAD, v2};
use crate::yaml::{self, Node, Value};

const PATH: &str = "/etc/netplan/50-cloud-init.yaml";

/// Version 2 as it was written; version 1 in that format.
pub fn render(config: &Config, written: &Node) -> Vec<File> {
    let written = written.get("network").unwrap_or(written);
    let network = match written.get("version").and_then(Node::scalar).as_deref() {
        Some("2") => written.clone(),
        _ => translate(config),
    };
    let text = yaml::write(&map([("network", network)]));
    vec![(PATH.into(), format!("{HEAD}{text}"))]
}

fn translate(config: &Config) -> Node {
    let mut network = map([("version", Value::Int(2).into())]);
    for (section, is) in [
        (
            "ethernets",
            (|kind| matches!(kind, Kind::Card)) as fn(&Kind) -> bool,
        ),
        ("bonds", |kind| matches!(kind, Kind::Bond { .. })),
        ("bridges", |kind| matches!(kind, Kind::Bridge { .. })),
        ("vlans", |kind| matches!(kind, Kind::Vlan { .. })),
    ] {
        let links = config.links.iter().filter(|link| is(&link.kind));
        let links: Vec<_> = links.map(|link| (link.name.clone(), node(link))).collect();
        if !links.is_empty() {
            network.set(section, Value::Map(links).into());
        }
    }
    network
}

fn node(link: &Link) -> Node {
    let mut node = Node::empty();
    let truth = |truth| Value::Bool(truth).into();
    match &link.kind {
        Kind::Card => {}
        Kind::Vlan { id, link } => {
            node.set("id", Value::Int((*id).into()).into());
            node.set("link", (&**link).into());
        }
        Kind::Bond { members, options } => {
            node.set("interfaces", texts(members));
            let known = options.iter().filter_map(|(name, value)| {
                Some((v2::bond_name(name)?.to_owned(), (&**value).into()))
            });
            node.set("parameters", Value::Map(known.collect()).into());
        }
        Kind::Bridge { members, stp } => {
            node.set("interfaces", texts(members));
            if let Some(stp) = stp {
                node.set("parameters", map([("stp", truth(*stp))]));
            }
        }
    }
    if let (Kind::Card, Some(mac)) = (&link.kind, &link.matching.mac) {
        node.set("match", map([("macaddress", (&**mac).into())]));
        node.set("set-name", link.device().into());
    }
    for (key, wanted) in [
        ("dhcp4", link.dhcp4.is_some()),
        ("dhcp6", link.dhcp6.is_some()),
    ] {
        if wanted {
            node.set(key, truth(true));
        }
    }
    if let Some(accept) = link.accept_ra {
        node.set("accept-ra", truth(accept));
    }
    if link.wakeonlan {
        node.set("wakeonlan", truth(true));
    }
    if let Some(mtu) = link.mtu {
        node.set("mtu", Value::Int(mtu.into()).into());
    }
    if !link.addresses.is_empty() {
        node.set("addresses", texts(&link.addresses));
    }
    let routes: Vec<Node> = link
        .routes
        .iter()
        .map(|route| {
            let mut node = map([("to", (&*route.to.to_string()).into())]);
            if let Some(via) = route.via {
                node.set("via", (&*via.to_string()).into());
            }
            if let Some(metric) = route.metric {
                node.set("metric", Value::Int(metric.into()).into());
            }
            node
        })
        .collect();
    if !routes.is_empty() {
        node.set("routes", Value::List(routes).into());
    }
    if !(link.dns.is_empty() && link.search.is_empty()) {
        let names = [
            ("addresses", texts(&link.dns)),
            ("search", texts(&link.search)),
        ];
        node.set("nameservers", map(names));
    }
    node
}

fn map<const N: usize>(entries: [(&str, Node); N]) -> Node {
    let entries = entries.map(|(key, node)| (key.to_owned(), node));
    Value::Map(entries.into()).into()
}

fn texts<T: ToString>(list: &[T]) -> Node {
    let texts = list.iter().map(|item| Node::from(&*item.to_string()));
    Value::List(texts.collect()).into()
}
