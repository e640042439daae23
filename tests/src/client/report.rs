//! What a client says of its requests.

use std::collections::BTreeMap;
use std::io::ErrorKind;

use serde::{Deserialize, Serialize};

use super::{Target, monotonic};

/// Failures of which a report tells the moment, each; all are counted.
const TOLD_FAILURES: usize = 32;

/// A connect that was refused.
pub const REFUSED: &str = "refused";
/// A connect that the kernel gave up.
pub const TIMED_OUT: &str = "timed out";
/// A connect that the client gave up before the kernel did.
pub const GIVEN_UP: &str = "given up";
/// A connection, or a datagram, without an answer for as long as the client waits.
pub const NO_ANSWER: &str = "no answer";
/// A connection that ended before the answer did.
pub const BROKEN_OFF: &str = "broken off";

/// What happened to the requests since the last report.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub requests: u64,
    /// By what the server said of itself: `SERVICE CLUSTER/POD`.
    pub answers: BTreeMap<String, Answers>,
    /// Answers by a server of another service than the one asked for; they are in `answers` too.
    pub wrong: u64,
    /// By what came of them: [`REFUSED`], [`TIMED_OUT`], [`GIVEN_UP`], [`NO_ANSWER`], [`BROKEN_OFF`], or the errno.
    pub failures: BTreeMap<String, u64>,
    /// The first failures, with their time.
    pub told: Vec<Failure>,
    /// How long each TCP connect took that succeeded, in nanoseconds, if that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connect_times: Vec<u64>,
    /// When the report was made (`CLOCK_MONOTONIC`, nanoseconds).
    pub at: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    pub count: u64,
    /// Time of the first and the last answer (`CLOCK_MONOTONIC`, nanoseconds).
    pub first: u64,
    pub last: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub at: u64,
    pub target: String,
    pub error: String,
}

impl Report {
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
    /// Those that failed by `how`.
    #[must_use]
    pub fn failed_by(&self, how: &str) -> u64 {
        self.failures.get(how).copied().unwrap_or_default()
    }
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answers.values().map(|a| a.count).sum()
    }
    /// Answers by servers of a cluster.
    #[must_use]
    pub fn from_cluster(&self, cluster: &str) -> u64 {
        self.servers(cluster).map(|a| a.count).sum()
    }
    /// When the first server of a cluster answered.
    #[must_use]
    pub fn first_of(&self, cluster: &str) -> Option<u64> {
        self.servers(cluster).map(|a| a.first).min()
    }
    /// When the last answer of a cluster came.
    #[must_use]
    pub fn last_of(&self, cluster: &str) -> Option<u64> {
        self.servers(cluster).map(|a| a.last).max()
    }
    /// Both reports as one.
    #[must_use]
    pub fn and(mut self, later: &Self) -> Self {
        self.requests += later.requests;
        self.wrong += later.wrong;
        for (name, answers) in &later.answers {
            let sum = self.answers.entry(name.clone()).or_insert_with(|| Answers {
                count: 0,
                ..answers.clone()
            });
            sum.count += answers.count;
            sum.last = sum.last.max(answers.last);
        }
        for (error, count) in &later.failures {
            *self.failures.entry(error.clone()).or_default() += count;
        }
        self.told.extend(later.told.iter().cloned());
        self.told.truncate(TOLD_FAILURES);
        self.connect_times.extend(&later.connect_times);
        self.at = self.at.max(later.at);
        self
    }
    fn servers<'a>(&'a self, cluster: &'a str) -> impl Iterator<Item = &'a Answers> {
        let of = move |name: &str| {
            let pod = name.split(' ').nth(1).unwrap_or_default();
            pod.split('/').next() == Some(cluster)
        };
        self.answers
            .iter()
            .filter(move |(name, _)| of(name))
            .map(|(_, a)| a)
    }
    pub(super) fn record(&mut self, target: &Target, outcome: &Outcome) {
        self.requests += 1;
        match outcome {
            Outcome::Answer(name) => {
                let at = monotonic();
                let wanted = target.service.as_deref();
                if wanted.is_some_and(|w| name.split(' ').next() != Some(w)) {
                    self.wrong += 1;
                    self.tell(target, format!("answered by {name}"));
                }
                match self.answers.get_mut(name) {
                    Some(answers) => {
                        answers.count += 1;
                        answers.last = at;
                    }
                    None => {
                        self.answers.insert(
                            name.clone(),
                            Answers {
                                count: 1,
                                first: at,
                                last: at,
                            },
                        );
                    }
                }
            }
            Outcome::Failure(error) => {
                *self.failures.entry(error.clone()).or_default() += 1;
                self.tell(target, error.clone());
            }
        }
    }
    fn tell(&mut self, target: &Target, error: String) {
        if self.told.len() < TOLD_FAILURES {
            self.told.push(Failure {
                at: monotonic(),
                target: target.to_string(),
                error,
            });
        }
    }
}

/// What came of one request.
pub(super) enum Outcome {
    Answer(String),
    Failure(String),
}

impl Outcome {
    /// A connect that failed.
    pub(super) fn unconnected(error: &std::io::Error) -> Self {
        Self::Failure(match error.kind() {
            ErrorKind::ConnectionRefused => REFUSED.to_owned(),
            // The client's own patience has no errno.
            ErrorKind::TimedOut if error.raw_os_error().is_none() => GIVEN_UP.to_owned(),
            ErrorKind::TimedOut => TIMED_OUT.to_owned(),
            // A reset of what is not established is a refusal: this was, and was reset before the client looked.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => BROKEN_OFF.to_owned(),
            _ => named(error),
        })
    }

    /// A question that got no answer: on a connection, or by a datagram.
    pub(super) fn unanswered(error: &std::io::Error) -> Self {
        Self::Failure(match error.kind() {
            // ICMP's word about a datagram.
            ErrorKind::ConnectionRefused => REFUSED.to_owned(),
            ErrorKind::TimedOut | ErrorKind::WouldBlock => NO_ANSWER.to_owned(),
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => BROKEN_OFF.to_owned(),
            _ => named(error),
        })
    }

    pub(super) fn said(text: &[u8]) -> Self {
        let name = std::str::from_utf8(text).ok();
        match name.and_then(|name| name.strip_suffix('\n')) {
            Some(name) => Self::Answer(name.to_owned()),
            None => Self::Failure(BROKEN_OFF.to_owned()),
        }
    }
}

fn named(error: &std::io::Error) -> String {
    let errno = error.raw_os_error().map(nix::errno::Errno::from_raw);
    errno.map_or_else(|| error.to_string(), |errno| errno.to_string())
}

#[cfg(test)]
mod tests {
    use std::io::Error;

    use nix::libc;

    use super::*;

    #[test]
    fn a_connect_s_error_tells_what_became_of_it() {
        for (errno, wanted) in [
            (libc::ECONNREFUSED, REFUSED),
            (libc::ETIMEDOUT, TIMED_OUT),
            (libc::ECONNRESET, BROKEN_OFF),
            (libc::EPIPE, BROKEN_OFF),
        ] {
            let told = Outcome::unconnected(&Error::from_raw_os_error(errno));
            assert!(
                matches!(told, Outcome::Failure(how) if how == wanted),
                "{errno}"
            );
        }
        let patience = Error::from(ErrorKind::TimedOut);
        let told = Outcome::unconnected(&patience);
        assert!(matches!(told, Outcome::Failure(how) if how == GIVEN_UP));
    }
}
