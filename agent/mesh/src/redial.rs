//! What comes between two connections to one server: the wait, and the line in the log.

use std::time::{Duration, Instant};

use isthmus_core::mesh::Backoff;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::dial::Failure;
use crate::seldom::Seldom;

/// The longest wait: short, so that a mended wire is found at once. A try against a silent server takes two seconds by
/// itself.
const MOST: Duration = Duration::from_secs(1);
/// Waits after a refusal: somebody has to change something first.
const REFUSED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Of one server.
#[derive(Debug)]
pub(crate) struct Redial {
    broken: Backoff,
    refused: Backoff,
    seldom: Seldom,
    /// Since when the present connection is good.
    greeted: Option<Instant>,
}

/// What to do after a failure.
pub(crate) struct Next {
    pub(crate) wait: Duration,
    /// `Some` if the failure is to be logged: how often it was not since it last was.
    pub(crate) say: Option<u64>,
}

impl Redial {
    /// `first`: the first wait after a connection that was good.
    pub(crate) fn new(first: Duration) -> Self {
        Self {
            broken: Backoff::new(first, MOST),
            refused: Backoff::new(REFUSED.0, REFUSED.1),
            seldom: Seldom::default(),
            greeted: None,
        }
    }

    /// The server has said hello. Whether that is to be logged.
    pub(crate) fn greet(&mut self, now: Instant) -> bool {
        self.greeted = Some(now);
        self.seldom.due("connected", now).is_some()
    }

    /// The connection ended, or there was none.
    pub(crate) fn fail(&mut self, failure: &Failure, now: Instant) -> Next {
        if let Some(since) = self.greeted.take() {
            self.seldom.was_well(since, now);
            self.broken.reset();
            self.refused.reset();
        }
        let backoff = if failure.refused {
            &mut self.refused
        } else {
            &mut self.broken
        };
        Next {
            wait: backoff.next(rand::random()),
            say: self.seldom.due(&failure.words, now),
        }
    }
}

/// When to say that we live.
pub(crate) fn beats(every: Duration) -> Interval {
    let mut beats = interval(every.max(Duration::from_millis(10)));
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_until_a_connection_was_good_and_refusals_wait_longer() {
        let first = Duration::from_millis(100);
        let (mut redial, now) = (Redial::new(first), Instant::now());
        let broken = Failure {
            words: "no route".to_owned(),
            refused: false,
        };
        let refused = Failure {
            words: "wrong name".to_owned(),
            refused: true,
        };
        assert!(redial.fail(&broken, now).wait <= first);
        let grown = (0..9).map(|_| redial.fail(&broken, now).wait);
        assert!(grown.max() > Some(MOST / 2));
        let next = redial.fail(&refused, now);
        assert!(next.wait >= REFUSED.0 / 2 && next.say == Some(0));
        assert!(redial.greet(now));
        let next = redial.fail(&broken, now);
        assert!(next.wait <= first && next.say.is_none());
    }
}
