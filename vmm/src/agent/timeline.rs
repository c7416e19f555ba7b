//! When the guest's set-up came how far, over all of its agents: the one in the initramfs goes, and
//! another comes as a service.

use std::time::{Duration, SystemTime};

use guest_agent::protocol::StageState;

use super::{STAGES, Stage};

/// Two for each stage, and the agents' own.
const MARKS: usize = 2 * STAGES;

/// What was heard, in its order; of a guest that says more only its beginning.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    marks: Vec<Stage>,
    /// When the guest's clock was at 0: the earliest that what it said leads to, for nothing is heard
    /// before it is said.
    epoch: Option<SystemTime>,
    /// When an agent spoke for the first time.
    pub first_word: Option<SystemTime>,
    /// When the set-up was over, in milliseconds of the guest's uptime.
    ready_ms: Option<u64>,
}

/// A stage as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// When it began, where its agent said so.
    pub start: Option<SystemTime>,
    /// When it was over.
    pub end: SystemTime,
    /// Why it failed, where it did.
    pub failure: Option<String>,
}

impl Timeline {
    /// An agent speaks.
    pub(super) fn hello(&mut self, now: SystemTime) {
        self.first_word.get_or_insert(now);
    }

    /// A stage came so far.
    pub(super) fn stage(&mut self, stage: &Stage, now: SystemTime) {
        self.heard(stage.uptime_ms, now);
        if self.marks.len() < MARKS {
            self.marks.push(stage.clone());
        }
    }

    /// The set-up is over.
    pub(super) fn ready(&mut self, uptime_ms: u64, now: SystemTime) {
        self.heard(uptime_ms, now);
        self.ready_ms.get_or_insert(uptime_ms);
    }

    fn heard(&mut self, uptime_ms: u64, now: SystemTime) {
        // A guest may say that it has been up since before there was time.
        if let Some(epoch) = now.checked_sub(Duration::from_millis(uptime_ms)) {
            self.epoch = Some(self.epoch.map_or(epoch, |known| known.min(epoch)));
        }
    }

    fn at(&self, uptime_ms: u64) -> Option<SystemTime> {
        self.epoch?.checked_add(Duration::from_millis(uptime_ms))
    }

    /// When the set-up was over, by the host's clock.
    pub fn ready_at(&self) -> Option<SystemTime> {
        self.at(self.ready_ms?)
    }

    /// The stages that are over, by the host's clock.
    pub fn spans(&self) -> Vec<Span> {
        let mut spans = Vec::new();
        for (index, mark) in self.marks.iter().enumerate() {
            let failure = match mark.state {
                StageState::Done => None,
                StageState::Failed => Some(mark.detail.clone().unwrap_or_default()),
                _ => continue,
            };
            let Some(end) = self.at(mark.uptime_ms) else {
                continue;
            };
            let is_its_start =
                |before: &&Stage| before.name == mark.name && before.state == StageState::Started;
            let before = self.marks.get(..index).unwrap_or_default();
            let began = before.iter().rfind(is_its_start);
            // One that ended before it began is the guest's word too.
            let start = began.and_then(|began| self.at(began.uptime_ms.min(mark.uptime_ms)));
            spans.push(Span {
                name: mark.name.clone(),
                start,
                end,
                failure,
            });
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_times_are_the_host_s_by_what_was_heard_soonest() {
        let epoch = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let after = |ms| epoch + Duration::from_millis(ms);
        let mut timeline = Timeline::default();
        let mut stage = |name: &str, state, uptime_ms, late| {
            let stage = Stage {
                name: name.to_owned(),
                state,
                uptime_ms,
                detail: Some("why".to_owned()),
            };
            timeline.stage(&stage, after(uptime_ms + late));
        };
        stage("root", StageState::Done, 100, 7);
        stage("user-data", StageState::Started, 200, 0);
        stage("user-data", StageState::Failed, 300, 3);
        for _ in 0..MARKS {
            stage("more", StageState::Started, u64::MAX, 0);
        }
        timeline.ready(400, after(400));
        assert_eq!(timeline.ready_at(), Some(after(400)));
        let span = |name: &str, start, end, failure| Span {
            name: name.to_owned(),
            start,
            end: after(end),
            failure,
        };
        let failure = Some("why".to_owned());
        assert_eq!(
            timeline.spans(),
            [
                span("root", None, 100, None),
                span("user-data", Some(after(200)), 300, failure)
            ]
        );
    }
}
