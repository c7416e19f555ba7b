//! `mounts` and `swap`

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::os::CloudInit;
use crate::userdata::command::{Program, has_systemd};
use crate::userdata::context::Context;
use crate::userdata::files;
use crate::yaml::{Node, Value};

const MODULE: &str = "mounts";
const FSTAB: &str = "/etc/fstab";
/// What marks a line as made here.
const MARK: &str = "comment=cloudconfig";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A line of fstab(5).
type Line = [String; 6];

/// Puts what is asked for into fstab, and mounts it.
pub fn run(context: &Context) -> Result<(), String> {
    let text = fs::read_to_string(FSTAB).unwrap_or_default();
    let (old, kept): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains(MARK));
    let known: Vec<&str> = kept
        .iter()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let mut lines = asked(context, &known)?;
    for [_, _, _, options, ..] in &mut lines {
        options.push_str(&format!(",{MARK}"));
    }
    if let Some(swap) = context.get("swap")
        && let Some(file) = make_swap(swap)?
        && !known.contains(&&*file)
    {
        let options = match context.os.cloud_init {
            CloudInit::V22 => format!("sw,{MARK}"),
            CloudInit::V25 => "sw".to_owned(),
        };
        let words = [&*file, "none", "swap", &options, "0", "0"];
        lines.push(words.map(str::to_owned));
    }
    if lines.is_empty() {
        return Ok(());
    }
    let failed = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let mut new = Vec::new();
    let mut swap = false;
    for line in lines {
        let [_, place, kind, ..] = &line;
        swap |= kind == "swap";
        if place.starts_with('/') {
            fs::create_dir_all(place).map_err(|error| failed(place, error))?;
        }
        new.push(line.join("\t"));
    }
    let mut all: Vec<&str> = kept;
    all.extend(new.iter().map(|line| &**line));
    let text = format!("{}\n", all.join("\n"));
    files::write(Path::new(FSTAB), text.as_bytes(), 0o644).map_err(|error| failed(FSTAB, error))?;
    let changed = old != new;
    let mut commands: Vec<&[&str]> = Vec::new();
    if swap {
        commands.push(&["swapon", "-a"]);
    }
    if changed {
        commands.push(&["mount", "-a"]);
        if has_systemd() {
            commands.push(&["systemctl", "daemon-reload"]);
        }
    }
    for command in commands {
        if let Err(why) = Program::new(command).run() {
            context.failed(MODULE, &format!("{}: {why}", command.join(" ")));
        }
    }
    Ok(())
}

/// The lines that the configuration asks for, every field of them.
fn asked(context: &Context, known: &[&str]) -> Result<Vec<Line>, String> {
    let options = match has_systemd() {
        true => "defaults,nofail,_netdev",
        false => "defaults,nobootwait",
    };
    let mut defaults: Vec<Option<String>> = [
        None,
        None,
        Some("auto"),
        Some(options),
        Some("0"),
        Some("2"),
    ]
    .map(|word| word.map(str::to_owned))
    .to_vec();
    if let Some(fields) = context.get("mount_default_fields").and_then(Node::list) {
        for (slot, node) in defaults.iter_mut().zip(fields) {
            *slot = node.scalar();
        }
    }
    let Some(node) = context.get("mounts") else {
        return Ok(Vec::new());
    };
    let items = node
        .list()
        .ok_or_else(|| node.wrong(MODULE, format!("a list of lists, not {}", node.kind())))?;
    let mut lines: Vec<[Option<String>; 6]> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let fail = |why: &str| context.failed(MODULE, &item.wrong(&format!("{MODULE}[{at}]"), why));
        let Some(words) = item.list() else {
            fail(&format!("a list, not {}", item.kind()));
            continue;
        };
        let mut line = [const { None }; 6];
        for (slot, node) in line.iter_mut().zip(words) {
            *slot = node.scalar();
        }
        let Some(device) = line.first_mut().and_then(Option::take) else {
            fail("it has no device");
            continue;
        };
        let Some(device) = device_of(&device, context.get("device_aliases")) else {
            fail(&format!("there is no device {device}"));
            continue;
        };
        if known.contains(&&*device) {
            continue;
        }
        let [first, place, ..] = &mut line;
        *first = Some(device.clone());
        // No place takes back what was said of the device before.
        if place.is_none() && words.len() > 1 {
            lines.retain(|line| line.first() != Some(&Some(device.clone())));
            continue;
        }
        for (slot, default) in line.iter_mut().zip(&defaults) {
            if slot.is_none() {
                slot.clone_from(default);
            }
        }
        let [_, place, ..] = &line;
        if place.is_some() {
            lines.push(line);
        }
    }
    let whole = |line: [Option<String>; 6]| line.map(Option::unwrap_or_default);
    Ok(lines.into_iter().map(whole).collect())
}

/// What fstab calls a device: `sdb` and `sdb.1` are short for paths, `HOST:PATH` is on a network.
fn device_of(name: &str, aliases: Option<&Node>) -> Option<String> {
    if name.contains(':') {
        return Some(name.to_owned());
    }
    let (mut path, partition) = match name.rsplit_once('.') {
        Some((device, number))
            if number.chars().all(|c| c.is_ascii_digit()) && !number.is_empty() =>
        {
            (device.to_owned(), Some(number))
        }
        _ => (name.to_owned(), None),
    };
    if let Some(alias) = aliases
        .and_then(|aliases| aliases.get(&path))
        .and_then(Node::scalar)
    {
        path = alias;
    }
    if is_short(&path) {
        path = format!("/dev/{path}");
    }
    let of_partition = |number: &str| {
        let names = [
            format!("{path}{number}"),
            format!("{path}p{number}"),
            format!("{path}-part{number}"),
        ];
        names.into_iter().find(|name| is_block(name))
    };
    match partition {
        Some(number) => of_partition(number),
        None => of_partition("1").or_else(|| is_block(&path).then_some(path.clone())),
    }
}

fn is_short(name: &str) -> bool {
    let rest = name.strip_prefix('x').unwrap_or(name);
    ["sd", "hd", "vd"].iter().any(|start| {
        let rest = rest.strip_prefix(start).unwrap_or_default();
        rest.starts_with(|c: char| c.is_ascii_lowercase())
            && rest.chars().skip(1).all(|c| c.is_ascii_digit())
    }) || name
        .strip_prefix("sr")
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit()))
}

fn is_block(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

/// Makes the swap file; its path.
fn make_swap(swap: &Node) -> Result<Option<String>, String> {
    let file = swap.get("filename").and_then(Node::scalar);
    let file = file.unwrap_or_else(|| "/swap.img".to_owned());
    let path = Path::new(&file);
    let Some(wanted) = swap.get("size").filter(|size| size.is_something()) else {
        return Ok(None);
    };
    let maximum = swap.get("maxsize").map(bytes).transpose()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    if path.exists() {
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        if swaps
            .lines()
            .any(|line| line.starts_with(&format!("{file} ")))
        {
            return Ok(Some(file));
        }
    }
    let size = match wanted.text() {
        Some(text) if text.eq_ignore_ascii_case("auto") => suggested(folder, maximum)?,
        _ => bytes(wanted)?,
    };
    let size = size / MIB;
    if size == 0 {
        return Ok(None);
    }
    let made = Program::new(&["fallocate", "-l", &format!("{size}M"), &file])
        .run()
        .or_else(|_| {
            Program::new(&[
                "dd",
                "if=/dev/zero",
                &format!("of={file}"),
                "bs=1M",
                &format!("count={size}"),
            ])
            .run()
        })
        .and_then(|()| {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))
                .map_err(|error| error.to_string())
        })
        .and_then(|()| Program::new(&["mkswap", &file]).run());
    if let Err(why) = made {
        let _ = fs::remove_file(path);
        return Err(swap.wrong("swap", why));
    }
    Ok(Some(file))
}

/// A size: a number of bytes, or with K, M, G or T.
fn bytes(node: &Node) -> Result<u64, String> {
    let wrong = || {
        node.wrong(
            "swap",
            "a size is a number of bytes, or one with K, M, G or T",
        )
    };
    if let Value::Int(number) = node.value {
        return number.try_into().map_err(|_| wrong());
    }
    let text = node.scalar().unwrap_or_default().to_uppercase();
    let text = text.strip_suffix('B').unwrap_or(&text);
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            (text.get(..at).unwrap_or_default(), unit)
        }
        _ => (text, ' '),
    };
    let unit: u64 = match unit {
        ' ' => 1,
        'K' => 1 << 10,
        'M' => MIB,
        'G' => GIB,
        'T' => 1 << 40,
        _ => return Err(wrong()),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    // A size beyond 64 bits stays at their end.
    Ok((number * unit as f64) as u64)
}

/// How much swap suits the memory and the disk, as cloud-init reckons.
fn suggested(folder: &Path, maximum: Option<u64>) -> Result<u64, String> {
    let info =
        fs::read_to_string("/proc/meminfo").map_err(|error| format!("/proc/meminfo: {error}"))?;
    let total = info.lines().find_map(|line| {
        let number = line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?;
        number.trim().parse::<u64>().ok()
    });
    let memory = total.unwrap_or(0) * 1024;
    let disk =
        rustix::fs::statvfs(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let free = disk.f_frsize.saturating_mul(disk.f_bfree);
    let maximum = match maximum {
        Some(maximum) => maximum.min(free / 10 * 9),
        None => (free / 4).min(memory * 2),
    };
    let wanted = if memory < 4 * GIB {
        memory
    } else if memory < 16 * GIB {
        4 * GIB
    } else {
        (memory / GIB).isqrt() * GIB
    };
    Ok(wanted.min(maximum))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    #[test]
    fn sizes_and_short_names_are_read() {
        for (text, expected) in [
            ("1024", 1024),
            ("'1K'", 1024),
            ("2M", 2 << 20),
            ("1.5GB", 3 << 29),
        ] {
            assert_eq!(
                bytes(&yaml::read("f", text).unwrap()),
                Ok(expected),
                "{text}"
            );
        }
        bytes(&yaml::read("f", "much").unwrap()).unwrap_err();
        for name in ["sda", "vdb1", "xvdc", "sr0"] {
            assert!(is_short(name), "{name}");
        }
        for name in ["/dev/sda", "tmpfs", "sd", "sr"] {
            assert!(!is_short(name), "{name}");
        }
        assert_eq!(device_of("host:/x", None).as_deref(), Some("host:/x"));
        assert_eq!(device_of("sdzz9", None), None);
    }
}
