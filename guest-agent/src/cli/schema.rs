//! `cloud-init schema`: whether user-data say what they mean.

use std::fs;
use std::process::ExitCode;

use lexopt::prelude::*;

const SYSTEM: &str = "/var/lib/cloud/instance/user-data.txt";

/// Answers.
pub fn run(words: &mut lexopt::Parser) -> Result<ExitCode, String> {
    let failed = |error: lexopt::Error| error.to_string();
    let mut file = None;
    while let Some(word) = words.next().map_err(failed)? {
        match word {
            Short('c') | Long("config-file") => {
                let value = words.value().map_err(failed)?;
                file = Some(value.to_string_lossy().into_owned());
            }
            Long("system") => file = Some(SYSTEM.to_owned()),
            Long("annotate") => {}
            other => return Err(other.unexpected().to_string()),
        }
    }
    let file = file.ok_or("schema wants -c FILE or --system")?;
    let bytes = fs::read(&file).map_err(|error| format!("{file}: {error}"))?;
    let wrong = crate::userdata::check(&file, &bytes);
    if wrong.is_empty() {
        println!("Valid schema {file}");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("Error: Cloud config schema errors:");
    wrong.iter().for_each(|why| eprintln!("{why}"));
    Ok(ExitCode::from(1))
}
