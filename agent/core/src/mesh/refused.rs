use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Refusal, RowKey};

/// Refused rows that are remembered by name. What a peer says beyond them is counted.
const NAMED_MAX: usize = 1024;
/// Names in one line of the log.
const LOGGED_MAX: usize = 8;
/// The least time between two lines about one reason.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// What one cluster said and was not believed.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Rows that the peer says now.
    standing: BTreeMap<RowKey, Refusal>,
    reasons: [Reason; Refusal::ALL.len()],
}

#[derive(Debug, Default)]
struct Reason {
    total: u64,
    /// Rows beyond [`NAMED_MAX`], since the last list began.
    unnamed: u64,
    example: String,
    /// Not logged yet.
    fresh: u64,
    names: Vec<String>,
    logged: Option<Instant>,
}

/// Rows of one cluster that are refused for one reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RefusalReport {
    pub reason: Refusal,
    /// Of those that the peer says now.
    pub rows: u64,
    /// Refusals since the mesh server started; a row that is said again is refused again.
    pub total: u64,
    /// The one that came last.
    pub example: String,
}

impl RefusalReport {
    /// One for each reason, of what two sides refused of one cluster: neither saw the rows that the other refused.
    pub(super) fn merge(mut theirs: Vec<Self>, ours: Vec<Self>) -> Vec<Self> {
        for our in ours {
            let Some(their) = theirs.iter_mut().find(|their| their.reason == our.reason) else {
                theirs.push(our);
                continue;
            };
            if our.rows > 0 || their.rows == 0 {
                their.example = our.example;
            }
            their.rows = their.rows.saturating_add(our.rows);
            their.total = their.total.saturating_add(our.total);
        }
        theirs
    }
}

impl Refused {
    pub(super) fn note(&mut self, reason: Refusal, key: &RowKey, detail: Option<&str>) {
        let name = match detail {
            Some(detail) => format!("{key} ({detail})"),
            None => key.to_string(),
        };
        self.note_unnamed(reason, 1, name);
        if self.standing.len() < NAMED_MAX || self.standing.contains_key(key) {
            self.standing.insert(key.clone(), reason);
        } else {
            self.reasons[reason as usize].unnamed += 1;
        }
    }

    /// Rows without a name that we could follow.
    pub(super) fn note_unnamed(&mut self, reason: Refusal, rows: u64, example: String) {
        let reason = &mut self.reasons[reason as usize];
        reason.total += rows;
        reason.fresh += rows;
        if reason.names.len() < LOGGED_MAX {
            reason.names.push(example.clone());
        }
        reason.example = example;
    }

    /// The row is accepted, or gone.
    pub(super) fn clear(&mut self, key: &RowKey) {
        if !self.standing.is_empty() {
            self.standing.remove(key);
        }
    }

    /// A list begins, which says again whatever is still said.
    pub(super) fn begin_list(&mut self) {
        self.standing.clear();
        for reason in &mut self.reasons {
            reason.unnamed = 0;
        }
    }

    /// Nothing that the peer says now is refused.
    pub(super) fn is_empty(&self) -> bool {
        self.standing.is_empty() && self.reasons.iter().all(|reason| reason.unnamed == 0)
    }

    /// Of those that the peer says now.
    fn rows(&self, reason: Refusal) -> u64 {
        let named = self.standing.values().filter(|why| **why == reason);
        named.count() as u64 + self.reasons[reason as usize].unnamed
    }

    /// Rows that a quota keeps out.
    pub(super) fn by_quota(&self) -> u64 {
        let quotas = Refusal::ALL.into_iter().filter(|reason| reason.is_quota());
        quotas.map(|reason| self.rows(reason)).sum()
    }

    pub(super) fn total(&self) -> u64 {
        self.reasons.iter().map(|reason| reason.total).sum()
    }

    pub(super) fn report(&self) -> Vec<RefusalReport> {
        let seen = Refusal::ALL
            .into_iter()
            .zip(&self.reasons)
            .filter(|(_, seen)| seen.total > 0);
        let report = |(reason, seen): (Refusal, &Reason)| RefusalReport {
            reason,
            rows: self.rows(reason),
            total: seen.total,
            example: seen.example.clone(),
        };
        seen.map(report).collect()
    }

    /// What should be logged now: reason, rows, and some of their names.
    pub(super) fn take_log(&mut self, now: Instant) -> Vec<(Refusal, u64, Vec<String>)> {
        let due = Refusal::ALL
            .into_iter()
            .zip(&mut self.reasons)
            .filter(|(_, seen)| {
                let paused = |logged| now.saturating_duration_since(logged) < LOG_PAUSE;
                seen.fresh > 0 && !seen.logged.is_some_and(paused)
            });
        due.map(|(reason, seen)| {
            seen.logged = Some(now);
            let rows = std::mem::take(&mut seen.fresh);
            (reason, rows, std::mem::take(&mut seen.names))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::simulation::endpoint;

    fn key(n: u32) -> RowKey {
        RowKey::of(&endpoint("a", n, true))
    }

    #[test]
    fn what_is_refused_is_counted_named_and_bounded() {
        let mut refused = Refused::default();
        assert!(refused.is_empty() && refused.report().is_empty());
        refused.note(Refusal::OutsideAddress, &key(1), None);
        refused.note(Refusal::OutsideAddress, &key(1), None);
        refused.note(Refusal::Malformed, &key(2), Some("port"));
        refused.note_unnamed(Refusal::ForeignCluster, 7, "cluster id 3".to_owned());
        let report = |reason, rows, total, example: &str| RefusalReport {
            reason,
            rows,
            total,
            example: example.to_owned(),
        };
        assert_eq!(
            refused.report(),
            [
                report(Refusal::ForeignCluster, 0, 7, "cluster id 3"),
                report(Refusal::Malformed, 1, 1, "endpoint 10.0.0.2 of n/a (port)"),
                report(Refusal::OutsideAddress, 1, 2, "endpoint 10.0.0.1 of n/a"),
            ]
        );
        refused.clear(&key(1));
        refused.clear(&key(2));
        assert!(refused.is_empty());
        assert_eq!((refused.total(), refused.by_quota()), (10, 0));
        for n in 0..2000 {
            refused.note(Refusal::TooManyRows, &key(n), None);
        }
        assert_eq!(refused.standing.len(), NAMED_MAX);
        assert_eq!(refused.by_quota(), 2000);
        refused.begin_list();
        assert!(refused.is_empty());
    }

    #[test]
    fn what_two_sides_refuse_for_one_reason_is_one_report() {
        let report = |reason, rows, total, example: &str| RefusalReport {
            reason,
            rows,
            total,
            example: example.to_owned(),
        };
        let theirs = vec![
            report(Refusal::ForeignCluster, 1, 1, "f"),
            report(Refusal::Malformed, 2, 5, "theirs"),
        ];
        let ours = vec![
            report(Refusal::Malformed, 1, 3, "ours"),
            report(Refusal::OutsideAddress, 0, 1, "o"),
        ];
        assert_eq!(
            RefusalReport::merge(theirs.clone(), ours),
            [
                report(Refusal::ForeignCluster, 1, 1, "f"),
                report(Refusal::Malformed, 3, 8, "ours"),
                report(Refusal::OutsideAddress, 0, 1, "o"),
            ]
        );
        let past = vec![report(Refusal::Malformed, 0, 3, "ours")];
        let merged = RefusalReport::merge(theirs, past);
        assert_eq!(merged[1], report(Refusal::Malformed, 2, 8, "theirs"));
    }

    #[test]
    fn the_log_is_told_at_once_and_then_rarely() {
        let mut refused = Refused::default();
        let start = Instant::now();
        refused.note(Refusal::OutsideAddress, &key(1), None);
        let log = refused.take_log(start);
        let name = "endpoint 10.0.0.1 of n/a".to_owned();
        assert_eq!(log, [(Refusal::OutsideAddress, 1, vec![name])]);
        assert_eq!(refused.take_log(start), []);
        for n in 0..20 {
            refused.note(Refusal::OutsideAddress, &key(n), None);
        }
        assert_eq!(refused.take_log(start + LOG_PAUSE / 2), []);
        refused.note(Refusal::Malformed, &key(2), None);
        assert_eq!(refused.take_log(start + LOG_PAUSE / 2).len(), 1);
        let log = refused.take_log(start + LOG_PAUSE);
        assert_eq!((log[0].1, log[0].2.len()), (20, LOGGED_MAX));
    }
}
