//! What cloud-init does with user-data: once an instance, or at every boot, in its order and under
//! its names below /var/lib/cloud.

mod instance;
mod scripts;

use std::path::Path;

use crate::protocol::StageState;
use crate::seed::{self, Seed};
use crate::voice::Voice;
use instance::Instance;

/// cloud-init's state.
const STATE: &str = "/var/lib/cloud";
/// The semaphore of user-data's own scripts.
const SCRIPTS_USER: &str = "config_scripts_user";

/// Does what the seed asks for, then says that the guest is ready.
pub fn run(voice: &Voice) {
    match seed::find() {
        Ok(Some(seed)) => {
            voice.stage("user-data", StageState::Started);
            apply(voice, &seed);
            voice.stage("user-data", StageState::Done);
        }
        Ok(None) => {}
        Err(why) => voice.failed("seed", &why),
    }
    voice.ready();
}

fn apply(voice: &Voice, seed: &Seed) {
    let instance = match Instance::open(Path::new(STATE), seed) {
        Ok(instance) => instance,
        Err(error) => return voice.failed("user-data", &format!("{STATE}: {error}")),
    };
    if let Some(name) = &seed.hostname
        && let Err(error) = rustix::system::sethostname(name.as_bytes())
    {
        voice.failed("hostname", &format!("{name:?}: {error}"));
    }
    let report = |failures: Vec<String>| {
        failures
            .iter()
            .for_each(|failure| voice.failed("user-data", failure));
    };
    report(scripts::run_folder(
        &Path::new(STATE).join("scripts/per-boot"),
    ));
    let done = instance.once(SCRIPTS_USER, || {
        if let Err(why) = scripts::place(&seed.user_data, &instance.scripts()) {
            report(vec![why]);
        }
        report(scripts::run_folder(&instance.scripts()));
    });
    if let Err(error) = done {
        report(vec![format!("{SCRIPTS_USER}: {error}")]);
    }
}
