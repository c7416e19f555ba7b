//! What of this host will work: each check is a line, ok or missing, with what to do about it.

mod host_checks;
mod kvm;
mod probe;

use std::fmt;

use serde::Serialize;

use netdev::config::Forward;

/// Whether a thing is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is, and works.
    Ok,
    /// It is not, or does not work.
    Missing,
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A word that stays the same: scripts look for it.
    pub name: String,
    /// Whether it is there.
    pub status: Status,
    /// `peapod run` cannot do without it.
    pub needed: bool,
    /// What was seen.
    pub detail: String,
    /// What to do, where something can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Check {
    fn ok(name: &str, needed: bool, detail: impl Into<String>) -> Self {
        let (name, detail) = (name.to_owned(), detail.into());
        Self {
            name,
            status: Status::Ok,
            needed,
            detail,
            advice: None,
        }
    }

    fn missing(name: &str, needed: bool, detail: impl Into<String>, advice: Option<&str>) -> Self {
        let advice = advice.map(str::to_owned);
        Self {
            status: Status::Missing,
            advice,
            ..Self::ok(name, needed, detail)
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = match (self.status, self.needed) {
            (Status::Ok, _) => "ok",
            (Status::Missing, true) => "missing",
            (Status::Missing, false) => "absent",
        };
        write!(f, "{status:<8} {:<12} {}", self.name, self.detail)?;
        match &self.advice {
            Some(advice) => write!(f, " -> {advice}"),
            None if self.status == Status::Missing && !self.needed => f.write_str(" (not needed)"),
            None => Ok(()),
        }
    }
}

/// All lines.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// All that is needed is there.
    pub ok: bool,
    /// In the order in which they are worth reading.
    pub checks: Vec<Check>,
}

/// Examines the host, and whether these ports are free on it.
pub fn examine(forwards: &[Forward]) -> Report {
    let mut checks = vec![kvm::check()];
    checks.extend(host_checks::all());
    checks.extend(forwards.iter().map(host_checks::port));
    Report {
        ok: checks.iter().all(|c| !c.needed || c.status == Status::Ok),
        checks,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_has_a_line_for_each_thing_and_agrees_with_itself() {
        let report = examine(&[]);
        let names: Vec<_> = report.checks.iter().map(|c| c.name.as_str()).collect();
        for name in [
            "kvm",
            "memory",
            "descriptors",
            "seccomp",
            "landlock",
            "userns",
            "vhost-net",
        ] {
            assert!(names.contains(&name), "{names:?}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][0]["name"], "kvm");
        let bad = report
            .checks
            .iter()
            .any(|c| c.needed && c.status == Status::Missing);
        assert_eq!(report.ok, !bad);
    }

    #[test]
    fn a_line_says_what_to_do() {
        let line = Check::missing("kvm", true, "no /dev/kvm", Some("load kvm_amd")).to_string();
        assert_eq!(line, "missing  kvm          no /dev/kvm -> load kvm_amd");
        let line = Check::missing("vhost-net", false, "no device", None).to_string();
        assert_eq!(line, "absent   vhost-net    no device (not needed)");
    }
}
