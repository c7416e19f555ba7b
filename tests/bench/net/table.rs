//! The figures: a table of all contenders', and the records of ours beside a peer's.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use peapod_tests::bench::{Mark, Record, machine, median, report, spread};

use crate::site::Contender;

/// What ours is held against.
#[derive(Debug, Clone, Copy)]
pub enum Against {
    One(Contender, Option<Mark>),
    /// Whichever has the higher median.
    BetterOf([Contender; 2], Mark),
    /// A number.
    Goal(f64, Mark),
}

/// One figure of every contender, a value a round.
pub struct Row {
    name: String,
    unit: &'static str,
    against: Vec<Against>,
    series: BTreeMap<Contender, Vec<f64>>,
}

#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Row {
    pub fn new(name: &str, unit: &'static str, against: &[Against]) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            against: against.to_vec(),
            series: BTreeMap::new(),
        }
    }

    /// What ours is held against, of what was measured.
    fn records(&self) -> Vec<Record> {
        let Some(ours) = self.series.get(&Contender::Ours) else {
            return Vec::new();
        };
        let record = |name: &str, peer: &[f64], mark| {
            Record::new(&self.name, self.unit, ours, (name, peer), mark)
        };
        let median_of = |peer: &Contender| self.series.get(peer).map_or(f64::NAN, |s| median(s));
        let records = self.against.iter().filter_map(|against| {
            let (peer, mark) = match *against {
                Against::One(peer, mark) => (peer, mark),
                Against::BetterOf([a, b], mark) => {
                    let peer = if median_of(&b) > median_of(&a) { b } else { a };
                    (peer, Some(mark))
                }
                Against::Goal(goal, mark) => {
                    let goal = vec![goal; ours.len()];
                    return Some(record("the goal", &goal, Some(mark)));
                }
            };
            let series = self.series.get(&peer)?;
            Some(record(&peer.name(), series, mark))
        });
        records.collect()
    }
}

/// The median with no more digits than it deserves, and the spread.
fn told(series: &[f64]) -> String {
    let (median, spread) = (median(series), spread(series) * 100.0);
    let digits = if median < 1000.0 { 3 } else { 0 };
    if spread.is_finite() {
        format!("{median:.digits$} ({spread:.0} %)")
    } else {
        format!("{median:.digits$}")
    }
}

impl Table {
    /// Adds a round's figures of one contender to the rows that they are of, and says them.
    pub fn add(&mut self, contender: Contender, rows: Vec<Row>, figures: &[f64]) {
        let name = contender.name();
        for (row, figure) in rows.into_iter().zip(figures) {
            eprintln!(
                "    {name:<12} {:<44} {figure:>12.3} {}",
                row.name, row.unit
            );
            let index = self.rows.iter().position(|known| known.name == row.name);
            let index = index.unwrap_or_else(|| {
                self.rows.push(row);
                self.rows.len() - 1
            });
            self.rows[index]
                .series
                .entry(contender)
                .or_default()
                .push(*figure);
        }
    }

    /// Every contender's medians, each with its spread.
    pub fn print(&self, contenders: &[Contender]) {
        print!("{:<44} {:>6}", "", "unit");
        contenders.iter().for_each(|c| print!(" {:>20}", c.name()));
        println!();
        for row in &self.rows {
            print!("{:<44} {:>6}", row.name, row.unit);
            for contender in contenders {
                let cell = match row.series.get(contender).filter(|s| !median(s).is_nan()) {
                    Some(s) => told(s),
                    None => "-".to_owned(),
                };
                print!(" {cell:>20}");
            }
            println!();
        }
    }

    /// Writes every value, and where ours was there its records, to the directory.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let named = row
                    .series
                    .iter()
                    .map(|(contender, s)| (contender.name(), s));
                let series = named.collect::<BTreeMap<_, _>>();
                serde_json::json!({"name": row.name, "unit": row.unit, "series": series})
            })
            .collect();
        let all = serde_json::json!({"machine": machine(), "rows": rows});
        let path = directory.join("net-series.json");
        fs::write(&path, serde_json::to_vec_pretty(&all)?)?;
        println!("{}", path.display());
        let records: Vec<Record> = self.rows.iter().flat_map(Row::records).collect();
        if records.is_empty() {
            return Ok(());
        }
        report(directory, "net", &records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_held_against_the_better_of_two_and_against_a_goal() {
        let better = [Contender::Pasta, Contender::Slirp4netns];
        let against = [
            Against::BetterOf(better, Mark::AtLeast(1.2)),
            Against::Goal(3.0, Mark::AtMost(1.0)),
            // Not measured, so not told.
            Against::One(Contender::Veth, None),
        ];
        let mut table = Table::default();
        for (contender, figure) in [
            (Contender::Ours, 3.0),
            (Contender::Pasta, 1.0),
            (Contender::Slirp4netns, 2.0),
        ] {
            let row = Row::new("TCP", "Gbit/s", &against);
            table.add(contender, vec![row], &[figure]);
        }
        let [row] = &table.rows[..] else {
            panic!("one row");
        };
        let records = row.records();
        let told = records
            .iter()
            .map(|r| (r.peer_name.as_str(), r.ratio, r.met));
        let expected = [
            ("slirp4netns", 1.5, Some(true)),
            ("the goal", 1.0, Some(true)),
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
    }
}
