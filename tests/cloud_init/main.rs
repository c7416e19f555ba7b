//! cloud-init as the judge of the agent: both get the same seed in the same root, and the two roots
//! that come out of it have to be the same, but for what docs/cloud-init.md lists with its reason.
//!
//! `ci/judge` runs it, as root, for each release of Debian: PEAPOD_JUDGE is a root of it with cloud-init,
//! PEAPOD_AGENT the agent.
//! PEAPOD_SEEDS chooses seeds by a part of their names.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod generate;
mod seed;
mod tree;

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use seed::Seed;
use tree::Tree;

/// How long one guest's set-up may take: a hang is a failure.
const PATIENCE: &str = "60";
/// What every root of the judge has besides: of what takes long, one of a kind, or nothing.
const SITE: &str = "datasource_list: [NoCloud]\nssh_genkeytypes: [ed25519]\nlocale: false\n\
    grub_dpkg: {enabled: false}\n";

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("cloud_init")
        .join(name)
}

fn given(name: &str) -> PathBuf {
    PathBuf::from(
        std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set; use ci/judge")),
    )
}

/// Paths of docs/cloud-init.md's table of differences, of this release: a star at the end stands for
/// anything.
fn listed(release: &str) -> Vec<String> {
    let path = here("../../docs/cloud-init.md");
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("| `/"))
        .filter_map(|rest| rest.split_once("` | "))
        .filter(|(_, rest)| {
            rest.starts_with("every |") || rest.starts_with(&format!("{release} |"))
        })
        .map(|(path, _)| path.to_owned())
        .collect()
}

/// Which release of Debian a root is of.
fn release(root: &Path) -> String {
    let text = fs::read_to_string(root.join("etc/os-release")).unwrap();
    let mut lines = text.lines();
    let version = lines.find_map(|line| line.strip_prefix("VERSION_ID="));
    version.unwrap().trim_matches('"').to_owned()
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = path.strip_prefix(parts.next().unwrap()) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        open = part.is_empty();
    }
    open || rest.is_empty()
}

/// What the two of a seed share.
struct Judge {
    root: PathBuf,
    agent: PathBuf,
    listed: Vec<String>,
    scratch: PathBuf,
}

impl Judge {
    /// Boots a root with the seed as often as it says.
    fn boot(&self, seed: &Seed, who: &str, command: &[&str]) -> (PathBuf, String) {
        let space = self.scratch.join(seed.name.replace('/', "-")).join(who);
        let upper = space.join("upper");
        fs::create_dir_all(upper.join("etc/cloud/cloud.cfg.d")).unwrap();
        fs::write(upper.join("etc/cloud/cloud.cfg.d/98-judge.cfg"), SITE).unwrap();
        fs::create_dir_all(upper.join("opt")).unwrap();
        for file in ["server.py", "stages.py"] {
            fs::copy(here(file), upper.join("opt").join(file)).unwrap();
        }
        fs::write(upper.join("opt/agent"), "").unwrap();
        let mut said = String::new();
        for boot in 1..=seed.boots {
            seed.place(boot, &upper);
            let output = Command::new("timeout")
                .args(["-k", "1", PATIENCE, "unshare", "-mpfuni", "bash"])
                .arg(here("boot.sh"))
                .arg(&self.root)
                .arg(&space)
                .arg(&self.agent)
                .args(command)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            said += &told(&output);
        }
        (upper, said)
    }

    /// What cloud-init makes of a seed: the same today as yesterday, so it is kept beside the root.
    fn judged(&self, seed: &Seed) -> (PathBuf, String) {
        let mut hasher = DefaultHasher::new();
        (seed.text(), seed.boots, SITE).hash(&mut hasher);
        for file in ["boot.sh", "server.py", "stages.py"] {
            fs::read(here(file)).unwrap().hash(&mut hasher);
        }
        let kept = self.root.with_extension("judged");
        let kept = kept.join(format!("{:016x}", hasher.finish()));
        if !kept.exists() {
            let (upper, said) = self.boot(seed, "cloud-init", &["python3", "/opt/stages.py"]);
            fs::create_dir_all(kept.parent().unwrap()).unwrap();
            fs::write(kept.with_extension("said"), said).unwrap();
            // What cannot be read is its own, and what can is kept whole or not at all.
            let new = kept.with_extension(std::process::id().to_string());
            let status = Command::new("cp").arg("-a").arg(&upper).arg(&new).status();
            assert!(status.unwrap().success());
            fs::rename(&new, &kept).unwrap();
        }
        (
            kept.clone(),
            fs::read_to_string(kept.with_extension("said")).unwrap(),
        )
    }

    /// What is wrong with a seed, and how often its boots differed where that is known.
    fn try_seed(&self, seed: &Seed) -> (Vec<String>, BTreeSet<String>) {
        let (judge, judge_said) = self.judged(seed);
        let (agent, agent_said) = self.boot(seed, "agent", &["/opt/agent", "apply"]);
        let tree = |upper| Tree {
            lower: &self.root,
            upper,
        };
        let (judge_upper, agent_upper) = (judge.clone(), agent.clone());
        let mut seen = BTreeSet::new();
        let mut wrong = Vec::new();
        for (path, difference) in tree::compare(&tree(judge), &tree(agent), seed) {
            let path = path.to_string_lossy();
            let known = self.listed.iter().find(|pattern| matches(pattern, &path));
            let own = |own: &&String| matches(own.trim_start_matches('/'), &path);
            match (known, seed.differs.iter().find(own)) {
                (Some(pattern), _) => drop(seen.insert(pattern.clone())),
                (_, Some(pattern)) => drop(seen.insert(format!("{}{pattern}", seed.name))),
                _ => wrong.push(format!("/{path}: {difference}")),
            }
        }
        let (theirs, ours) = (errors(&judge_upper), errors(&agent_upper));
        match ((theirs && !seed.better) || seed.refused, ours) {
            (false, true) => wrong.push("the agent reports an error".to_owned()),
            (true, false) => wrong.push("the agent reports no error".to_owned()),
            _ => {}
        }
        for pattern in &seed.differs {
            if !seen.contains(&format!("{}{pattern}", seed.name)) {
                wrong.push(format!("{pattern} is said to differ, and does not"));
            }
        }
        if std::env::var_os("PEAPOD_SHOW").is_some() {
            eprintln!("{}{judge_said}\n=====\n{agent_said}", seed.text());
        }
        let _ = fs::remove_dir_all(self.scratch.join(seed.name.replace('/', "-")));
        (wrong, seen)
    }
}

/// Whether a boot's status has an error.
fn errors(upper: &Path) -> bool {
    let text = fs::read_to_string(upper.join("var/lib/cloud/data/result.json")).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    !result["v1"]["errors"].as_array().unwrap().is_empty()
}

fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!(
        "{}{}{}\n",
        text(&output.stdout),
        text(&output.stderr),
        output.status
    )
}

#[test]
fn every_seed_ends_as_cloud_init_leaves_it() {
    let scratch = tempfile::tempdir().unwrap();
    let root = given("PEAPOD_JUDGE");
    let release = release(&root);
    let judge = Judge {
        agent: given("PEAPOD_AGENT"),
        listed: listed(&release),
        root,
        scratch: scratch.path().to_owned(),
    };
    let chosen = std::env::var("PEAPOD_SEEDS").unwrap_or_default();
    let mut seeds = seed::read_folder(&here("seeds"), &release);
    seeds.extend(generate::seeds());
    seeds.retain(|seed| chosen.split(',').any(|part| seed.name.contains(part)));
    assert!(!seeds.is_empty(), "no seed's name has {chosen:?} in it");
    let names: BTreeSet<&str> = seeds.iter().map(|seed| &*seed.name).collect();
    assert_eq!(names.len(), seeds.len(), "two seeds have the same name");

    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let outcome = Mutex::new((Vec::new(), BTreeSet::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (wrong, seen) = judge.try_seed(seed);
                    let mut outcome = outcome.lock().unwrap();
                    if !wrong.is_empty() {
                        outcome.0.push((seed.name.clone(), wrong));
                    }
                    outcome.1.extend(seen);
                }
            });
        }
    });
    let (mut wrong, seen) = outcome.into_inner().unwrap();
    wrong.sort();
    println!(
        "{} seeds, {} differ, {:.0?}",
        seeds.len(),
        wrong.len(),
        Duration::from_secs(start.elapsed().as_secs())
    );
    for (name, lines) in &wrong {
        println!("{name}");
        lines.iter().for_each(|line| println!("    {line}"));
    }
    if chosen.is_empty() {
        for pattern in &judge.listed {
            if !seen.contains(pattern) {
                wrong.push((pattern.clone(), Vec::new()));
                println!("/{pattern}: docs/cloud-init.md says that it differs; no seed does");
            }
        }
    }
    assert!(wrong.is_empty(), "{} seeds differ", wrong.len());
}

#[test]
fn every_network_config_is_written_as_cloud_init_writes_it() {
    let scratch = tempfile::tempdir().unwrap();
    let upper = scratch.path().join("upper");
    let configs = upper.join("opt/network");
    fs::create_dir_all(&configs).unwrap();
    let mut count = 0;
    for file in fs::read_dir(here("network")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), configs.join(file.file_name())).unwrap();
        count += 4;
    }
    fs::copy(here("network.py"), upper.join("opt/network.py")).unwrap();
    fs::write(upper.join("opt/agent"), "").unwrap();
    let output = Command::new("timeout")
        .args(["-k", "1", PATIENCE, "unshare", "-mpfuni", "bash"])
        .arg(here("boot.sh"))
        .arg(given("PEAPOD_JUDGE"))
        .arg(scratch.path())
        .arg(given("PEAPOD_AGENT"))
        .args(["python3", "/opt/network.py"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = told(&output);
    let end = format!("{count} compared\nexit status: 0\n");
    assert_eq!(said, end, "{said}");
    println!("{count} renderings of network-configs, none differs");
}
