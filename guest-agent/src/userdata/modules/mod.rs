//! The modules, one file each, under cloud-init's names.

mod accounts;
mod apt;
mod apt_key;
mod apt_sources;
mod ca_certs;
mod filesystems;
mod final_message;
pub mod hostname;
mod locale;
mod mounts;
mod ntp;
mod packages;
pub mod patch;
mod people;
mod phone_home;
pub mod power_state;
mod random_seed;
mod runcmd;
mod scripts;
mod ssh;
mod timezone;
mod write_files;
mod yum;

use super::context::Context;
use super::instance::Frequency::{self, Always, Instance, Once};
use crate::os::{Family, Os};
use crate::yaml::Node;

/// What a module does; an error is its end, and a line for a person.
type Run = fn(&Context) -> Result<(), String>;

/// A module.
pub struct Module {
    name: &'static str,
    /// How often, unless a list of modules says otherwise.
    pub frequency: Frequency,
    /// What it does.
    pub run: Run,
    /// It is only for a configuration with one of these; without any for each.
    keys: &'static [&'static str],
    /// The systems that it is for, if not for all.
    family: Option<Family>,
}

impl Module {
    /// Whether the configuration asks for it.
    pub fn is_asked_for(&self, context: &Context) -> bool {
        let is_there = |key: &&str| context.config.entry(key).is_some();
        self.keys.is_empty() || self.keys.iter().any(is_there)
    }

    const fn of(self, family: Family) -> Self {
        Self {
            family: Some(family),
            ..self
        }
    }
}

const fn module(
    name: &'static str,
    frequency: Frequency,
    keys: &'static [&'static str],
    run: Run,
) -> Module {
    Module {
        name,
        frequency,
        run,
        keys,
        family: None,
    }
}

const PACKAGES: &[&str] = &[
    "apt_update",
    "package_update",
    "apt_upgrade",
    "package_upgrade",
    "packages",
];

const MODULES: [Module; 32] = [
    module("seed_random", Instance, &[], random_seed::run),
    module("bootcmd", Always, &["bootcmd"], runcmd::bootcmd),
    module("write_files", Instance, &["write_files"], write_files::run),
    module("growpart", Always, &[], filesystems::grow_partitions),
    module("resizefs", Always, &[], filesystems::resize_root),
    module("mounts", Instance, &[], mounts::run),
    module("set_hostname", Instance, &[], hostname::set),
    module("update_hostname", Always, &[], hostname::update),
    module(
        "update_etc_hosts",
        Always,
        &["manage_etc_hosts"],
        hostname::hosts,
    ),
    module(
        "ca_certs",
        Instance,
        &["ca_certs", "ca-certs"],
        ca_certs::run,
    ),
    module("users_groups", Instance, &[], accounts::users_groups),
    module("ssh", Instance, &[], ssh::run),
    module("set_passwords", Instance, &[], accounts::set_passwords),
    module("locale", Instance, &[], locale::run),
    module(
        "apt_pipelining",
        Instance,
        &["apt_pipelining"],
        apt::pipelining,
    )
    .of(Family::Debian),
    module("apt_configure", Instance, &[], apt::run).of(Family::Debian),
    module("yum_add_repo", Always, &["yum_repos"], yum::run).of(Family::RedHat),
    module("ntp", Instance, &["ntp"], ntp::run),
    module("timezone", Instance, &["timezone"], timezone::run),
    module("runcmd", Instance, &["runcmd"], runcmd::run),
    module(
        "package_update_upgrade_install",
        Instance,
        PACKAGES,
        packages::run,
    ),
    module(
        "write_files_deferred",
        Instance,
        &["write_files"],
        write_files::deferred,
    ),
    module("scripts_vendor", Instance, &[], scripts::vendor),
    module("scripts_per_once", Once, &[], scripts::per_once),
    module("scripts_per_boot", Always, &[], scripts::per_boot),
    module("scripts_per_instance", Instance, &[], scripts::per_instance),
    module("scripts_user", Instance, &[], scripts::user),
    module("ssh_authkey_fingerprints", Instance, &[], ssh::every_user),
    module("keys_to_console", Instance, &[], nothing),
    module("phone_home", Instance, &["phone_home"], phone_home::run),
    module("final_message", Always, &[], final_message::run),
    module(
        "power_state_change",
        Instance,
        &["power_state"],
        power_state::plan,
    ),
];

/// What only shows on the console what is there to read.
fn nothing(_: &Context) -> Result<(), String> {
    Ok(())
}

/// Keys that are another module's, which there is none of here.
const REFUSED: [(&str, &str); 35] = [
    ("ansible", "ansible"),
    ("apk_repos", "apk_configure"),
    ("autoinstall", "ubuntu_autoinstall"),
    ("byobu_by_default", "byobu"),
    ("chef", "chef"),
    ("device_aliases", "disk_setup"),
    ("disable_ec2_metadata", "disable_ec2_metadata"),
    ("disk_setup", "disk_setup"),
    ("drivers", "ubuntu_drivers"),
    ("fan", "fan"),
    ("fs_setup", "disk_setup"),
    ("grub-dpkg", "grub_dpkg"),
    ("grub_dpkg", "grub_dpkg"),
    ("keyboard", "keyboard"),
    ("landscape", "landscape"),
    ("lxd", "lxd"),
    ("manage-resolv-conf", "resolv_conf"),
    ("manage_resolv_conf", "resolv_conf"),
    ("mcollective", "mcollective"),
    ("puppet", "puppet"),
    ("resolv_conf", "resolv_conf"),
    ("rh_subscription", "rh_subscription"),
    ("rpi", "raspberry_pi"),
    ("rsyslog", "rsyslog"),
    ("salt_minion", "salt_minion"),
    ("snap", "snap"),
    ("snappy", "snap"),
    ("spacewalk", "spacewalk"),
    ("ssh_import_id", "ssh_import_id"),
    ("ubuntu-advantage", "ubuntu_pro"),
    ("ubuntu_advantage", "ubuntu_pro"),
    ("ubuntu_pro", "ubuntu_pro"),
    ("updates", "install_hotplug"),
    ("wireguard", "wireguard"),
    ("zypper", "zypper_add_repo"),
];

/// The module of a name, if the system is one that it is for.
pub fn find(name: &str, os: &Os) -> Option<&'static Module> {
    let found = MODULES.iter().find(|module| module.name == name)?;
    found
        .family
        .is_none_or(|family| family == os.family)
        .then_some(found)
}

/// Keys of no module's own: of a module without one that switches it on, or of all.
const OTHERS: [&str; 71] = [
    "allow_public_ssh_keys",
    "allow_userdata",
    "apt",
    "apt_custom_sources_list",
    "apt_ftp_proxy",
    "apt_http_proxy",
    "apt_https_proxy",
    "apt_mirror",
    "apt_mirror_search",
    "apt_mirror_search_dns",
    "apt_preserve_sources_list",
    "apt_proxy",
    "apt_reboot_if_required",
    "apt_sources",
    "add_apt_repo_match",
    "authkey_hash",
    "chpasswd",
    "cloud_config_modules",
    "cloud_final_modules",
    "cloud_init_modules",
    "create_hostname_file",
    "datasource",
    "datasource_list",
    "def_log_file",
    "disable_root",
    "disable_root_opts",
    "final_message",
    "fqdn",
    "groups",
    "growpart",
    "hostname",
    "instance-id",
    "launch-index",
    "locale",
    "locale_configfile",
    "log_cfgs",
    "manual_cache_clean",
    "merge_how",
    "merge_type",
    "migrate",
    "mount_default_fields",
    "mounts",
    "network",
    "no_ssh_fingerprints",
    "output",
    "package_reboot_if_required",
    "password",
    "prefer_fqdn_over_hostname",
    "preserve_hostname",
    "random_seed",
    "reporting",
    "resize_rootfs",
    "ssh",
    "ssh_authorized_keys",
    "ssh_deletekeys",
    "ssh_fp_console_blacklist",
    "ssh_genkeytypes",
    "ssh_key_console_blacklist",
    "ssh_keys",
    "ssh_publish_hostkeys",
    "ssh_pwauth",
    "ssh_quiet_keygen",
    "swap",
    "syslog_fix_perms",
    "system_info",
    "timezone",
    "user",
    "users",
    "vendor_data",
    "vendor_data2",
    "yum_repo_dir",
];

/// A key of the configuration that no module here knows.
pub struct Odd {
    /// cloud-init's module that does.
    pub module: Option<&'static str>,
    /// A line for a person.
    pub why: String,
}

/// Those of them that there are.
pub fn odd_keys(config: &Node) -> impl Iterator<Item = Odd> {
    config
        .map()
        .into_iter()
        .flatten()
        .filter_map(|(key, node)| {
            let refused = REFUSED.iter().find(|(name, _)| name == key);
            let module = refused.map(|(_, module)| *module);
            let why = match module {
                Some(module) => node.wrong(key, format!("the module {module} is not supported")),
                None if is_known(key) => return None,
                None => node.wrong(key, "no module knows this key"),
            };
            Some(Odd { module, why })
        })
}

fn is_known(key: &str) -> bool {
    OTHERS.contains(&key) || MODULES.iter().any(|module| module.keys.contains(&key))
}
