//! `bootcmd` and `runcmd`: commands as a script of sh.

use crate::userdata::command::Program;
use crate::userdata::context::Context;
use crate::userdata::files;
use crate::yaml::{Node, Value};

/// Runs `bootcmd` at once.
pub fn bootcmd(context: &Context) -> Result<(), String> {
    let Some(script) = script(context, "bootcmd")? else {
        return Ok(());
    };
    let path = context.instance.path("bootcmd.sh");
    files::write(&path, script.as_bytes(), 0o700)
        .map_err(|error| format!("{}: {error}", path.display()))?;
    context.instance.settle();
    let done = Program::new(&["/bin/sh".as_ref(), path.as_os_str()])
        .env("INSTANCE_ID", &context.seed.instance_id)
        .run();
    // It is written anew at every boot.
    let _ = std::fs::remove_file(&path);
    done.map_err(|why| format!("bootcmd: {why}"))
}

/// Puts `runcmd` among the user's scripts, which run last.
pub fn run(context: &Context) -> Result<(), String> {
    let Some(script) = script(context, "runcmd")? else {
        return Ok(());
    };
    let path = context.instance.scripts().join("runcmd");
    files::write(&path, script.as_bytes(), 0o700)
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// The script; what is no command is told, and the others stay.
fn script(context: &Context, key: &str) -> Result<Option<String>, String> {
    let Some(list) = context.get(key) else {
        return Ok(None);
    };
    let commands = list
        .list()
        .ok_or_else(|| list.wrong(key, format!("a list of commands, not {}", list.kind())))?;
    let mut text = "#!/bin/sh\n".to_owned();
    for (at, command) in commands.iter().enumerate() {
        match line(command) {
            Ok(Some(line)) => {
                text.push_str(&line);
                text.push('\n');
            }
            Ok(None) => {}
            Err(why) => context.failed(key, &command.wrong(&format!("{key}[{at}]"), why)),
        }
    }
    Ok(Some(text))
}

/// A command as sh has it.
fn line(command: &Node) -> Result<Option<String>, String> {
    match &command.value {
        Value::Null => Ok(None),
        Value::Text(text) => Ok(Some(text.clone())),
        Value::List(words) => {
            let word = |word: &Node| {
                // Python says None of nothing.
                let text = match &word.value {
                    Value::Null => Some("None".to_owned()),
                    _ => word.scalar(),
                };
                let text = text
                    .ok_or_else(|| format!("a word of a command is text, not {}", word.kind()))?;
                Ok::<_, String>(format!("'{}'", text.replace('\'', "'\\''")))
            };
            let words: Result<Vec<String>, String> = words.iter().map(word).collect();
            Ok(Some(words?.join(" ")))
        }
        // `- false`, `- true`, `- 1`: YAML reads a word as something else.
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => Err(format!(
            "a command is text or a list, not {}: put it in quotes",
            command.kind()
        )),
        _ => Err(format!(
            "a command is text or a list, not {}: put it in quotes, for it has a colon and a blank",
            command.kind()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn a_command_becomes_a_line_and_what_is_none_an_error() {
        let text = "- echo 'a' $B\n- [echo, \"it's\", 1, true]\n-\n- false\n- echo a: b\n";
        let list = yaml::read("f", text).unwrap();
        let lines: Vec<_> = list.list().unwrap().iter().map(line).collect();
        assert_eq!(lines[0], Ok(Some("echo 'a' $B".to_owned())));
        assert_eq!(
            lines[1],
            Ok(Some("'echo' 'it'\\''s' '1' 'True'".to_owned()))
        );
        assert_eq!(lines[2], Ok(None));
        assert!(lines[3].as_ref().unwrap_err().contains("a truth value"));
        assert!(lines[4].as_ref().unwrap_err().contains("a colon"));
    }
}
