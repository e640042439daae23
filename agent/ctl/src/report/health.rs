//! What programs hold of a backend, as lists and status show it.

use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use crate::text::Seconds;

#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub state: HealthState,
    /// Since it is so; of an ejected one, or one on trial, since its first ejection. Null if not known.
    pub since_seconds: Option<Seconds>,
    /// Until an ejected backend's next trial, 0 if it is due, or until a trial's time is over.
    pub until_seconds: Option<Seconds>,
    /// Ejections since the last success but one.
    pub doublings: u32,
    /// Connects that failed since it last returned, as far as the agent knows.
    pub failures: Failures,
    /// Clients to which alone it is closed for now: it failed them.
    pub closed_clients: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HealthState {
    Healthy,
    /// Connects failed there lately.
    Suspect,
    /// Left out of draws.
    Ejected,
    /// One connect tries it.
    Trial,
    /// This agentctl does not know what the agent said.
    Unknown,
}

/// Failed connects by cause, exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    pub refused: u64,
    /// No route, no host, or an ICMP error that says so.
    pub unreachable: u64,
    /// Given up by the kernel without an answer.
    pub timed_out: u64,
    /// Whose first SYN got no answer in time; some were answered later, others are among `timedOut` too.
    pub unanswered: u64,
}

impl Health {
    /// Out of draws, but for a trial.
    pub fn is_out(&self) -> bool {
        matches!(self.state, HealthState::Ejected | HealthState::Trial)
    }
    /// `ejected 1.9s: refused x3, trial in 3.1s`, `ejected 5s: refused x3, on trial`, `suspect 0.4s: refused x2, closed to 1
    /// client`; none for a healthy one.
    pub fn text(&self) -> Option<String> {
        let mut text = match self.state {
            HealthState::Healthy => return None,
            HealthState::Unknown => return Some("health unknown".to_owned()),
            HealthState::Ejected | HealthState::Trial => "ejected".to_owned(),
            HealthState::Suspect => "suspect".to_owned(),
        };
        if let Some(since) = self.since_seconds {
            text.push_str(&format!(" {since}"));
        }
        let mut why = self.failures.causes();
        match (self.state, self.until_seconds) {
            (HealthState::Trial, _) => why.push("on trial".to_owned()),
            (HealthState::Ejected, Some(left)) if left > Seconds::default() => {
                why.push(format!("trial in {left}"));
            }
            (HealthState::Ejected, Some(_)) => why.push("trial due".to_owned()),
            _ => {}
        }
        match self.closed_clients {
            0 => {}
            1 => why.push("closed to 1 client".to_owned()),
            more => why.push(format!("closed to {more} clients")),
        }
        if !why.is_empty() {
            text.push_str(&format!(": {}", why.join(", ")));
        }
        Some(text)
    }
}

impl Failures {
    /// `refused x3`; those that did not happen are left out.
    fn causes(&self) -> Vec<String> {
        let causes = [
            ("refused", self.refused),
            ("unreachable", self.unreachable),
            ("unanswered", self.unanswered),
            ("timed out", self.timed_out),
        ];
        let some = causes.into_iter().filter(|(_, number)| *number > 0);
        some.map(|(cause, number)| format!("{cause} x{number}"))
            .collect()
    }
}

impl From<proto::BackendHealth> for Health {
    fn from(health: proto::BackendHealth) -> Self {
        Self {
            state: match health.kind() {
                proto::HealthKind::Healthy => HealthState::Healthy,
                proto::HealthKind::Suspect => HealthState::Suspect,
                proto::HealthKind::Ejected => HealthState::Ejected,
                proto::HealthKind::Trial => HealthState::Trial,
                proto::HealthKind::Unspecified => HealthState::Unknown,
            },
            since_seconds: Seconds::known(health.since_seconds),
            until_seconds: Seconds::known(health.until_seconds),
            doublings: health.doublings,
            failures: health.failures.unwrap_or_default().into(),
            closed_clients: health.closed_clients,
        }
    }
}

impl From<proto::FailureCounts> for Failures {
    fn from(counts: proto::FailureCounts) -> Self {
        Self {
            refused: counts.refused,
            unreachable: counts.unreachable,
            timed_out: counts.timed_out,
            unanswered: counts.unanswered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(
        kind: proto::HealthKind,
        since: Option<f64>,
        until: Option<f64>,
        failures: [u64; 4],
    ) -> Option<String> {
        let [refused, unreachable, unanswered, timed_out] = failures;
        let health = proto::BackendHealth {
            kind: kind.into(),
            since_seconds: since,
            until_seconds: until,
            doublings: 0,
            failures: Some(proto::FailureCounts {
                refused,
                unreachable,
                timed_out,
                unanswered,
            }),
            closed_clients: 0,
        };
        Health::from(health).text()
    }

    #[test]
    fn a_state_is_told_with_its_age_its_cause_and_its_end() {
        use proto::HealthKind::{Ejected, Healthy, Suspect, Trial};
        for (told, wanted) in [
            (
                text(Ejected, Some(1.9), Some(3.1), [3, 0, 0, 0]),
                "ejected 1.9s: refused x3, trial in 3.1s",
            ),
            (
                text(Ejected, None, Some(3.1), [0, 1, 5, 2]),
                "ejected: unreachable x1, unanswered x5, timed out x2, trial in 3.1s",
            ),
            (
                text(Ejected, Some(70.0), Some(0.0), [3, 0, 0, 0]),
                "ejected 1m10s: refused x3, trial due",
            ),
            (
                text(Trial, Some(5.0), Some(0.1), [3, 0, 0, 0]),
                "ejected 5s: refused x3, on trial",
            ),
            (text(Trial, None, Some(0.1), [0; 4]), "ejected: on trial"),
            (
                text(Suspect, Some(0.4), None, [1, 0, 0, 0]),
                "suspect 0.4s: refused x1",
            ),
            (text(Suspect, None, None, [0; 4]), "suspect"),
        ] {
            assert_eq!(told.as_deref(), Some(wanted));
        }
        assert_eq!(text(Healthy, None, None, [7, 0, 0, 0]), None);
    }

    #[test]
    fn clients_to_which_it_is_closed_are_counted() {
        let health = |closed_clients| {
            let health = proto::BackendHealth {
                kind: proto::HealthKind::Suspect.into(),
                closed_clients,
                ..proto::BackendHealth::default()
            };
            Health::from(health).text()
        };
        assert_eq!(health(0).as_deref(), Some("suspect"));
        assert_eq!(health(1).as_deref(), Some("suspect: closed to 1 client"));
        assert_eq!(health(2).as_deref(), Some("suspect: closed to 2 clients"));
    }
}
