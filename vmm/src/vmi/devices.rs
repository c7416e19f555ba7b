//! `spec.domain.devices` and `spec.networks`.

use std::str::FromStr;

use super::machine::{Binding, Cidrs, Disk, Interface, Port, Protocol, WatchdogAction};
use super::object::{Field, Object, Problems};
use super::schema;
use super::volumes::Volume;

/// VIRTIO 1.2, 5.2.6.1: VIRTIO_BLK_ID_BYTES.
const MAX_SERIAL: usize = 20;
/// Cards that KubeVirt's guests can have; a kernel that drives them drives virtio too.
const MODELS: [&str; 6] = ["e1000", "e1000e", "igb", "ne2k_pci", "pcnet", "rtl8139"];
/// The most disks: each has a PCI slot and a letter.
pub const MAX_DISKS: usize = 24;

/// What the devices section yields.
pub(super) struct Devices {
    pub(super) disks: Vec<Disk>,
    pub(super) interface: Option<Interface>,
    pub(super) rng: bool,
    pub(super) balloon: bool,
    pub(super) watchdog: Option<WatchdogAction>,
    pub(super) block_multi_queue: bool,
}

/// A network's name, its field, and its addresses.
pub(super) type Network<'a> = (String, Field<'a>, Cidrs);

/// Reads `spec.networks`.
pub(super) fn networks<'a>(field: Option<&Field<'a>>, p: &mut Problems) -> Vec<Network<'a>> {
    let mut names = Vec::new();
    for field in field.map(|f| f.list(p)).unwrap_or_default() {
        let Some(mut network) = field.object(p, schema::NETWORK) else {
            continue;
        };
        let name = network
            .need(p, "name")
            .and_then(|f| f.string(p).map(str::to_owned));
        let mut cidrs = Cidrs::default();
        if let Some(pod) = network.take("pod") {
            if let Some(mut pod) = pod.object(p, schema::POD_NETWORK) {
                let v4 = pod.take("vmNetworkCIDR");
                cidrs.v4 = v4.and_then(|f| cidr(&f, 32, p)).unwrap_or(cidrs.v4);
                let v6 = pod.take("vmIPv6NetworkCIDR");
                cidrs.v6 = v6.and_then(|f| cidr(&f, 128, p)).unwrap_or(cidrs.v6);
                pod.finish(p);
            }
        } else if network.names().next().is_none() {
            field.problem(p, "has no source: `pod: {}` is what is supported");
        }
        network.finish(p);
        names.extend(name.map(|name| (name, field, cidrs)));
    }
    names
}

/// An address of `bits` bits and a prefix, in which there is room for a gateway and a guest; nothing
/// where the text is empty, as KubeVirt's default is.
fn cidr<A: FromStr>(field: &Field, bits: u8, p: &mut Problems) -> Option<(A, u8)> {
    let text = field.string(p).filter(|text| !text.is_empty())?;
    let parts = text.split_once('/');
    let read = parts.and_then(|(address, prefix)| {
        let prefix = prefix.parse().ok().filter(|prefix| *prefix + 2 <= bits)?;
        Some((address.parse().ok()?, prefix))
    });
    if read.is_none() {
        let example = if bits == 32 {
            "10.0.2.0/24"
        } else {
            "fd10:0:2::/120"
        };
        let most = bits - 2;
        let message =
            format!("not a network such as {example}, of a prefix of at most {most} bits");
        field.problem(p, message);
    }
    read
}

/// Reads the devices section.
pub(super) fn read(
    field: &Field,
    volumes: Vec<Volume>,
    networks: Vec<Network>,
    p: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<Devices> {
    let mut devices = field.object(p, schema::DEVICES)?;
    let disks = disks(devices.take("disks").as_ref(), volumes, p, warnings);
    let rng = devices
        .take("rng")
        .and_then(|f| f.object(p, schema::EMPTY))
        .is_some();
    let mut switch = |name, untold| {
        let told = devices.take(name).and_then(|f| f.boolean(p));
        told.unwrap_or(untold)
    };
    let autoattach = switch("autoattachPodInterface", true);
    let balloon = switch("autoattachMemBalloon", true);
    let block_multi_queue = switch("blockMultiQueue", false);
    if switch("networkInterfaceMultiqueue", false) {
        warnings
            .push("the interface has one pair of queues, whatever the number of CPUs".to_owned());
    }
    let interfaces = devices.take("interfaces");
    let watchdog = devices.take("watchdog").and_then(|f| watchdog(&f, p));
    accept_what_is_so(&mut devices);
    devices.finish(p);

    let list = interfaces.map(|f| f.list(p)).unwrap_or_default();
    if let Some(second) = list.get(1) {
        second.problem(
            p,
            "a second interface is not supported; the pod's network is what there is",
        );
    }
    let interface = match list.first() {
        Some(field) => interface(field, &networks, p, warnings),
        None if autoattach => Some(Interface {
            name: "default".to_owned(),
            binding: Binding::Masquerade,
            cidrs: Cidrs::default(),
            mac: None,
            ports: Vec::new(),
        }),
        None => None,
    };
    if let (Some(field), Some(interface)) = (list.first(), &interface)
        && !networks.iter().any(|(name, ..)| *name == interface.name)
    {
        field.problem(
            p,
            format!("`spec.networks` has no network named `{}`", interface.name),
        );
    }
    for (name, field, _) in &networks {
        let used = interface.as_ref().is_some_and(|i| i.name == *name);
        if !used && list.len() <= 1 && !(list.len() == 1 && interface.is_none()) {
            field.problem(p, format!("no interface is named `{name}`"));
        }
    }
    Some(Devices {
        disks,
        interface,
        rng,
        balloon,
        watchdog,
        block_multi_queue,
    })
}

/// Switches whose value describes the machine as it is: no graphics, no input, a serial console
/// always.
fn accept_what_is_so(devices: &mut Object) {
    for (name, so) in [
        ("autoattachGraphicsDevice", false),
        ("autoattachInputDevice", false),
        ("autoattachSerialConsole", true),
        ("autoattachVSOCK", false),
        ("useVirtioTransitional", false),
    ] {
        devices.accept_bool(name, so);
    }
    // Hotplug is asked for by the control plane alone; the console's log goes to its container.
    devices.ignore(&["disableHotplug", "logSerialConsole"]);
    devices.accept_state("tpm", "enabled", false);
}

/// Reads `devices.watchdog`; KubeVirt's default is to reset.
fn watchdog(field: &Field, p: &mut Problems) -> Option<WatchdogAction> {
    let mut watchdog = field.object(p, schema::WATCHDOG)?;
    watchdog.need(p, "name").and_then(|f| f.string(p));
    let device = watchdog.need(p, "i6300esb");
    watchdog.finish(p);
    let mut device = device?.object(p, schema::I6300ESB)?;
    let action = device.take("action");
    device.finish(p);
    let Some(action) = action else {
        return Some(WatchdogAction::Reset);
    };
    match action.string(p)? {
        "reset" | "" => Some(WatchdogAction::Reset),
        "poweroff" => Some(WatchdogAction::PowerOff),
        "shutdown" => Some(WatchdogAction::Shutdown),
        _ => {
            action.problem(p, "must be reset, poweroff or shutdown");
            None
        }
    }
}

fn disks(
    field: Option<&Field>,
    mut volumes: Vec<Volume>,
    p: &mut Problems,
    warnings: &mut Vec<String>,
) -> Vec<Disk> {
    let mut disks: Vec<Disk> = Vec::new();
    let mut used = Vec::new();
    for field in field.map(|f| f.list(p)).unwrap_or_default() {
        let Some(mut disk) = field.object(p, schema::DISK) else {
            continue;
        };
        let name = disk.need(p, "name").and_then(|f| f.string(p));
        // Since v1alpha3 a disk and its volume have one name.
        let volume_name = disk.take("volumeName").and_then(|f| f.string(p)).or(name);
        let boot_order = disk
            .take("bootOrder")
            .and_then(|f| f.integer(p, 1, u32::MAX));
        let serial = disk.take("serial").and_then(|f| serial(&f, p));
        let shown = name.unwrap_or_default();
        let mut readonly = None;
        if let Some(field) = disk.take("disk")
            && let Some(mut target) = field.object(p, schema::DISK_TARGET)
        {
            bus(&mut target, shown, p, warnings);
            readonly = target.take("readonly").and_then(|f| f.boolean(p));
            target.finish(p);
        }
        if let Some(field) = disk.take("cdrom")
            && let Some(mut target) = field.object(p, schema::CDROM)
        {
            warnings.push(format!(
                "`{shown}` is a disk that is only read, not a CD drive"
            ));
            bus(&mut target, "", p, &mut Vec::new());
            target.accept_bool("readonly", true);
            target.accept_str("tray", &["", "closed"]);
            target.finish(p);
            readonly = Some(true);
        }
        // Each has a thread of its own.
        disk.ignore(&["dedicatedIOThread"]);
        disk.accept_bool("shareable", false);
        disk.accept_bool("changedBlockTracking", false);
        disk.accept_str("cache", &["", "writeback"]);
        let threads = disk.take("io").is_some_and(|field| match field.string(p) {
            Some("threads") => true,
            Some("" | "default") | None => false,
            Some(_) => {
                field.problem(
                    p,
                    "must be threads or default: no cache of the host's is gone round",
                );
                false
            }
        });
        disk.accept_str("errorPolicy", &["report"]);
        disk.accept_str("tag", &[""]);
        disk.finish(p);
        let (Some(name), Some(volume_name)) = (name, volume_name) else {
            continue;
        };
        if disks.len() == MAX_DISKS {
            too_many(&field, p);
            break;
        }
        if disks.iter().any(|d| d.name == name) {
            field.problem(p, format!("a second disk is named `{name}`"));
            continue;
        }
        if boot_order.is_some() && disks.iter().any(|d| d.boot_order == boot_order) {
            field.problem(p, "another disk has the same bootOrder");
        }
        let Some(i) = volumes.iter().position(|v| v.name == volume_name) else {
            let message = if used.contains(&volume_name) {
                format!("another disk has the volume `{volume_name}`")
            } else {
                format!("`spec.volumes` has no volume named `{volume_name}`")
            };
            field.problem(p, message);
            continue;
        };
        let volume = volumes.remove(i);
        used.push(volume_name);
        let readonly = volume.source.is_readonly() || readonly.unwrap_or(false);
        disks.push(Disk {
            name: name.to_owned(),
            source: volume.source,
            readonly,
            serial,
            threads,
            boot_order,
        });
    }
    // As KubeVirt's defaulting does: a volume that no disk names becomes a disk.
    for volume in volumes {
        if disks.len() == MAX_DISKS {
            too_many(&volume.field, p);
            break;
        }
        let readonly = volume.source.is_readonly();
        disks.push(Disk {
            name: volume.name,
            source: volume.source,
            readonly,
            serial: None,
            boot_order: None,
            threads: false,
        });
    }
    disks
}

fn too_many(field: &Field, p: &mut Problems) {
    field.problem(p, format!("more than {MAX_DISKS} disks"));
}

/// Guests that KubeVirt gives SATA or SCSI find the same disk behind virtio.
fn bus(target: &mut Object, disk: &str, p: &mut Problems, warnings: &mut Vec<String>) {
    if let Some(bus) = target.take("bus")
        && let Some(name) = bus.string(p)
        && !["", "virtio"].contains(&name)
    {
        match name {
            "sata" | "scsi" | "usb" | "ide" => {
                warnings.push(format!("the bus of disk `{disk}` is virtio, not {name}"));
            }
            _ => bus.problem(p, "must be virtio, sata, scsi or usb"),
        }
    }
}

fn serial(field: &Field, p: &mut Problems) -> Option<String> {
    let text = field.string(p)?;
    if text.len() > MAX_SERIAL || !text.bytes().all(|b| b.is_ascii_graphic()) {
        field.problem(
            p,
            format!("must be at most {MAX_SERIAL} printable characters"),
        );
        return None;
    }
    Some(text.to_owned()).filter(|s| !s.is_empty())
}

fn interface(
    field: &Field,
    networks: &[Network],
    p: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<Interface> {
    let mut interface = field.object(p, schema::INTERFACE)?;
    let name = interface
        .need(p, "name")
        .and_then(|f| f.string(p).map(str::to_owned));
    let model = interface.take("model");
    let mac = interface.take("macAddress").and_then(|f| mac(&f, p));
    let ports = interface
        .take("ports")
        .map(|f| ports(&f, p))
        .unwrap_or_default();
    let masquerade = interface.take("masquerade");
    let slirp = interface.take("slirp");
    if let Some(model) = model
        && let Some(name) = model.string(p)
        && !["", "virtio"].contains(&name)
    {
        let name = name.escape_debug();
        if MODELS.contains(&name.to_string().as_str()) {
            warnings.push(format!("the interface's model is virtio, not {name}"));
        } else {
            model.problem(p, format!("`{name}` is not supported, only virtio"));
        }
    }
    let passt = passt(&mut interface, p);
    for binding in [&masquerade, &slirp].into_iter().flatten() {
        if let Some(binding) = binding.object(p, schema::EMPTY) {
            binding.finish(p);
        }
    }
    interface.accept_str("state", &["", "up"]);
    interface.accept_str("tag", &[""]);
    let other = ["bridge", "sriov", "macvtap"];
    let given: Vec<_> = [&masquerade, &slirp, &passt]
        .into_iter()
        .flatten()
        .collect();
    if let [_, second, ..] = given[..] {
        second.problem(p, "another binding is given as well");
    }
    let unbound = given.is_empty();
    let binding = match (&slirp, &passt) {
        (Some(_), _) => Binding::Slirp,
        (_, Some(_)) => Binding::Passt,
        _ => Binding::Masquerade,
    };
    let refused = interface.names().any(|n| other.contains(&n));
    interface.finish(p);
    let name = name?;
    let network = networks.iter().find(|(network, ..)| *network == name);
    let cidrs = network.map(|(.., cidrs)| *cidrs).unwrap_or_default();
    let whose = match binding {
        Binding::Masquerade => None,
        Binding::Slirp => Some("slirp has QEMU's"),
        Binding::Passt => Some("passt has the pod's own"),
    };
    if let (Some((_, field, _)), Some(whose)) = (network, whose)
        && cidrs != Cidrs::default()
    {
        field.problem(
            p,
            format!("{whose} addresses; use `masquerade: {{}}` with others"),
        );
    }
    if unbound && !refused {
        warnings.push(format!(
            "interface `{name}` has no binding: masquerade is used"
        ));
    }
    Some(Interface {
        name,
        binding,
        cidrs,
        mac,
        ports,
    })
}

/// passt, under each of its names: it is a network in user space, as ours is.
fn passt<'a>(interface: &mut Object<'a>, p: &mut Problems) -> Option<Field<'a>> {
    let plugin = interface.take("binding").filter(|field| {
        let name = field.object(p, schema::BINDING).and_then(|mut binding| {
            let name = binding.take("name")?.string(p);
            binding.finish(p);
            name
        });
        let is_passt = name == Some("passt");
        if !is_passt {
            field.problem(p, "not supported; use `masquerade: {}`");
        }
        is_passt
    });
    let own = interface.take("passt");
    let binding = interface.take("passtBinding").or(own);
    if let Some(binding) = binding.as_ref().and_then(|f| f.object(p, schema::EMPTY)) {
        binding.finish(p);
    }
    plugin.or(binding)
}

fn mac(field: &Field, p: &mut Problems) -> Option<[u8; 6]> {
    let text = field.string(p)?;
    let separator = if text.contains('-') { '-' } else { ':' };
    let bytes: Option<Vec<u8>> = text
        .split(separator)
        .map(|s| {
            (s.len() == 2)
                .then(|| u8::from_str_radix(s, 16).ok())
                .flatten()
        })
        .collect();
    let mac = bytes.and_then(|b| <[u8; 6]>::try_from(b).ok());
    match mac {
        Some([first, ..]) if first & 1 == 1 => {
            field.problem(p, "is a multicast address");
            None
        }
        None => {
            field.problem(p, "not a MAC address (such as 02:00:00:00:00:01)");
            None
        }
        mac => mac,
    }
}

fn ports(field: &Field, p: &mut Problems) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for field in field.list(p) {
        let Some(mut object) = field.object(p, schema::PORT) else {
            continue;
        };
        let name = object
            .take("name")
            .and_then(|f| f.string(p).map(str::to_owned));
        let protocol = match object.take("protocol") {
            None => Some(Protocol::Tcp),
            Some(f) => match f.string(p) {
                Some("TCP" | "") => Some(Protocol::Tcp),
                Some("UDP") => Some(Protocol::Udp),
                Some(_) => {
                    f.problem(p, "must be TCP or UDP");
                    None
                }
                None => None,
            },
        };
        let number = object.need(p, "port").and_then(|f| f.integer(p, 1, 65535));
        object.finish(p);
        let (Some(protocol), Some(number)) = (protocol, number) else {
            continue;
        };
        let Ok(port) = u16::try_from(number) else {
            continue;
        };
        if ports
            .iter()
            .any(|other| (other.port, other.protocol) == (port, protocol))
        {
            field.problem(p, format!("{port}/{protocol} is listed twice"));
        }
        ports.push(Port {
            name,
            port,
            protocol,
        });
    }
    ports
}
