use std::time::{Duration, Instant};

use super::Fault;

/// Between the transport's standing and the server's hello.
const GREETING: Duration = Duration::from_secs(3);

/// How long either side may say nothing on a stream that stands: three heartbeats, by the server's hello.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    heard: Instant,
    /// `None` before the hello.
    heartbeat: Option<Duration>,
}

impl Patience {
    /// The transport stands.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            heard: now,
            heartbeat: None,
        }
    }

    /// It said something.
    pub fn hear(&mut self, now: Instant) {
        self.heard = now;
    }

    /// It said how often it says something.
    pub fn greet(&mut self, heartbeat: Duration) {
        self.heartbeat = Some(heartbeat);
    }

    #[must_use]
    pub fn is_greeted(&self) -> bool {
        self.heartbeat.is_some()
    }

    /// When it has been silent for too long.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.heard + self.heartbeat.map_or(GREETING, |heartbeat| 3 * heartbeat)
    }

    /// Whoever asks much later than at the deadline was stopped itself, and the other's words may lie in its socket: the
    /// other gets one more heartbeat.
    ///
    /// # Errors
    /// It has been silent for too long.
    pub fn judge(&mut self, now: Instant) -> Result<(), Fault> {
        let deadline = self.deadline();
        if now < deadline {
            return Ok(());
        }
        let more = self.heartbeat.unwrap_or(GREETING);
        if now.saturating_duration_since(deadline) < more {
            return Err(Fault::Silent);
        }
        self.heard = now + more - (deadline - self.heard);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_heartbeats_and_one_more_for_who_was_stopped() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(start);
        assert_eq!(patience.deadline(), at(3));
        assert!(patience.judge(at(2)).is_ok());
        assert_eq!(patience.judge(at(3)), Err(Fault::Silent));
        patience.greet(Duration::from_secs(2));
        patience.hear(at(10));
        assert_eq!(patience.deadline(), at(16));
        assert_eq!(patience.judge(at(17)), Err(Fault::Silent));
        // Stopped for a minute: one more heartbeat, and not two.
        assert!(patience.judge(at(70)).is_ok());
        assert_eq!(patience.deadline(), at(72));
        assert_eq!(patience.judge(at(72)), Err(Fault::Silent));
    }
}
