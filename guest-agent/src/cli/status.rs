//! `cloud-init status`, in cloud-init's forms and with its exit statuses: 0 where all is well, 1
//! where something failed, 2 where something was only odd.

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use lexopt::prelude::*;
use serde_json::{Map, Value as Json, json};

use crate::userdata::STAGES;

const STATUS: &str = "/run/cloud-init/status.json";
const RESULT: &str = "/run/cloud-init/result.json";
const DISABLED: &str = "/etc/cloud/cloud-init.disabled";
const PAUSE: Duration = Duration::from_millis(250);

/// Answers.
pub fn run(words: &mut lexopt::Parser) -> Result<ExitCode, lexopt::Error> {
    let (mut wait, mut long, mut format) = (false, false, "tabular".to_owned());
    while let Some(word) = words.next()? {
        match word {
            Short('w') | Long("wait") => wait = true,
            Short('l') | Long("long") => long = true,
            Long("format") => format = words.value()?.string()?,
            other => return Err(other.unexpected()),
        }
    }
    let mut status = read();
    while wait && ["running", "not started"].contains(&status.word()) {
        if format == "tabular" {
            eprint!(".");
        }
        thread::sleep(PAUSE);
        status = read();
    }
    match &*format {
        "json" => println!("{}", indented(&status.0)),
        "yaml" => print!("---\n{}...\n", yaml(&status.0)),
        "tabular" => print!("{}", status.table(long)),
        other => return Err(format!("--format is tabular, json or yaml, not {other}").into()),
    }
    Ok(ExitCode::from(status.exit()))
}

/// As cloud-init indents.
fn indented(value: &Json) -> String {
    let text = format!("{value:#}");
    let line = |line: &str| {
        let rest = line.trim_start();
        format!("{}{rest}", " ".repeat((line.len() - rest.len()) / 2))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn yaml(value: &Json) -> String {
    match crate::yaml::read("status", &value.to_string()) {
        Ok(node) => crate::yaml::write(&node),
        // JSON is YAML.
        Err(_) => format!("{value}\n"),
    }
}

/// What `--format json` shows.
struct Status(Json);

fn read() -> Status {
    let json =
        |path: &str| -> Option<Json> { serde_json::from_str(&fs::read_to_string(path).ok()?).ok() };
    Status::of(json(STATUS), json(RESULT), fs::metadata(DISABLED).is_ok())
}

impl Status {
    fn of(status: Option<Json>, result: Option<Json>, disabled: bool) -> Self {
        let v1 = status.as_ref().and_then(|status| status.get("v1"));
        let field = |key: &str| v1.and_then(|v1| v1.get(key)).cloned();
        let stages = || STAGES.iter().filter_map(|name| Some((*name, field(name)?)));
        let mut errors = Vec::new();
        let mut warnings = Vec::new();
        let mut last: f64 = 0.0;
        let mut all = Map::new();
        for (name, stage) in stages() {
            let list =
                |value: Option<&Json>| value.and_then(Json::as_array).cloned().unwrap_or_default();
            errors.extend(list(stage.get("errors")));
            warnings.extend(list(stage.pointer("/recoverable_errors/WARNING")));
            for key in ["start", "finished"] {
                last = last.max(stage.get(key).and_then(Json::as_f64).unwrap_or_default());
            }
            all.insert(name.to_owned(), stage);
        }
        let word = if disabled {
            "disabled"
        } else if v1.is_none() {
            "not started"
        } else if result.is_none() {
            "running"
        } else if errors.is_empty() {
            "done"
        } else {
            "error"
        };
        let extended = match (word, errors.is_empty(), warnings.is_empty()) {
            ("running", false, _) => "error - running".to_owned(),
            ("error", ..) => "error - done".to_owned(),
            ("done" | "running", true, false) => format!("degraded {word}"),
            _ => word.to_owned(),
        };
        let datasource = result
            .as_ref()
            .and_then(|result| result.pointer("/v1/datasource"))
            .and_then(Json::as_str)
            .unwrap_or_default();
        let name = datasource.split(' ').next().unwrap_or_default();
        let recoverable = match warnings.is_empty() {
            true => json!({}),
            false => json!({"WARNING": warnings}),
        };
        let code = match disabled {
            true => "disabled-by-marker-file",
            false => "enabled-by-generator",
        };
        let mut shown = Map::new();
        for (key, value) in [
            ("boot_status_code", json!(code)),
            (
                "datasource",
                json!(name.trim_start_matches("DataSource").to_lowercase()),
            ),
            ("detail", json!(datasource)),
            ("errors", json!(errors)),
            ("extended_status", json!(extended)),
        ] {
            shown.insert(key.to_owned(), value);
        }
        shown.append(&mut all);
        for (key, value) in [
            ("last_update", json!(crate::userdata::rfc2822(last as u64))),
            ("recoverable_errors", recoverable),
            ("stage", field("stage").unwrap_or_default()),
            ("status", json!(word)),
        ] {
            shown.insert(key.to_owned(), value);
        }
        Self(Json::Object(shown))
    }

    fn word(&self) -> &str {
        self.0
            .get("status")
            .and_then(Json::as_str)
            .unwrap_or_default()
    }

    fn exit(&self) -> u8 {
        let odd = self.0.get("recoverable_errors").and_then(Json::as_object);
        let failed = self.0.get("errors").and_then(Json::as_array);
        if failed.is_some_and(|errors| !errors.is_empty()) {
            1
        } else if odd.is_some_and(|odd| !odd.is_empty()) {
            2
        } else {
            0
        }
    }

    fn table(&self, long: bool) -> String {
        let keys = [
            "extended_status",
            "boot_status_code",
            "last_update",
            "detail",
            "errors",
            "recoverable_errors",
        ];
        let mut text = format!("status: {}\n", self.word());
        for key in keys.iter().filter(|_| long) {
            let value = self.0.get(key).unwrap_or(&Json::Null);
            text.push_str(&match value {
                Json::String(value) => format!("{key}: {value}\n"),
                Json::Array(list) if !list.is_empty() => {
                    let line =
                        |value: &Json| format!("\t- {}\n", value.as_str().unwrap_or_default());
                    format!("{key}:\n{}", list.iter().map(line).collect::<String>())
                }
                other => format!("{key}: {other}\n"),
            });
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(errors: Json, warnings: Json, done: bool) -> Status {
        let stage = json!({"start": 1.0, "finished": 2.0, "errors": errors,
            "recoverable_errors": {"WARNING": warnings}});
        let status = json!({"v1": {"init": stage, "stage": null}});
        let datasource = "DataSourceNoCloud [seed=/dev/vdb][dsmode=net]";
        let result = done.then(|| json!({"v1": {"datasource": datasource, "errors": []}}));
        Status::of(Some(status), result, false)
    }

    #[test]
    fn a_status_has_cloud_init_s_words_and_exit_statuses() {
        for (errors, warnings, done, word, extended, exit) in [
            (json!([]), json!([]), true, "done", "done", 0),
            (json!([]), json!(["odd"]), true, "done", "degraded done", 2),
            (json!(["bad"]), json!([]), true, "error", "error - done", 1),
            (json!([]), json!([]), false, "running", "running", 0),
            (
                json!(["bad"]),
                json!([]),
                false,
                "running",
                "error - running",
                1,
            ),
        ] {
            let status = status(errors, warnings, done);
            assert_eq!((status.word(), status.exit()), (word, exit));
            assert_eq!(status.0["extended_status"], extended);
        }
        assert_eq!(Status::of(None, None, false).word(), "not started");
        assert_eq!(Status::of(None, None, true).word(), "disabled");
        let done = status(json!(["a: b"]), json!([]), true);
        assert_eq!(done.0["datasource"], "nocloud");
        assert!(
            done.table(true).contains("errors:\n\t- a: b\n"),
            "{}",
            done.table(true)
        );
        assert!(indented(&done.0).starts_with("{\n \"boot_status_code\""));
    }
}
