//! `make compare`: what the benchmarks have written, as one page of HTML that needs nothing else.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use peapod_tests::bench::Record;
use serde::Serialize;
use serde_json::json;

/// Each benchmark's file, what it is about, and what repeats it.
const BENCHMARKS: [(&str, &str, &str); 9] = [
    ("boot", "Boot, and memory beyond the guest's", "make bench"),
    (
        "start",
        "A start, on a clock of instructions",
        "ci/bench start",
    ),
    ("block", "A guest's disk", "ci/bench block"),
    ("agent", "User-data, beside cloud-init", "ci/bench agent"),
    ("pod", "What a pod costs beyond its guest", "ci/bench pod"),
    ("size", "What has to be pulled", "ci/bench size"),
    ("net-vm", "A VM's network", "make bench-net-vm"),
    ("mesh", "Requests through the mesh", "make bench-mesh"),
    ("net", "The network alone, without a VM", "make bench-net"),
];
/// Less of these is better; of all others more is.
const COSTS: [&str; 9] = [
    "s", "ms", "us", "MiB", "KiB", "s/GiB", "CPU-us", "wakes/s", "% CPU",
];

#[derive(Serialize)]
struct Section {
    title: &'static str,
    command: &'static str,
    machine: String,
    /// Days since it was measured.
    age: u64,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    record: Record,
    /// How many times better ours is.
    better: f64,
    /// Of ours and the peer's, as parts of the larger.
    bars: [f64; 2],
}

impl Row {
    fn new(record: Record) -> Self {
        let larger = record.ours.max(record.peer).max(f64::MIN_POSITIVE);
        let cost = COSTS.contains(&&*record.unit);
        Self {
            better: if cost {
                1.0 / record.ratio
            } else {
                record.ratio
            },
            bars: [record.ours, record.peer].map(|figure| (figure / larger * 100.0).max(0.0)),
            record,
        }
    }
}

/// With as many digits as it deserves.
fn told(figure: Option<f64>) -> String {
    let Some(figure) = figure.filter(|figure| figure.is_finite()) else {
        return "-".to_owned();
    };
    let digits = match figure.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{figure:.digits$}")
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

fn section(
    directory: &Path,
    (name, title, command): (&str, &'static str, &'static str),
) -> Option<Section> {
    let path = directory.join(format!("{name}.json"));
    let text = fs::read(&path).ok()?;
    let records: Vec<Record> =
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let age = fs::metadata(&path).and_then(|file| file.modified()).ok()?;
    let age = SystemTime::now().duration_since(age).unwrap_or_default();
    Some(Section {
        title,
        command,
        machine: records.first()?.machine.clone(),
        age: age.as_secs() / (24 * 60 * 60),
        rows: records.into_iter().map(Row::new).collect(),
    })
}

fn page(sections: &[Section]) -> String {
    let lost: Vec<&Row> = sections
        .iter()
        .flat_map(|section| &section.rows)
        .filter(|row| row.better < 1.0)
        .collect();
    let missed: Vec<&Row> = sections
        .iter()
        .flat_map(|section| &section.rows)
        .filter(|row| row.record.met == Some(false))
        .collect();
    let page = json!({ "sections": sections, "lost": lost, "missed": missed });
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("told", told);
    environment.add_filter("percent", percent);
    let template = environment.template_from_str(include_str!("report.html"));
    template
        .and_then(|template| template.render(Serde(&page)))
        .expect("the template")
}

fn main() {
    let directory =
        std::env::var_os("PEAPOD_BENCH").expect("PEAPOD_BENCH is not set: run `make compare`");
    let directory = Path::new(&directory);
    let sections: Vec<Section> = BENCHMARKS
        .into_iter()
        .filter_map(|benchmark| section(directory, benchmark))
        .collect();
    assert!(
        !sections.is_empty(),
        "{}: nothing was measured",
        directory.display()
    );
    let path = directory.join("report.html");
    fs::write(&path, page(&sections)).unwrap();
    println!("{}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, unit: &str, ours: f64, peer: f64) -> Record {
        Record::new(name, unit, &[ours], ("a <peer>", &[peer]), None)
    }

    #[test]
    fn a_cost_that_is_higher_and_a_rate_that_is_lower_are_where_we_lose() {
        let rows = [
            record("memory", "MiB", 4.0, 94.0),
            record("boot", "s", 2.0, 1.0),
            record("upload", "Mbit/s", 10.0, 20.0),
        ];
        let section = Section {
            title: "All",
            command: "make bench",
            machine: "here".to_owned(),
            age: 0,
            rows: rows.map(Row::new).into(),
        };
        let page = page(&[section]);
        let (_, lost) = page.split_once("Where we lose").unwrap();
        let (lost, _) = lost.split_once("</section>").unwrap();
        assert!(lost.contains("boot") && lost.contains("upload"), "{lost}");
        assert!(!lost.contains("memory"), "{lost}");
        assert!(page.contains("a &lt;peer&gt;"));
    }

    #[test]
    fn a_peer_that_could_not_do_it_has_no_figure() {
        let text = serde_json::to_string(&record("idle", "us", 4.0, f64::NAN)).unwrap();
        assert!(text.contains("\"peer\":null"), "{text}");
        let read: Record = serde_json::from_str(&text).unwrap();
        let section = Section {
            title: "All",
            command: "make bench",
            machine: "here".to_owned(),
            age: 0,
            rows: vec![Row::new(read)],
        };
        let page = page(&[section]);
        let (_, row) = page.split_once("idle").unwrap();
        assert!(row.contains(">- <small>"), "{row}");
    }

    #[test]
    fn a_figure_has_three_digits_or_so() {
        assert_eq!(
            [1234.5, 12.34, 4.444, 0.1234, f64::NAN].map(|figure| told(Some(figure))),
            ["1234", "12.3", "4.44", "0.123", "-"]
        );
    }
}
