//! virt-launcher's arguments that mean nothing here, of KubeVirt 0.10 and of today: taken, and told
//! of once, so that a pod which KubeVirt made starts.

/// Taken and not heeded.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Taken from virt-launcher, without effect")]
#[allow(missing_docs)] // each is KubeVirt's to explain
pub struct Ignored {
    #[arg(long, value_name = "DURATION", hide = true)]
    pub qemu_timeout: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub watchdog_update_interval: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub qemu_agent_poller_interval: Option<String>,
    #[arg(long, value_name = "PERCENT", hide = true)]
    pub less_pvc_space_toleration: Option<String>,
    #[arg(long, value_name = "BYTES", hide = true)]
    pub minimum_pvc_reserve_bytes: Option<String>,
    #[arg(long, value_name = "DIR", hide = true)]
    pub ovmf_path: Option<String>,
    #[arg(long, value_name = "BYTES", hide = true)]
    pub disk_memory_limit: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub hypervisor: Option<String>,
    #[arg(long, value_name = "FILTERS", hide = true)]
    pub libvirt_log_filters: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub keep_after_failure: Option<String>,
    /// Sidecars that would change the domain's XML
    #[arg(long, value_name = "COUNT", hide = true)]
    pub hook_sidecars: Option<u32>,
    /// There is no machine here but KVM's
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub use_emulation: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub allow_emulation: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub no_fork: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub run_as_nonroot: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub image_volume: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub upgrade_ordinal_ifaces: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub vgpu_dedicated_hook: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub vm_stats_collector: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub firmware_auto_selection: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub simulate_crash: Option<bool>,
    /// As QEMU's -v of virt-launcher's log
    #[arg(long = "v", value_name = "LEVEL", hide = true)]
    pub verbosity: Option<String>,
}

impl Ignored {
    /// Tells of those that were given.
    pub fn tell(&self) {
        let texts = [
            ("qemu-timeout", &self.qemu_timeout),
            ("watchdog-update-interval", &self.watchdog_update_interval),
            (
                "qemu-agent-poller-interval",
                &self.qemu_agent_poller_interval,
            ),
            ("less-pvc-space-toleration", &self.less_pvc_space_toleration),
            ("minimum-pvc-reserve-bytes", &self.minimum_pvc_reserve_bytes),
            ("ovmf-path", &self.ovmf_path),
            ("disk-memory-limit", &self.disk_memory_limit),
            ("hypervisor", &self.hypervisor),
            ("libvirt-log-filters", &self.libvirt_log_filters),
            ("keep-after-failure", &self.keep_after_failure),
            ("v", &self.verbosity),
        ];
        let switches = [
            ("no-fork", self.no_fork),
            ("run-as-nonroot", self.run_as_nonroot),
            ("image-volume", self.image_volume),
            ("upgrade-ordinal-ifaces", self.upgrade_ordinal_ifaces),
            ("vgpu-dedicated-hook", self.vgpu_dedicated_hook),
            ("vm-stats-collector", self.vm_stats_collector),
            ("firmware-auto-selection", self.firmware_auto_selection),
            ("simulate-crash", self.simulate_crash),
        ];
        let texts = texts.iter().filter(|(_, value)| value.is_some());
        let switches = switches.iter().filter(|(_, value)| value == &Some(true));
        let given: Vec<_> = texts
            .map(|(name, _)| *name)
            .chain(switches.map(|(name, _)| *name))
            .map(|name| format!("--{name}"))
            .collect();
        if !given.is_empty() {
            tracing::info!("without effect here: {}", given.join(" "));
        }
        if let Some(count @ 1..) = self.hook_sidecars {
            tracing::warn!("{count} hook sidecars are not asked: there is no domain XML to change");
        }
        if self.use_emulation == Some(true) || self.allow_emulation == Some(true) {
            tracing::warn!(
                "emulation was allowed, and there is none: every guest instruction is KVM's to run; \
                 `peapod doctor` says what this node's /dev/kvm lacks"
            );
        }
    }
}
