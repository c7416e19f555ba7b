//! The document, its metadata, and the spec's own fields.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::documents::{self, Beside};
use super::error::Invalid;
use super::kubernetes::ForPod;
use super::machine::{Chassis, HugePages, KernelBoot, Machine, RebootPolicy};
use super::object::{Field, Object, Problems};
use super::{credentials, devices, schema, volumes, yaml};
use crate::hex::hex;
use crate::topology::{MAX_VCPUS, Topology};

/// `DefaultGracePeriodSeconds` of KubeVirt's API.
const GRACE_SECONDS: u32 = 30;
const PAGE: u64 = 4096;
/// What one text of SMBIOS may be long.
const MAX_TOLD: usize = 255;

pub(super) const API_VERSIONS: [&str; 3] = [
    "kubevirt.io/v1",
    "kubevirt.io/v1alpha3",
    "kubevirt.io/v1alpha2",
];
pub(super) const KINDS: [&str; 2] = ["VirtualMachineInstance", "VirtualMachine"];

/// A manifest that was understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it asks for.
    pub machine: Machine,
    /// What its author may have meant otherwise, a sentence each.
    pub warnings: Vec<String>,
}

/// Name, namespace, and what is for the pod.
type Meta = (String, String, ForPod);

/// Reads a manifest; `file` is only named in the problems.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Parsed, Invalid> {
    let invalid = |problems| Invalid {
        file: file.to_owned(),
        problems,
    };
    let documents = yaml::parse(bytes).map_err(|problem| invalid(vec![problem]))?;
    if documents.is_empty() {
        return Err(invalid(vec![yaml::whole("the file is empty".to_owned())]));
    }
    let mut problems = Problems::new();
    let mut warnings = Vec::new();
    let sorted = documents::sort(&documents, &mut problems);
    let machine = sorted.and_then(|(document, beside)| {
        warnings.extend(beside.warning());
        document_of(&document, &beside, &mut problems, &mut warnings)
    });
    problems.sort_by_key(|p| (p.line, p.column));
    match machine {
        Some(machine) if problems.is_empty() => Ok(Parsed { machine, warnings }),
        _ => Err(invalid(problems)),
    }
}

fn document_of(
    root: &Field,
    beside: &Beside,
    p: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<Machine> {
    let before = p.len();
    let mut vmi = root.object(p, schema::VMI)?;
    let version = one_of(&mut vmi, "apiVersion", &API_VERSIONS, p);
    let kind = version.and_then(|_| one_of(&mut vmi, "kind", &KINDS, p));
    let Some(kind) = kind else {
        // Another kind of object has other fields.
        let why = p.pop();
        p.truncate(before);
        p.extend(why);
        return None;
    };
    // An unknown field at the top is most likely another kind of file.
    if p.len() > before && vmi.names().all(|n| n != "spec") {
        return None;
    }
    let meta = metadata(&vmi.need(p, "metadata")?, p)?;
    let spec = vmi.need(p, "spec")?;
    vmi.ignore(&["status"]);
    vmi.finish(p);
    if kind == Some("VirtualMachine") {
        let (spec, meta) = template(&spec, meta, p, warnings)?;
        return spec_of(&spec, meta, beside, p, warnings);
    }
    spec_of(&spec, meta, beside, p, warnings)
}

/// The text of field `name`, which has to be one of `known`; another text is another kind of file,
/// which has other fields: `None` then, for one line is enough.
fn one_of<'a>(
    object: &mut Object<'a>,
    name: &str,
    known: &[&str],
    p: &mut Problems,
) -> Option<Option<&'a str>> {
    let Some(field) = object.need(p, name) else {
        return Some(None);
    };
    let text = field.string(p);
    if let Some(text) = text
        && !known.contains(&text)
    {
        let known = known.join(", ");
        field.problem(p, format!("`{text}` is not supported, only {known}"));
        return None;
    }
    Some(text)
}

/// The VMI's own spec in a VirtualMachine, and the VM's name with the VMI's labels.
fn template<'a>(
    field: &Field<'a>,
    (name, namespace, _): Meta,
    p: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<(Field<'a>, Meta)> {
    let mut vm = field.object(p, schema::VM_SPEC)?;
    if let Some(field) = vm.take("running")
        && !field.boolean(p)?
    {
        warnings.push("`running` is false; it is started all the same".to_owned());
    }
    if let Some(field) = vm.take("runStrategy") {
        match field.string(p)? {
            "Always" | "RerunOnFailure" | "Once" => {}
            strategy @ ("Halted" | "Manual" | "WaitAsReceiver") => {
                let warning = format!("`runStrategy` is {strategy}; it is started all the same");
                warnings.push(warning);
            }
            _ => field.problem(p, "must be Always, RerunOnFailure, Once, Manual or Halted"),
        }
    }
    vm.ignore(&["updateVolumesStrategy"]);
    if vm.take("dataVolumeTemplates").is_some() {
        let warning = "`dataVolumeTemplates` are left to CDI; their claims have to be there";
        warnings.push(warning.to_owned());
    }
    let template = vm.need(p, "template");
    vm.finish(p);
    let mut template = template?.object(p, schema::TEMPLATE)?;
    let for_pod = match template.take("metadata") {
        Some(field) => ForPod::metadata(&mut field.object(p, schema::METADATA)?, p),
        None => ForPod::default(),
    };
    let spec = template.need(p, "spec")?;
    Some((spec, (name, namespace, for_pod)))
}

fn metadata(field: &Field, p: &mut Problems) -> Option<Meta> {
    let mut meta = field.object(p, schema::METADATA)?;
    let name = meta.need(p, "name").and_then(|f| label(&f, p, 253));
    let namespace = match meta.take("namespace") {
        Some(field) => label(&field, p, 63)?,
        None => "default".to_owned(),
    };
    let for_pod = ForPod::metadata(&mut meta, p);
    Some((name?, namespace, for_pod))
}

/// A DNS name (RFC 1123), as Kubernetes wants names: what ends up in paths and in the guest's
/// /etc/hostname must not surprise anybody.
fn label(field: &Field, p: &mut Problems, max: usize) -> Option<String> {
    let text = field.string(p)?;
    let good = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let dots = max > 63;
    if text.len() > max || !text.split('.').all(good) || (!dots && text.contains('.')) {
        field.problem(
            p,
            format!("`{}` is not a DNS name in lower case", text.escape_debug()),
        );
        return None;
    }
    Some(text.to_owned())
}

fn spec_of(
    field: &Field,
    (name, namespace, mut for_pod): Meta,
    beside: &Beside,
    p: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<Machine> {
    let mut spec = field.object(p, schema::SPEC)?;
    for_pod.take(&mut spec, p);
    eviction(&mut spec, p, warnings);
    spec.accept_str("architecture", &["", "amd64"]);
    let hostname = spec.take("hostname").and_then(|f| label(&f, p, 63));
    let subdomain = spec.take("subdomain").and_then(|f| label(&f, p, 63));
    let grace = spec
        .take("terminationGracePeriodSeconds")
        .and_then(|f| f.integer(p, 0, u32::MAX))
        .unwrap_or(GRACE_SECONDS);
    let mut volumes = volumes::read(spec.take("volumes").as_ref(), beside, p);
    let credentials = credentials::read(spec.take("accessCredentials"), beside, p);
    volumes::credentials(&mut volumes, credentials, p);
    let networks = devices::networks(spec.take("networks").as_ref(), p);
    let domain = spec.need(p, "domain");
    spec.finish(p);

    let mut domain = domain?.object(p, schema::DOMAIN)?;
    // Each disk has a thread of its own.
    domain.ignore(&["ioThreads", "ioThreadsPolicy"]);
    let (cpu_request, memory_request, memory_limit) = domain
        .take("resources")
        .map(|f| resources(&f, p))
        .unwrap_or_default();
    let topology = topology(&mut domain, cpu_request, p);
    let memory = memory(
        domain.take("memory").as_ref(),
        memory_request,
        memory_limit,
        p,
    );
    if memory.is_none() && domain.field().path == "spec.domain" && p.is_empty() {
        domain.field().problem(
            p,
            "`memory.guest` is required (or a memory request in `resources`)",
        );
    }
    let reboot_policy = domain
        .take("rebootPolicy")
        .and_then(|f| match f.string(p)? {
            "Reboot" => Some(RebootPolicy::Reboot),
            "Terminate" => Some(RebootPolicy::Terminate),
            _ => {
                f.problem(p, "must be Reboot or Terminate");
                None
            }
        });
    let firmware = domain.take("firmware").map(|f| firmware(&f, p));
    let firmware = firmware.unwrap_or_default();
    let chassis = domain.take("chassis").and_then(|f| chassis(&f, p));
    platform(&mut domain, p);
    let devices = domain.need(p, "devices");
    domain.finish(p);
    let devices = devices::read(&devices?, volumes, networks, p, warnings)?;

    let (memory, huge_pages) = memory?;
    Some(Machine {
        serial: firmware.serial,
        chassis: chassis.unwrap_or_default(),
        uuid: firmware
            .uuid
            .unwrap_or_else(|| derived_uuid(&namespace, &name)),
        // A name may have dots, a host name may not: KubeVirt takes what is before the first.
        hostname: hostname.unwrap_or_else(|| name.split('.').next().unwrap_or_default().to_owned()),
        name,
        namespace,
        topology: topology?,
        memory,
        huge_pages,
        disks: devices.disks,
        interface: devices.interface,
        subdomain,
        termination_grace: Duration::from_secs(grace.into()),
        reboot_policy: reboot_policy.unwrap_or(RebootPolicy::Reboot),
        kernel_boot: firmware.kernel_boot,
        efi: firmware.efi,
        rng: devices.rng,
        // The node keeps huge pages for the VM, whether it has them or not.
        balloon: devices.balloon && huge_pages.is_none(),
        block_multi_queue: devices.block_multi_queue,
        watchdog: devices.watchdog,
        for_pod,
    })
}

/// A VM stays where it is: whoever wants it moved is told what comes instead.
fn eviction(spec: &mut Object, p: &mut Problems, warnings: &mut Vec<String>) {
    let Some(field) = spec.take("evictionStrategy") else {
        return;
    };
    match field.string(p) {
        Some("LiveMigrate") => warnings.push(
            "`evictionStrategy` is LiveMigrate; a drain of the node shuts the guest down"
                .to_owned(),
        ),
        Some("None" | "LiveMigrateIfPossible" | "External" | "") | None => {}
        Some(_) => field.problem(
            p,
            "must be None, LiveMigrate, LiveMigrateIfPossible or External",
        ),
    }
}

/// CPUs asked for, memory asked for, memory's limit.
fn resources(field: &Field, p: &mut Problems) -> (Option<u64>, Option<u64>, Option<u64>) {
    let Some(mut resources) = field.object(p, schema::RESOURCES) else {
        return (None, None, None);
    };
    // How much the scheduler sets aside for us: a control plane's matter.
    resources.ignore(&["overcommitGuestOverhead"]);
    let mut list = |name: &str| {
        let mut object = resources.take(name)?.object(p, schema::RESOURCE_LIST)?;
        let cpu = object.take("cpu").and_then(|f| f.quantity(p));
        Some((cpu, object.take("memory").and_then(|f| f.quantity(p))))
    };
    let (request_cpu, request_memory) = list("requests").unwrap_or_default();
    let (limit_cpu, limit_memory) = list("limits").unwrap_or_default();
    resources.finish(p);
    (
        limit_cpu.or(request_cpu),
        request_memory.or(limit_memory),
        limit_memory,
    )
}

/// `domain.cpu`, of which nothing but the counts matters; `asked` where it has none.
fn counts(cpu: &Field, asked: Topology, p: &mut Problems) -> Option<Topology> {
    let mut cpu = cpu.object(p, schema::CPU)?;
    let mut given = false;
    let mut count = |name| {
        let Some(field) = cpu.take(name) else {
            return Some(1);
        };
        given = true;
        u8::try_from(field.integer(p, 1, MAX_VCPUS)?).ok()
    };
    let (sockets, cores, threads) = (count("sockets"), count("cores"), count("threads"));
    let topology = Topology {
        sockets: sockets?,
        cores: cores?,
        threads: threads?,
    };
    // Room for hotplug that nobody has asked to use; KubeVirt's defaulting writes it.
    cpu.ignore(&["maxSockets"]);
    cpu.accept_str("model", &["", "host-model", "host-passthrough"]);
    cpu.accept_bool("dedicatedCpuPlacement", false);
    cpu.accept_bool("isolateEmulatorThread", false);
    cpu.finish(p);
    Some(if given { topology } else { asked })
}

/// The topology; as KubeVirt has it, without one a socket for each CPU that the resources ask for.
fn topology(domain: &mut Object, asked: Option<u64>, p: &mut Problems) -> Option<Topology> {
    let cpu = domain.take("cpu");
    let asked = Topology {
        sockets: u8::try_from(asked.unwrap_or(1).max(1)).unwrap_or(u8::MAX),
        ..Topology::ONE
    };
    let topology = match &cpu {
        Some(cpu) => counts(cpu, asked, p)?,
        None => asked,
    };
    if topology.vcpus() > MAX_VCPUS {
        let field = cpu.as_ref().unwrap_or(domain.field());
        field.problem(p, format!("more than {MAX_VCPUS} vCPUs are asked for"));
        return None;
    }
    Some(topology)
}

fn memory(
    field: Option<&Field>,
    request: Option<u64>,
    limit: Option<u64>,
    p: &mut Problems,
) -> Option<(u64, Option<HugePages>)> {
    let (mut guest, mut huge_pages) = (request, None);
    if let Some(field) = field {
        let mut memory = field.object(p, schema::MEMORY)?;
        let max = memory
            .take("maxGuest")
            .and_then(|f| f.quantity(p).map(|max| (f, max)));
        if let Some(field) = memory.take("guest") {
            guest = Some(field.quantity(p)?);
            if limit.is_some_and(|limit| guest > Some(limit)) {
                field.problem(p, "is more than resources.limits.memory");
            }
            if guest == Some(0) {
                field.problem(p, "must not be 0");
            }
        }
        if let Some((field, max)) = max
            && guest > Some(max)
        {
            field.problem(p, "is less than memory.guest");
        }
        if let Some(field) = memory.take("hugepages") {
            huge_pages = self::huge_pages(&field, guest, p);
        }
        memory.finish(p);
    }
    // KVM maps whole pages; QEMU rounds as well.
    let bytes = guest.map(|bytes| bytes - bytes % PAGE);
    Some((bytes.filter(|bytes| *bytes > 0)?, huge_pages))
}

fn huge_pages(field: &Field, guest: Option<u64>, p: &mut Problems) -> Option<HugePages> {
    let mut object = field.object(p, schema::HUGEPAGES)?;
    let size = object.need(p, "pageSize");
    object.finish(p);
    let size = size?;
    let Some(pages) = HugePages::of(size.quantity(p)?) else {
        size.problem(p, "must be 2Mi or 1Gi");
        return None;
    };
    if guest.is_some_and(|guest| !guest.is_multiple_of(pages.bytes())) {
        size.problem(p, "the guest's memory is no multiple of it");
    }
    Some(pages)
}

/// machine, features, clock: accepted where they ask for what is so anyway.
fn platform(domain: &mut super::object::Object, p: &mut Problems) {
    if let Some(field) = domain.take("machine")
        && let Some(mut machine) = field.object(p, schema::MACHINE)
        && let Some(kind) = machine.take("type")
        && let Some(name) = kind.string(p)
        && !(name.is_empty() || name == "q35" || name.starts_with("pc-q35-"))
    {
        kind.problem(
            p,
            format!("`{}` is not supported, only q35", name.escape_debug()),
        );
    }
    if let Some(field) = domain.take("features")
        && let Some(mut features) = field.object(p, schema::FEATURES)
    {
        features.accept_state("acpi", "enabled", true);
        features.accept_state("apic", "enabled", true);
        for absent in ["smm", "pvspinlock", "hypervPassthrough"] {
            features.accept_state(absent, "enabled", false);
        }
        features.accept_state("kvm", "hidden", false);
        features.finish(p);
    }
    if let Some(field) = domain.take("clock")
        && let Some(mut clock) = field.object(p, schema::CLOCK)
    {
        if let Some(utc) = clock.take("utc").and_then(|f| f.object(p, schema::UTC)) {
            utc.finish(p);
        }
        if let Some(mut timer) = clock.take("timer").and_then(|f| f.object(p, schema::TIMER)) {
            timer.accept_state("kvm", "present", true);
            for absent in ["hpet", "pit", "hyperv"] {
                timer.accept_state(absent, "present", false);
            }
            timer.finish(p);
        }
        clock.finish(p);
    }
}

#[derive(Default)]
struct Firmware {
    uuid: Option<String>,
    serial: Option<String>,
    kernel_boot: Option<KernelBoot>,
    efi: bool,
}

fn firmware(field: &Field, p: &mut Problems) -> Firmware {
    let Some(mut firmware) = field.object(p, schema::FIRMWARE) else {
        return Firmware::default();
    };
    let serial = firmware.take("serial").and_then(|f| told(&f, p));
    let uuid = firmware.take("uuid").and_then(|f| {
        let text = f.string(p)?.to_ascii_lowercase();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let hex = text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
        if groups == [8, 4, 4, 4, 12] && hex {
            return Some(text);
        }
        f.problem(p, "not a UUID");
        None
    });
    let efi = firmware
        .take("bootloader")
        .is_some_and(|f| bootloader(&f, p));
    let kernel_boot = firmware.take("kernelBoot").and_then(|f| kernel_boot(&f, p));
    firmware.finish(p);
    Firmware {
        uuid,
        serial,
        kernel_boot,
        efi,
    }
}

/// Whether it is UEFI's.
fn bootloader(field: &Field, p: &mut Problems) -> bool {
    let Some(mut bootloader) = field.object(p, schema::BOOTLOADER) else {
        return false;
    };
    let efi = bootloader.take("efi");
    // What a BIOS would start is found and booted.
    if bootloader.take("bios").is_some() && efi.is_some() {
        field.problem(p, "has both `bios` and `efi`: leave one out");
    }
    bootloader.finish(p);
    let Some(mut efi) = efi.and_then(|f| f.object(p, schema::EFI)) else {
        return false;
    };
    // As in KubeVirt it is on where nothing is said.
    let secure = efi.take("secureBoot");
    if secure.as_ref().is_none_or(|f| f.boolean(p) == Some(true)) {
        let place = secure.as_ref().unwrap_or(efi.field());
        place.problem(p, "set `secureBoot: false`: there is no Secure Boot");
    }
    efi.accept_bool("persistent", false);
    efi.finish(p);
    true
}

fn chassis(field: &Field, p: &mut Problems) -> Option<Chassis> {
    let mut chassis = field.object(p, schema::CHASSIS)?;
    let mut text = |name: &str| {
        let text = chassis.take(name).and_then(|f| told(&f, p));
        text.unwrap_or_default()
    };
    let read = Chassis {
        manufacturer: text("manufacturer"),
        version: text("version"),
        serial: text("serial"),
        asset: text("asset"),
        sku: text("sku"),
    };
    chassis.finish(p);
    Some(read)
}

/// A text that SMBIOS tells the guest.
fn told(field: &Field, p: &mut Problems) -> Option<String> {
    let text = field.string(p)?;
    if text.len() <= MAX_TOLD && text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Some(text.to_owned());
    }
    let wanted = format!("must be at most {MAX_TOLD} printable ASCII characters");
    field.problem(p, wanted);
    None
}

fn kernel_boot(field: &Field, p: &mut Problems) -> Option<KernelBoot> {
    let mut boot = field.object(p, schema::KERNEL_BOOT)?;
    let arguments = boot
        .take("kernelArgs")
        .and_then(|f| f.string(p).map(str::to_owned));
    let container = boot.need(p, "container");
    boot.finish(p);
    let mut container = container?.object(p, schema::KERNEL_BOOT_CONTAINER)?;
    container.ignore(&["imagePullPolicy", "imagePullSecret"]);
    let image = volumes::filled(&mut container, "image", p);
    let kernel = volumes::filled(&mut container, "kernelPath", p);
    let initrd = container
        .take("initrdPath")
        .and_then(|f| f.string(p).map(str::to_owned));
    container.finish(p);
    Some(KernelBoot {
        image: image?,
        kernel: kernel?,
        initrd: initrd.filter(|path| !path.is_empty()),
        arguments: arguments.unwrap_or_default(),
    })
}

/// A stable UUID for a namespace and name: version 8 (RFC 9562, 5.8), from their SHA-256.
fn derived_uuid(namespace: &str, name: &str) -> String {
    let digest = Sha256::digest(format!("peapod vmi {namespace}/{name}"));
    let hex = hex(&digest);
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    let variant = ["8", "9", "a", "b"]
        .get(usize::from(digest.get(8).copied().unwrap_or(0) & 3))
        .copied()
        .unwrap_or("8");
    format!(
        "{}-{}-8{}-{variant}{}-{}",
        part(0, 8),
        part(8, 12),
        part(13, 16),
        part(17, 20),
        part(20, 32)
    )
}
