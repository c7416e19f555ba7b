//! Does what the commands ask for, by the same functions as the agent's own protocol.

use serde_json::{Value, json};

use super::command::{Command, Failure, NAMES, SHUTDOWN};
use super::exec::{Programs, Run};
use super::files::{Files, decode};
use crate::accounts::Accounts;
use crate::guest::{
    clock, filesystems, freeze, interfaces, machine, set_password, users, writable,
};
use crate::power::{self, End};
use crate::protocol::{Filesystem, Interface, Traffic};
use crate::sshd;

/// File systems that nobody thaws go on by themselves: the protocol has no time of its own.
const FROZEN_SECONDS: u32 = 600;

/// What the VMM has open here.
#[derive(Debug, Default)]
pub struct Server {
    files: Files,
    programs: Programs,
}

/// What a command returns that has nothing to say.
fn nothing() -> Value {
    json!({})
}

impl Server {
    /// Runs a command: what it returns, if it returns anything.
    pub fn run(&mut self, command: Command) -> Result<Option<Value>, Failure> {
        let accounts = Accounts::of_this_root();
        let returned = match command {
            Command::GuestPing {} => nothing(),
            Command::GuestInfo {} => json!({
                "version": env!("CARGO_PKG_VERSION"),
                "supported_commands": NAMES.map(|name| json!({
                    "name": name, "enabled": true, "success-response": name != SHUTDOWN,
                })),
            }),
            Command::GuestSync { id } | Command::GuestSyncDelimited { id } => id.into(),
            Command::GuestGetOsinfo {} => {
                let os = machine::os();
                json!({
                    "id": os.id, "name": os.name, "pretty-name": os.pretty_name,
                    "version": os.version, "version-id": os.version_id,
                    "kernel-release": os.kernel_release, "kernel-version": os.kernel_version,
                    "machine": os.machine,
                })
            }
            Command::GuestNetworkGetInterfaces {} => {
                let all = interfaces::all().map_err(|error| error.to_string())?;
                all.iter().map(interface).collect()
            }
            Command::GuestGetFsinfo {} => filesystems::all().iter().map(filesystem).collect(),
            Command::GuestGetUsers {} => logged_in(),
            Command::GuestGetHostName {} => json!({ "host-name": machine::hostname() }),
            Command::GuestGetTimezone {} => {
                let zone = machine::timezone();
                json!({ "zone": zone.name, "offset": zone.offset_seconds })
            }
            Command::GuestGetLoad {} => {
                let [one, five, fifteen] = machine::load();
                json!({ "load1m": one, "load5m": five, "load15m": fifteen })
            }
            Command::GuestGetVcpus {} => {
                let vcpu = |number: u32| {
                    json!({
                        "logical-id": number, "online": true, "can-offline": false,
                    })
                };
                (0..machine::vcpus()).map(vcpu).collect()
            }
            Command::GuestGetTime {} => clock::now().into(),
            Command::GuestSetTime { time: Some(time) } => {
                let time = u64::try_from(time).map_err(|_| "the time is before 1970".to_owned())?;
                clock::set(time)?;
                nothing()
            }
            Command::GuestSetTime { time: None } => {
                clock::set_by_hardware()?;
                nothing()
            }
            Command::GuestShutdown { mode } => {
                shut_down(mode.as_deref())?;
                return Ok(None);
            }
            Command::GuestExec {
                path,
                arg,
                env,
                input_data,
                capture_output,
            } => self.programs.run(Run {
                path,
                arguments: arg,
                environment: env,
                input: input_data.as_deref().map_or(Ok(Vec::new()), decode)?,
                capture: capture_output,
            })?,
            Command::GuestExecStatus { pid } => self.programs.status(pid)?,
            Command::GuestFileOpen { path, mode } => {
                self.files.open(&path, mode.as_deref().unwrap_or("r"))?
            }
            Command::GuestFileRead { handle, count } => self.files.read(handle, count)?,
            Command::GuestFileWrite {
                handle,
                buf_b64,
                count,
            } => {
                writable()?;
                self.files.write(handle, &buf_b64, count)?
            }
            Command::GuestFileSeek {
                handle,
                offset,
                whence,
            } => self.files.seek(handle, offset, &whence)?,
            Command::GuestFileFlush { handle } => {
                self.files.flush(handle)?;
                nothing()
            }
            Command::GuestFileClose { handle } => {
                self.files.close(handle)?;
                nothing()
            }
            Command::GuestFsfreezeStatus {} => match freeze::is_frozen() {
                true => "frozen".into(),
                false => "thawed".into(),
            },
            Command::GuestFsfreezeFreeze {} => freeze::freeze(FROZEN_SECONDS)?.into(),
            Command::GuestFsfreezeFreezeList { mountpoints: None } => {
                freeze::freeze(FROZEN_SECONDS)?.into()
            }
            Command::GuestFsfreezeFreezeList {
                mountpoints: Some(places),
            } => {
                let mut mounts = filesystems::mounts();
                mounts.retain(|mount| places.contains(&mount.place));
                freeze::freeze_these(&mounts, FROZEN_SECONDS)?.into()
            }
            Command::GuestFsfreezeThaw {} => freeze::thaw().into(),
            Command::GuestSshGetAuthorizedKeys { username } => {
                json!({ "keys": sshd::keys(&accounts, &username)? })
            }
            Command::GuestSshAddAuthorizedKeys {
                username,
                keys,
                reset,
            } => {
                writable()?;
                match reset {
                    true => sshd::replace(&accounts, &username, &keys)?,
                    false => sshd::add(&accounts, &username, &keys, None)?,
                }
                nothing()
            }
            Command::GuestSshRemoveAuthorizedKeys { username, keys } => {
                writable()?;
                sshd::remove(&accounts, &username, &keys)?;
                nothing()
            }
            Command::GuestSetUserPassword {
                username,
                password,
                crypted,
            } => {
                let password = decode(&password)?;
                let password = String::from_utf8(password).map_err(|error| error.to_string())?;
                set_password(&username, &password, crypted)?;
                nothing()
            }
        };
        Ok(Some(returned))
    }
}

fn shut_down(mode: Option<&str>) -> Result<(), Failure> {
    let end = match mode.unwrap_or("powerdown") {
        "powerdown" | "halt" => End::PowerOff,
        "reboot" => End::Reboot,
        other => {
            let why = format!("invalid mode '{other}': it is powerdown, halt or reboot");
            return Err(why.into());
        }
    };
    power::ask(end).map_err(|error| error.to_string().into())
}

fn interface(link: &Interface) -> Value {
    let addresses = link.addresses.iter().map(|address| {
        let kind = if address.ip.is_ipv6() { "ipv6" } else { "ipv4" };
        json!({
            "ip-address": address.ip, "ip-address-type": kind, "prefix": address.prefix,
        })
    });
    let Traffic {
        bytes,
        packets,
        errors,
        dropped,
    } = &link.received;
    let sent = &link.sent;
    json!({
        "name": link.name,
        "hardware-address": link.mac,
        "ip-addresses": addresses.collect::<Vec<_>>(),
        "statistics": {
            "rx-bytes": bytes, "rx-packets": packets, "rx-errs": errors, "rx-dropped": dropped,
            "tx-bytes": sent.bytes, "tx-packets": sent.packets, "tx-errs": sent.errors,
            "tx-dropped": sent.dropped,
        },
    })
}

/// On which controller a disk is we do not say: -1 is QEMU's own word for that.
fn filesystem(told: &Filesystem) -> Value {
    let unknown = json!({ "domain": -1, "bus": -1, "slot": -1, "function": -1 });
    let mut disk = json!({
        "pci-controller": unknown,
        "bus-type": if told.device.starts_with("vd") { "virtio" } else { "unknown" },
        "bus": 0, "target": 0, "unit": 0,
        "dev": format!("/dev/{}", told.device),
    });
    if let (Some(serial), Value::Object(fields)) = (filesystems::serial(&told.device), &mut disk) {
        fields.insert("serial".to_owned(), serial.into());
    }
    json!({
        "name": told.device, "mountpoint": told.mountpoint, "type": told.kind,
        "used-bytes": told.used, "total-bytes": told.used + told.available,
        "total-bytes-privileged": told.total,
        "disk": [disk],
    })
}

/// Each of them once, by the first login.
fn logged_in() -> Value {
    let mut first: std::collections::BTreeMap<String, u64> = Default::default();
    for user in users::all() {
        let since = first.entry(user.name).or_insert(user.since_ms);
        *since = user.since_ms.min(*since);
    }
    let told = first
        .into_iter()
        .map(|(user, since_ms)| json!({ "user": user, "login-time": since_ms as f64 / 1000.0 }));
    told.collect()
}
