//! Failures that the kernel kept from the programs, where it shields its init from them.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::sync::Mutex;

use isthmus_tests::trace::Trace;

use super::common::PORT;

const ERRORS: &str = "inet_sk_error_report";
const RETRANSMISSIONS: &str = "tcp_retransmit_skb";

/// Failures that no program saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Kept {
    pub(crate) refused: u64,
    pub(crate) unreachable: u64,
    pub(crate) timed_out: u64,
    pub(crate) unanswered: u64,
    /// Of which nobody knows the kind: their owner had taken the error.
    pub(crate) taken: u64,
}

/// Tells of TCP connects to [`PORT`].
pub(crate) struct Shield {
    trace: Option<Trace>,
    kept: Mutex<Kept>,
}

impl Shield {
    /// Where the kernel has no trace, or keeps it from us, nothing is known to be kept: books must balance without.
    pub(crate) fn watch() -> Self {
        let errors = [0, 13, 101, 110, 111, 113].map(|errno| format!("error == {errno}"));
        // What idles is no thread of init's.
        let all = format!("dport == {PORT} && common_pid != 0");
        let events = [
            (
                format!("sock/{ERRORS}"),
                format!("{all} && protocol == 6 && ({})", errors.join(" || ")),
            ),
            // TCP_SYN_SENT.
            (
                format!("tcp/{RETRANSMISSIONS}"),
                format!("{all} && state == 2"),
            ),
        ];
        let events = events.each_ref().map(|(e, f)| (e.as_str(), f.as_str()));
        let trace = Trace::begin(&events);
        Self {
            trace: trace
                .inspect_err(|error| eprintln!("no trace: {error:#}"))
                .ok(),
            kept: Mutex::default(),
        }
    }

    /// What was kept so far, or would have been if this kernel did. Nothing may be under way.
    pub(crate) fn kept(&self) -> Kept {
        let mut kept = self.kept.lock().unwrap();
        let trace = self.trace.iter();
        for (event, fields) in trace.flat_map(|trace| trace.on_top_of_init().unwrap()) {
            if event == RETRANSMISSIONS {
                kept.unanswered += 1;
                continue;
            }
            let (_, error) = fields.rsplit_once("error=").unwrap();
            match error.trim() {
                "111" => kept.refused += 1,
                "0" => kept.taken += 1,
                "110" => kept.timed_out += 1,
                _ => kept.unreachable += 1,
            }
        }
        *kept
    }
}

impl Kept {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            refused: self.refused - before.refused,
            unreachable: self.unreachable - before.unreachable,
            timed_out: self.timed_out - before.timed_out,
            unanswered: self.unanswered - before.unanswered,
            taken: self.taken - before.taken,
        }
    }
}
