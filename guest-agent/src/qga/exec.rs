//! Programs that the VMM has run in the guest, and asks for later.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::command::Capture;
use crate::children;
use crate::session::ENVIRONMENT;

/// Programs that run, or nobody has asked for since they ended.
const MOST: usize = 64;
/// The most of a stream that is kept.
const MAX_OUTPUT: usize = 4 << 20;

/// The programs, by their process ids.
#[derive(Debug, Default)]
pub struct Programs(BTreeMap<i64, Arc<Mutex<Option<Ended>>>>);

/// A program that has ended.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    /// What of its two streams was kept, each where that was asked for.
    kept: [Option<Kept>; 2],
}

/// What a program wrote.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    cut: bool,
}

/// What is run, and what of it is kept.
pub struct Run {
    /// The program.
    pub path: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// All of its environment, if there is to be any but the agent's; `NAME=VALUE` each.
    pub environment: Vec<String>,
    /// What it reads.
    pub input: Vec<u8>,
    /// What is kept.
    pub capture: Capture,
}

impl Programs {
    /// Starts one.
    pub fn run(&mut self, run: Run) -> Result<Value, String> {
        if self.0.len() >= MOST {
            return Err(format!(
                "{MOST} programs run already, or ended and were not asked for"
            ));
        }
        let (output, errors, merged) = match &run.capture {
            Capture::Both(both) => (*both, *both, false),
            Capture::Word(word) => match &**word {
                "none" => (false, false, false),
                "stdout" => (true, false, false),
                "stderr" => (false, true, false),
                "separated" => (true, true, false),
                "merged" => (true, false, true),
                _ => return Err(format!("capture-output cannot be '{word}'")),
            },
        };
        let name = run.path.clone();
        let started = start(run, [output, errors], merged);
        let (pid, ended) = started.map_err(|error| format!("failed to execute {name}: {error}"))?;
        self.0.insert(pid.into(), ended);
        Ok(json!({ "pid": pid }))
    }

    /// How it is with one. That it has ended is told once.
    pub fn status(&mut self, pid: i64) -> Result<Value, String> {
        let program = self.0.get(&pid);
        let program = program.ok_or_else(|| format!("PID {pid} does not exist"))?;
        let ended = program
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(ended) = ended else {
            return Ok(json!({ "exited": false }));
        };
        self.0.remove(&pid);
        let mut told = Map::new();
        told.insert("exited".to_owned(), true.into());
        let how = [
            ("exitcode", ended.status.code()),
            ("signal", ended.status.signal()),
        ];
        for (name, number) in how {
            told.extend(number.map(|number| (name.to_owned(), number.into())));
        }
        for (name, kept) in ["out", "err"].into_iter().zip(ended.kept) {
            let Some(kept) = kept.filter(|kept| !kept.bytes.is_empty()) else {
                continue;
            };
            let data = STANDARD.encode(&kept.bytes);
            told.insert(format!("{name}-data"), data.into());
            if kept.cut {
                told.insert(format!("{name}-truncated"), true.into());
            }
        }
        Ok(told.into())
    }
}

type Outcome = Arc<Mutex<Option<Ended>>>;

fn start(run: Run, keep: [bool; 2], merged: bool) -> io::Result<(i32, Outcome)> {
    let mut command = Command::new(&run.path);
    command.args(&run.arguments).current_dir("/").env_clear();
    match &run.environment[..] {
        [] => command.envs(ENVIRONMENT),
        words => command.envs(words.iter().filter_map(|word| word.split_once('='))),
    };
    let (input, mut writer) = io::pipe()?;
    command.stdin(input);
    let mut readers = [None, None];
    let [output, errors] = &mut readers;
    if let [true, _] = keep {
        let (reader, end) = io::pipe()?;
        if merged {
            command.stderr(end.try_clone()?);
        }
        command.stdout(end);
        *output = Some(reader);
    } else {
        command.stdout(Stdio::null());
    }
    if let [_, true] = keep {
        let (reader, end) = io::pipe()?;
        command.stderr(end);
        *errors = Some(reader);
    } else if !merged {
        command.stderr(Stdio::null());
    }
    let child = children::spawn(&mut command)?;
    // It holds the programs' ends of the pipes too.
    drop(command);
    let pid = child.pid;
    thread::spawn(move || {
        // It need not read all, or any of it.
        let _ = writer.write_all(&run.input);
    });
    let keepers = readers.map(|reader| reader.map(|reader| thread::spawn(move || kept(reader))));
    let outcome = Outcome::default();
    let ended = outcome.clone();
    thread::spawn(move || {
        let status = child.wait();
        let join = |keeper: JoinHandle<Kept>| keeper.join().unwrap_or_default();
        let kept = keepers.map(|keeper| keeper.map(join));
        *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ended { status, kept });
    });
    Ok((pid, outcome))
}

/// Reads to the end, which is that of all who can write there.
fn kept(mut reader: PipeReader) -> Kept {
    let mut kept = Kept::default();
    let mut bytes = [0; 4096];
    loop {
        match reader.read(&mut bytes) {
            Ok(0) => return kept,
            Ok(count) => {
                let room = MAX_OUTPUT - kept.bytes.len();
                let taken = bytes.get(..count.min(room)).unwrap_or_default();
                kept.bytes.extend(taken);
                kept.cut |= count > room;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return kept,
        }
    }
}
