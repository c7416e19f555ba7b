//! `final_message`

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::userdata::command::tell;
use crate::userdata::context::Context;
use crate::userdata::{files, jinja, rfc2822};
use crate::yaml::Node;

const DEFAULT: &str = "## template: jinja\nCloud-init v. {{version}} finished at {{timestamp}}. \
    Datasource {{datasource}}. Up {{uptime}} seconds";

/// Says that it is over, on the console and in a file.
pub fn run(context: &Context) -> Result<(), String> {
    let message = context.get("final_message").and_then(Node::scalar);
    let message = message.filter(|message| !message.trim().is_empty());
    let message = message.unwrap_or_else(|| DEFAULT.to_owned());
    let uptime = format!("{:.2}", crate::uptime_ms() as f64 / 1000.0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let time = rfc2822(now.unwrap_or_default().as_secs());
    let version = format!("peapod-agent {}", env!("CARGO_PKG_VERSION"));
    let words = [
        ("uptime", &uptime),
        ("timestamp", &time),
        ("version", &version),
        ("datasource", &context.seed.origin),
    ];
    let message = message.trim();
    let text = if jinja::is_template(message) {
        let mut variables = json!({});
        for (key, value) in words {
            for key in [key.to_owned(), key.to_uppercase()] {
                variables
                    .as_object_mut()
                    .map(|map| map.insert(key, json!(value)));
            }
        }
        jinja::render("final_message", message, &variables)?.0
    } else {
        let mut text = message.to_owned();
        for (key, value) in words {
            for key in [key.to_owned(), key.to_uppercase()] {
                for form in [format!("${{{key}}}"), format!("${key}")] {
                    text = text.replace(&form, value);
                }
            }
        }
        text
    };
    tell(&format!("{text}\n"));
    let path = context.instance.path("boot-finished");
    files::write(
        &path,
        format!("{uptime} - {time} - v. {version}\n").as_bytes(),
        0o644,
    )
    .map_err(|error| format!("{}: {error}", path.display()))
}
