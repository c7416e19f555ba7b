//! virt-launcher's arguments that mean nothing here, of KubeVirt 0.10 and of today: taken, and told
//! of once, so that a pod which KubeVirt made starts.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

/// Those with a value.
const TEXTS: [&str; 10] = [
    "watchdog-update-interval",
    "qemu-agent-poller-interval",
    "less-pvc-space-toleration",
    "minimum-pvc-reserve-bytes",
    "ovmf-path",
    "disk-memory-limit",
    "hypervisor",
    "libvirt-log-filters",
    "keep-after-failure",
    "v",
];
/// Go's switches: alone, or with `=true` or `=false`.
const SWITCHES: [&str; 8] = [
    "no-fork",
    "run-as-nonroot",
    "image-volume",
    "upgrade-ordinal-ifaces",
    "vgpu-dedicated-hook",
    "vm-stats-collector",
    "firmware-auto-selection",
    "simulate-crash",
];
/// There is no machine here but KVM's.
const EMULATION: [&str; 2] = ["use-emulation", "allow-emulation"];
/// Sidecars that would change the domain's XML.
const HOOKS: &str = "hook-sidecars";

/// Which of them were given.
#[derive(Debug, Default)]
pub struct Ignored {
    silent: Vec<&'static str>,
    emulation: bool,
    hook_sidecars: u32,
}

impl Args for Ignored {
    fn augment_args(command: Command) -> Command {
        let hidden = |name: &'static str| Arg::new(name).long(name).hide(true);
        let text = |name| hidden(name).action(ArgAction::Set);
        let switch = |name| {
            text(name)
                .value_parser(value_parser!(bool))
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
        };
        command
            .args(TEXTS.map(text))
            .args(SWITCHES.map(switch))
            .args(EMULATION.map(switch))
            .arg(text(HOOKS).value_parser(value_parser!(u32)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Self::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let on = |name: &str| matches.get_one(name) == Some(&true);
        let texts = TEXTS.iter().filter(|name| matches.contains_id(name));
        self.silent = texts
            .chain(SWITCHES.iter().filter(|name| on(name)))
            .copied()
            .collect();
        self.emulation = EMULATION.iter().any(|name| on(name));
        self.hook_sidecars = matches.get_one(HOOKS).copied().unwrap_or(0);
        Ok(())
    }
}

impl Ignored {
    /// Tells of those that were given.
    pub fn tell(&self) {
        let given: Vec<_> = self.silent.iter().map(|name| format!("--{name}")).collect();
        if !given.is_empty() {
            tracing::info!("without effect here: {}", given.join(" "));
        }
        if self.hook_sidecars > 0 {
            let count = self.hook_sidecars;
            tracing::warn!("{count} hook sidecars are not asked: there is no domain XML to change");
        }
        if self.emulation {
            tracing::warn!(
                "emulation was allowed, and there is none: every guest instruction is KVM's to run; \
                 `peapod doctor` says what this node's /dev/kvm lacks"
            );
        }
    }
}
