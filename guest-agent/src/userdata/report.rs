//! What became of it: told to the VMM as it happens, and written where cloud-init writes it
//! (status.json and result.json).

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{RUN, STATE};
use crate::protocol::StageState;
use crate::say;
use crate::voice::Voice;

/// cloud-init's stages, by the names in its status.
pub const STAGES: [&str; 4] = ["init-local", "init", "modules-config", "modules-final"];

/// What is kept of errors, each of a line.
const MAX_ERRORS: usize = 200;

/// A report in the making.
#[derive(Debug, Default)]
pub struct Report {
    voice: Option<Voice>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stage: Option<&'static str>,
    datasource: Option<String>,
    stages: Vec<Stage>,
}

#[derive(Debug)]
struct Stage {
    name: &'static str,
    start: f64,
    finished: Option<f64>,
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Report {
    /// One that the VMM hears too.
    pub fn to(voice: Voice) -> Self {
        let voice = Some(voice);
        Self {
            voice,
            ..Self::default()
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something failed; the rest goes on.
    pub fn failed(&self, what: &str, why: &str) {
        let line = format!("{what}: {why}");
        match &self.voice {
            Some(voice) => voice.failed(what, why),
            None => say!("{line}"),
        }
        let mut state = self.state();
        if state.stages.is_empty() {
            state.begin("init-local");
        }
        if let Some(stage) = state.stages.last_mut()
            && stage.errors.len() < MAX_ERRORS
        {
            stage.errors.push(line);
        }
    }

    /// Something is odd, and was done as far as it goes.
    pub fn warned(&self, why: &str) {
        say!("{why}");
        let mut state = self.state();
        if let Some(stage) = state.stages.last_mut()
            && stage.warnings.len() < MAX_ERRORS
        {
            stage.warnings.push(why.to_owned());
        }
    }

    /// Whether anything did.
    pub fn failed_at_all(&self) -> bool {
        self.state()
            .stages
            .iter()
            .any(|stage| !stage.errors.is_empty())
    }

    /// A stage begins, and the one before it has ended.
    pub fn stage(&self, name: &'static str) {
        {
            let mut state = self.state();
            if let Some(voice) = &self.voice
                && state.stages.is_empty()
            {
                voice.stage("user-data", StageState::Started);
            }
            state.end();
            state.begin(name);
        }
        self.write();
    }

    /// Everything is over.
    pub fn finish(&self, datasource: &str) {
        {
            let mut state = self.state();
            state.end();
            state.stage = None;
            state.datasource = Some(datasource.to_owned());
        }
        if let Some(voice) = &self.voice {
            voice.stage("user-data", StageState::Done);
        }
        self.write();
        let errors: Vec<String> = {
            let state = self.state();
            let errors = state.stages.iter().flat_map(|stage| stage.errors.clone());
            errors.collect()
        };
        let result = json!({"v1": {"datasource": datasource, "errors": errors}});
        self.save("result.json", &result);
    }

    fn write(&self) {
        let status = self.state().json();
        self.save("status.json", &status);
    }

    /// Below /var/lib/cloud, with a link to it below /run, which tells of this boot only.
    fn save(&self, name: &str, value: &Value) {
        let saved = || -> io::Result<()> {
            let data = Path::new(STATE).join("data");
            fs::create_dir_all(&data)?;
            fs::create_dir_all(RUN)?;
            let file = data.join(name);
            let new = data.join(format!("{name}.new"));
            fs::write(&new, format!("{value:#}\n"))?;
            fs::rename(&new, &file)?;
            match symlink(&file, Path::new(RUN).join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            }
        };
        if let Err(error) = saved() {
            say!("{name}: {error}");
        }
    }
}

impl State {
    fn begin(&mut self, name: &'static str) {
        self.stage = Some(name);
        self.stages.push(Stage {
            name,
            start: now(),
            finished: None,
            errors: Vec::new(),
            warnings: Vec::new(),
        });
    }

    fn end(&mut self) {
        if let Some(stage) = self.stages.last_mut() {
            stage.finished.get_or_insert_with(now);
        }
    }

    fn json(&self) -> Value {
        let mut v1 = Map::new();
        v1.insert("datasource".to_owned(), json!(self.datasource));
        for name in STAGES {
            let stage = self.stages.iter().find(|stage| stage.name == name);
            let entry = match stage {
                Some(stage) => {
                    let warnings = match stage.warnings.is_empty() {
                        true => json!({}),
                        false => json!({"WARNING": stage.warnings}),
                    };
                    json!({"errors": stage.errors, "finished": stage.finished,
                        "recoverable_errors": warnings, "start": stage.start})
                }
                None => {
                    json!({"errors": [], "finished": null, "recoverable_errors": {}, "start": null})
                }
            };
            v1.insert(name.to_owned(), entry);
        }
        v1.insert("stage".to_owned(), json!(self.stage));
        json!({"v1": v1})
    }
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}
