//! `ntp`

use std::fs;
use std::path::Path;

use serde_json::json;

use super::packages;
use crate::os::Family;
use crate::userdata::command::{Program, exists, has_systemd};
use crate::userdata::context::Context;
use crate::userdata::{files, jinja};
use crate::yaml::Node;

const TEMPLATES: &str = "/etc/cloud/templates";

/// A program that keeps the clock.
struct Client {
    name: &'static str,
    program: &'static str,
    file: &'static str,
    package: Option<&'static str>,
    service: &'static str,
    template: &'static str,
    /// What the file is made of where the disk brings no template.
    text: &'static str,
}

const CHRONY: &str = "## template: jinja\n{% for pool in pools %}\npool {{pool}} iburst\n{% endfor %}\n\
    {% for server in servers %}\nserver {{server}} iburst\n{% endfor %}\n\
    driftfile /var/lib/chrony/drift\nmakestep 1 3\nrtcsync\n";
const NTPD: &str = "## template: jinja\ndriftfile /var/lib/ntp/ntp.drift\n{% for pool in pools %}\npool \
    {{pool}} iburst\n{% endfor %}\n{% for server in servers %}\nserver {{server}} iburst\n{% endfor %}\n";
const TIMESYNCD: &str =
    "## template: jinja\n[Time]\nNTP={% for host in servers + pools %}{{ host }} {% endfor %}\n";

const CLIENTS: [Client; 3] = [
    Client {
        name: "chrony",
        program: "chronyd",
        file: "/etc/chrony/chrony.conf",
        package: Some("chrony"),
        service: "chrony",
        template: "chrony.conf.{distro}",
        text: CHRONY,
    },
    Client {
        name: "systemd-timesyncd",
        program: "/lib/systemd/systemd-timesyncd",
        file: "/etc/systemd/timesyncd.conf.d/cloud-init.conf",
        package: None,
        service: "systemd-timesyncd",
        template: "timesyncd.conf",
        text: TIMESYNCD,
    },
    Client {
        name: "ntp",
        program: "ntpd",
        file: "/etc/ntp.conf",
        package: Some("ntp"),
        service: "ntp",
        template: "ntp.conf.{distro}",
        text: NTPD,
    },
];

fn has(client: &Client) -> bool {
    match client.program.starts_with('/') {
        true => Path::new(client.program).exists(),
        false => exists(client.program),
    }
}

/// Has the guest's clock kept.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(node) = context.config.entry("ntp") else {
        return Ok(());
    };
    if node.is_something() && node.map().is_none() {
        return Err(node.wrong("ntp", format!("a mapping, not {}", node.kind())));
    }
    if node.get("enabled").is_some_and(Node::is_false) {
        return Ok(());
    }
    let word = |key: &str| node.get(key).and_then(Node::scalar);
    let client = match word("ntp_client").filter(|name| name != "auto") {
        Some(name) => CLIENTS
            .iter()
            .find(|client| client.name == name)
            .ok_or_else(|| node.wrong("ntp.ntp_client", format!("{name:?} is not known")))?,
        None => CLIENTS
            .iter()
            .find(|client| has(client))
            .or(CLIENTS.first())
            .ok_or("ntp: no client is known")?,
    };
    let redhat = context.os.family == Family::RedHat;
    let config = node.get("config");
    let own = |key: &str| {
        config
            .and_then(|config| config.get(key))
            .and_then(Node::scalar)
    };
    let file = own("confpath").unwrap_or_else(|| match redhat && client.name == "chrony" {
        true => "/etc/chrony.conf".to_owned(),
        false => client.file.to_owned(),
    });
    let list = |key: &str| node.get(key).map(Node::scalars).unwrap_or_default();
    let (servers, mut pools) = (list("servers"), list("pools"));
    if servers.is_empty() && pools.is_empty() {
        pools = (0..4)
            .map(|at| format!("{at}.{}.pool.ntp.org", context.os.id))
            .collect();
    }
    let text =
        own("template").unwrap_or_else(|| template(client, own("template_name"), &context.os.id));
    let text = match jinja::is_template(&text) {
        true => {
            jinja::render(
                "ntp.template",
                &text,
                &json!({"servers": servers, "pools": pools}),
            )?
            .0
        }
        false => text,
    };
    let path = Path::new(&file);
    let failed = |error: std::io::Error| format!("{file}: {error}");
    if path.exists() {
        fs::rename(path, format!("{file}.dist")).map_err(failed)?;
    }
    files::write(path, text.as_bytes(), 0o644).map_err(failed)?;
    let program = own("check_exe");
    let installed = program.map_or_else(|| has(client), |program| exists(&program));
    if !installed && let Some(package) = client.package {
        packages::install(context, &[package.to_owned()])?;
    }
    if has_systemd() {
        let service = own("service_name").unwrap_or_else(|| {
            match redhat && client.name != "systemd-timesyncd" {
                true => format!("{}d", client.service),
                false => client.service.to_owned(),
            }
        });
        return Program::new(&["systemctl", "reload-or-restart", &service]).run();
    }
    Ok(())
}

fn template(client: &Client, name: Option<String>, distro: &str) -> String {
    let name = name.unwrap_or_else(|| client.template.to_owned());
    let name = name.replace("{distro}", distro);
    let found = fs::read_to_string(format!("{TEMPLATES}/{name}.tmpl"));
    found.unwrap_or_else(|_| client.text.to_owned())
}
