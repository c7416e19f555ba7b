//! A mesh's certificate authority.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::{Identity, spiffe};
use crate::space::run;

/// An authority with a folder of certificates, that goes with it.
#[derive(Debug)]
pub struct Authority {
    folder: TempDir,
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let folder = tempfile::tempdir_in("/run").unwrap();
        let authority = Self { folder };
        authority.shell(&format!(
            "chmod 755 .; openssl req -x509 {KEY} -subj /O=cluster.local -keyout ca.key -out ca.pem"
        ));
        authority
    }

    /// A certificate for who runs under that service account.
    pub fn identity(&self, name: &str) -> Identity {
        let names = format!("subjectAltName=critical,URI:{}", spiffe(name));
        fs::write(self.folder.path().join(format!("{name}.ext")), names).unwrap();
        self.shell(&format!(
            "openssl req {KEY} -subj / -keyout {name}.key -out {name}.csr
             openssl x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -days 2 -extfile {name}.ext \
                 -out {name}.pem
             chmod 644 {name}.key"
        ));
        Identity {
            folder: self.folder.path().to_owned(),
            name: name.to_owned(),
        }
    }

    fn shell(&self, script: &str) {
        let mut command = Command::new("sh");
        let script = format!("exec 2>/dev/null\n{script}");
        command.args(["-ec", &script]).current_dir(&self.folder);
        run(&mut command).unwrap();
    }
}
