//! Failures that the kernel kept from the programs, where it shields its init from them.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::trace::Trace;

use super::books::Counted;
use super::common::PORT;

const ERRORS: &str = "inet_sk_error_report";
const RETRANSMISSIONS: &str = "tcp_retransmit_skb";

/// ECONNRESET: connections that their owner breaks off.
const RESET: u32 = 104;
/// TCP_SYN_SENT.
const SYN_SENT: u32 = 2;

/// Tells of connects to [`PORT`].
pub(crate) struct Shield(Option<Trace>);

impl Shield {
    /// Where the kernel has no trace, or keeps it from us, nothing is known to be kept: books must balance without.
    pub(crate) fn watch() -> Self {
        let errors = format!("dport == {PORT} && error != {RESET} && common_pid != 0");
        let silence = format!("dport == {PORT} && state == {SYN_SENT} && common_pid != 0");
        let events = [
            (format!("sock/{ERRORS}"), errors),
            (format!("tcp/{RETRANSMISSIONS}"), silence),
        ];
        let events = events.each_ref().map(|(e, f)| (e.as_str(), f.as_str()));
        let trace = Trace::begin(&events);
        Self(
            trace
                .inspect_err(|error| eprintln!("no trace: {error:#}"))
                .ok(),
        )
    }

    /// What was kept, or would be if this kernel did.
    pub(crate) fn kept(&self) -> Counted {
        let mut kept = Counted::default();
        let Some(trace) = &self.0 else {
            return kept;
        };
        for fields in trace.on_top_of_init(ERRORS).unwrap() {
            let (_, error) = fields.rsplit_once("error=").unwrap();
            match error.trim() {
                "111" => kept.refused += 1,
                "110" => kept.timed_out += 1,
                _ => kept.unreachable += 1,
            }
        }
        let silences = trace.on_top_of_init(RETRANSMISSIONS).unwrap();
        kept.unanswered = u64::try_from(silences.len()).unwrap();
        kept
    }
}
