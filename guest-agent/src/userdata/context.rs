//! What a module is given.

use super::instance::Instance;
use super::report::Report;
use crate::accounts::Accounts;
use crate::labels;
use crate::os::Os;
use crate::seed::Seed;
use crate::yaml::Node;

/// What a module is given.
pub struct Context<'a> {
    /// All configuration: the user's over the vendor's over the disk's.
    pub config: Node,
    /// Where the rest came from.
    pub seed: &'a Seed,
    /// The instance's folder and what was done for it.
    pub instance: &'a Instance,
    /// Where failures go that are not the module's end.
    pub report: &'a Report,
    /// What is installed.
    pub os: Os,
    /// The root's users.
    pub accounts: Accounts,
    /// What the guest was called before it was given a name.
    pub nodename: String,
}

impl Context<'_> {
    /// A value of the configuration that is not null.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.config.get(key)
    }

    /// An item failed; the module goes on.
    pub fn failed(&self, module: &str, why: &str) {
        self.report.failed(module, why);
    }

    /// Gives what was written SELinux's labels.
    pub fn label(&self) {
        if let Err(why) = labels::put_right() {
            self.failed("selinux", &why);
        }
    }
}
