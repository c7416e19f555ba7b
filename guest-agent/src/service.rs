//! The agent as a service of a root that has systemd.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use crate::protocol::Role;
use crate::signals::Signals;
use crate::voice::Voice;
use crate::{children, ports, userdata};

/// Below /run, which survives the switch to the root.
const PROGRAM: &str = "peapod/agent";
const UNIT: &str = "systemd/system/peapod-agent.service";
const WANTED: &str = "systemd/system/multi-user.target.wants";

/// Puts the program and its unit below `run`, the runtime folder: nothing of it is on the disk.
pub fn install(run: &Path) -> io::Result<()> {
    let program = run.join(PROGRAM);
    let unit = run.join(UNIT);
    let wanted = run.join(WANTED);
    for folder in [program.parent(), unit.parent(), Some(&*wanted)] {
        folder.map_or(Ok(()), fs::create_dir_all)?;
    }
    fs::copy("/proc/self/exe", &program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    // What a script leaves in the background outlives the agent: KillMode=process.
    let text = format!(
        "[Unit]\n\
         Description=Peapod's agent\n\
         After=network.target\n\
         [Service]\n\
         ExecStart={} service\n\
         KillMode=process\n\
         TasksMax=infinity\n\
         StandardOutput=journal+console\n\
         StandardError=journal+console\n",
        program.display()
    );
    fs::write(&unit, text)?;
    match symlink(&unit, wanted.join("peapod-agent.service")) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Runs as the service, until systemd ends it.
pub fn run() -> ExitCode {
    let signals = Signals::block(&[libc::SIGCHLD]);
    let voice = Voice::start(Role::Service);
    ports::watch(&voice);
    thread::spawn(move || userdata::run(&voice));
    loop {
        signals.wait();
        let _ = children::reap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_the_program_that_lies_beside_it() {
        let run = tempfile::tempdir().unwrap();
        install(run.path()).unwrap();
        install(run.path()).unwrap();
        let unit = fs::read_to_string(run.path().join(UNIT)).unwrap();
        let program = unit
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart="))
            .and_then(|line| line.strip_suffix(" service"))
            .unwrap();
        assert_eq!(
            fs::metadata(program).unwrap().permissions().mode() & 0o777,
            0o755
        );
        let link = run.path().join(WANTED).join("peapod-agent.service");
        assert_eq!(fs::read_link(link).unwrap(), run.path().join(UNIT));
    }
}
