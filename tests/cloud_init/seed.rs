//! Seeds: what a guest is given, and what is known of the outcome.
//!
//! A file of `seeds/` holds many. `### NAME WORD...` begins one; `--- FILE` begins one of its files,
//! which has no slash where it is one of the seed's own, and else is put into the root before the
//! first boot, or before the second where `2:` stands before its name. What stands before the first
//! `---` is the user-data. A WORD may begin with the release of Debian that alone it is of.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Where a NoCloud seed may lie in a root.
const FOLDER: &str = "var/lib/cloud/seed/nocloud";
const META_DATA: &str = "instance-id: i-1\nlocal-hostname: box\n";

/// A seed.
#[derive(Debug, Clone, Default)]
pub struct Seed {
    /// What it is called.
    pub name: String,
    /// By boot, from 1: the files that are put into the root before it.
    files: BTreeMap<u32, BTreeMap<String, Vec<u8>>>,
    /// How often the guest boots.
    pub boots: u32,
    /// The passwords that hashes may be of.
    pub passwords: Vec<String>,
    /// Paths that are known to differ; docs/cloud-init.md has the reason.
    pub differs: Vec<String>,
    /// Whether the agent has to report an error where cloud-init does not.
    pub refused: bool,
    /// Whether cloud-init reports one where the agent must not.
    pub better: bool,
}

impl Seed {
    /// One with this user-data.
    pub fn new(name: &str, user_data: &[u8]) -> Self {
        let mut seed = Self {
            name: name.to_owned(),
            boots: 1,
            ..Self::default()
        };
        seed.put(1, "meta-data", META_DATA.as_bytes().to_vec());
        seed.put(1, "user-data", user_data.to_vec());
        seed
    }

    fn put(&mut self, boot: u32, name: &str, bytes: Vec<u8>) {
        let path = match name.strip_prefix('/') {
            Some(path) => path.to_owned(),
            None => format!("{FOLDER}/{name}"),
        };
        self.boots = self.boots.max(boot);
        self.files.entry(boot).or_default().insert(path, bytes);
    }

    /// Puts the files of one boot below `root`.
    pub fn place(&self, boot: u32, root: &Path) {
        for (path, bytes) in self.files.get(&boot).into_iter().flatten() {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// What the files hold, for a person.
    pub fn text(&self) -> String {
        let files = self.files.values().flatten();
        files
            .map(|(path, bytes)| format!("--- {path}\n{}\n", String::from_utf8_lossy(bytes)))
            .collect()
    }
}

/// Every seed that lies in `folder`.
pub fn read_folder(folder: &Path, release: &str) -> Vec<Seed> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
        .iter()
        .flat_map(|file| {
            let group = file.file_stem().unwrap().to_string_lossy().into_owned();
            parse(&group, &fs::read_to_string(file).unwrap(), release)
        })
        .collect()
}

fn parse(group: &str, text: &str, release: &str) -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    let mut place = (1, "user-data".to_owned());
    let mut gzip = Vec::new();
    let mut bytes = String::new();
    let finish =
        |bytes: &mut String, seeds: &mut Vec<Seed>, place: &(u32, String), gzip: &[String]| {
            let bytes = std::mem::take(bytes);
            if let Some(seed) = seeds.last_mut()
                && !bytes.is_empty()
            {
                let bytes = match gzip.contains(&place.1) {
                    true => compress(bytes.as_bytes()),
                    false => bytes.into_bytes(),
                };
                seed.put(place.0, &place.1, bytes);
            }
        };
    // One more line ends the last file.
    for line in text.split_inclusive('\n').chain(["### "]) {
        if let Some(header) = line.strip_prefix("### ") {
            finish(&mut bytes, &mut seeds, &place, &gzip);
            gzip.clear();
            let mut words = header.split_whitespace();
            let Some(name) = words.next() else { break };
            let mut seed = Seed::new(&format!("{group}/{name}"), b"");
            let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
            for word in words {
                // `12:refused` is so in that release only.
                let word = match word.split_once(':') {
                    Some((of, word)) if of == release => word,
                    Some((of, _)) if of.parse::<u32>().is_ok() => continue,
                    _ => word,
                };
                match word.split_once('=').unwrap_or((word, "")) {
                    ("boots", value) => seed.boots = value.parse().unwrap(),
                    ("passwords", value) => seed.passwords = list(value),
                    ("differs", value) => seed.differs.extend(list(value)),
                    ("gzip", value) => gzip = list(value),
                    ("refused", _) => seed.refused = true,
                    ("better", _) => seed.better = true,
                    _ => panic!("{group}: {word:?} in {header:?}"),
                }
            }
            seeds.push(seed);
            place = (1, "user-data".to_owned());
        } else if let Some(name) = line.strip_prefix("--- ") {
            finish(&mut bytes, &mut seeds, &place, &gzip);
            let (boot, name) = match name.trim().split_once(':') {
                Some((boot, name)) => (boot.parse().unwrap(), name),
                None => (1, name.trim()),
            };
            place = (boot, name.to_owned());
        } else if !seeds.is_empty() {
            bytes.push_str(line);
        }
    }
    seeds
}

fn compress(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
