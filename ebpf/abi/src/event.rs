use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the ring buffer `events`. A power of two, and whole pages.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// Events of refusals and of draws without a healthy backend that one CPU tells in a tick of [`crate::TICK_SHIFT`]'s;
/// the others are counted only.
pub const EVENTS_PER_TICK: u32 = 1;

/// What happened: value of [`EventRow::kind`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A backend is left out of draws until `until`; `cause` says after what.
    Ejected = 1,
    /// A standing client's connect tries an ejected backend.
    TrialBegan = 2,
    /// The trial failed by `cause`; ejected until `until`.
    TrialFailed = 3,
    /// The trial's socket is gone without a word; the next standing client tries.
    TrialAbandoned = 4,
    /// A trial succeeded: connects go there again.
    Returned = 5,
    /// Two connects of one client failed: closed to that client alone, until `until`.
    Closed = 6,
    /// A client failed at two backends with no success between: its failures do not count until it succeeds.
    Disbelieved = 7,
    /// An ejection was due, and the service's limit does not allow it.
    Capped = 8,
    /// A connect was refused by us; `cause` is a [`crate::Refusal`]'s place in its list.
    Refused = 9,
    /// All backends of all tiers are ejected: drawn as if none were.
    AllEjected = 10,
}

impl EventKind {
    pub const ALL: [Self; 10] = [
        Self::Ejected,
        Self::TrialBegan,
        Self::TrialFailed,
        Self::TrialAbandoned,
        Self::Returned,
        Self::Closed,
        Self::Disbelieved,
        Self::Capped,
        Self::Refused,
        Self::AllEjected,
    ];

    /// As metrics name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ejected => "ejected",
            Self::TrialBegan => "trial_began",
            Self::TrialFailed => "trial_failed",
            Self::TrialAbandoned => "trial_abandoned",
            Self::Returned => "returned",
            Self::Closed => "closed",
            Self::Disbelieved => "disbelieved",
            Self::Capped => "capped",
            Self::Refused => "refused",
            Self::AllEjected => "all_ejected",
        }
    }
    #[must_use]
    pub fn from_abi(kind: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == kind)
    }
}

/// Why a connect counted against a backend: value of [`EventRow::cause`], but for [`EventKind::Refused`].
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailureCause {
    None = 0,
    Refused = 1,
    Unreachable = 2,
    /// The first SYN was not answered in time, or a trial was not.
    Unanswered = 3,
    TimedOut = 4,
}

impl FailureCause {
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Refused,
        Self::Unreachable,
        Self::Unanswered,
        Self::TimedOut,
    ];

    /// As `agentctl` names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Unanswered => "unanswered",
            Self::TimedOut => "timed out",
        }
    }
    #[must_use]
    pub fn from_abi(cause: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == cause)
    }
}

/// A record of the ring buffer `events`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventRow {
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub at: u64,
    /// In ticks; 0 where it has no meaning.
    pub until: u64,
    pub service: u32,
    /// Backend id, and the generation it had; 0 and 0 for an event of a service.
    pub backend: u32,
    pub generation: u32,
    /// An [`EventKind`].
    pub kind: u8,
    /// A [`FailureCause`], or a refusal.
    pub cause: u8,
    /// Ejections since the last success but one.
    pub doublings: u8,
    /// The client's mark.
    pub mark: u8,
}

const _: () = assert!(size_of::<EventRow>() == 32);
