//! `power_state`: what happens to the guest when everything is done.

use crate::power;
use crate::userdata::command::{Program, exists};
use crate::userdata::context::Context;
use crate::yaml::{Node, Value};

const MODULE: &str = "power_state_change";
/// Tells [`end`] that it is this instance's first boot.
const PLANNED: &str = "/run/cloud-init/power-state";

/// Sees that what is asked for can be done. It is done by [`end`], when the status is written.
pub fn plan(context: &Context) -> Result<(), String> {
    let Some(node) = context.get("power_state") else {
        return Ok(());
    };
    words(node)?;
    std::fs::write(PLANNED, "").map_err(|error| format!("{PLANNED}: {error}"))
}

/// The words of shutdown(8).
fn words(node: &Node) -> Result<Vec<String>, String> {
    let wrong = |key: &str, why: &str| Err(node.wrong(&format!("power_state.{key}"), why));
    let word = |key: &str| node.get(key).and_then(Node::scalar);
    let mode = match word("mode").as_deref() {
        Some("halt") => "-H",
        Some("poweroff") => "-P",
        Some("reboot") => "-r",
        _ => return wrong("mode", "halt, poweroff or reboot"),
    };
    let delay = match word("delay").as_deref() {
        None | Some("now") => "now".to_owned(),
        Some(minutes) => match minutes.trim_start_matches('+').parse::<u32>() {
            Ok(minutes) => format!("+{minutes}"),
            Err(_) => return wrong("delay", "now, or minutes"),
        },
    };
    let mut words = vec!["shutdown".to_owned(), mode.to_owned(), delay];
    words.extend(word("message"));
    Ok(words)
}

/// Whether the condition holds: a truth, or a command that succeeds.
fn holds(node: &Node) -> Result<bool, String> {
    match node
        .entry("condition")
        .map(|condition| (condition, &condition.value))
    {
        None => Ok(true),
        Some((_, Value::Bool(truth))) => Ok(*truth),
        Some((_, Value::Text(command))) => Ok(Program::new(&["sh", "-c", command]).run().is_ok()),
        Some((words, Value::List(_))) => Ok(Program::new(&words.scalars()).run().is_ok()),
        Some((other, _)) => Err(other.wrong("power_state.condition", "a truth, text or a list")),
    }
}

/// Does what was planned.
pub fn end(context: &Context) -> Result<(), String> {
    if std::fs::remove_file(PLANNED).is_err() {
        return Ok(());
    }
    let Some(node) = context.get("power_state") else {
        return Ok(());
    };
    context.instance.settle();
    if !holds(node)? {
        return Ok(());
    }
    let words = words(node)?;
    if exists("shutdown") {
        return Program::new(&words)
            .run()
            .map_err(|why| format!("{MODULE}: {why}"));
    }
    // The agent is process 1 itself.
    match words.get(1).is_some_and(|mode| mode == "-r") {
        true => reboot(),
        false => power::ask_process_one(power::End::PowerOff),
    }
    Ok(())
}

/// Starts the guest again.
pub fn reboot() {
    match exists("shutdown") {
        // What cannot be told to systemd is told to process 1.
        true if Program::new(&["shutdown", "-r", "now"]).run().is_ok() => {}
        _ => power::ask_process_one(power::End::Reboot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn what_is_asked_for_is_a_line_of_shutdown() {
        let said = |text| words(&yaml::read("f", text).unwrap());
        assert_eq!(
            said("{mode: reboot, delay: 5, message: Bye}").unwrap(),
            ["shutdown", "-r", "+5", "Bye"]
        );
        assert_eq!(said("{mode: poweroff}").unwrap(), ["shutdown", "-P", "now"]);
        assert_eq!(
            said("{mode: sleep}").unwrap_err(),
            "f:1: power_state.mode: halt, poweroff or reboot"
        );
    }
}
