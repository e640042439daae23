//! What the programs learn of backends by themselves, and how far they may go. But for [`ServiceLimitsRow`], which is the agent's,
//! what is here is written by programs; the agent zeroes it only while no program can reach it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "fields are cut out of packed words"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// By so many marks health tells a node's clients (network namespaces) apart. The top byte of a word of marks is free for
/// the epoch, or for a score.
pub const CLIENT_MARKS: u32 = 56;

/// Bits of a word of marks.
pub const MARKS: u64 = (1 << CLIENT_MARKS) - 1;

/// In the place of a client's mark: health does not look at this connect.
pub const NO_MARK: u32 = 63;

/// The mark of a network namespace, 0..[`CLIENT_MARKS`]. Cookies are counted up, so a multiplicative hash (Knuth,
/// TAOCP 6.4) gives neighbours different marks; two of many clients can still share one.
#[inline(always)]
#[must_use]
pub const fn client_mark(netns_cookie: u64) -> u32 {
    let spread = netns_cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((spread * CLIENT_MARKS as u64) >> 32) as u32
}

/// Time in health's rows: nanoseconds since boot (`CLOCK_MONOTONIC`) without their low 16 bits, 65.5 µs each. 48 bits
/// reach for centuries.
pub const TICK_SHIFT: u32 = 16;

/// Ticks of so many milliseconds, rounded up.
#[must_use]
pub const fn ticks(milliseconds: u64) -> u64 {
    ((milliseconds * 1_000_000) >> TICK_SHIFT) + 1
}

/// Shift from nanoseconds to epochs: 34.4 s each. A client stands in the epoch in which it was seen established, and in
/// the next.
pub const EPOCH_SHIFT: u32 = 35;

/// Clients of one epoch, as marks: `epoch's low byte << 56 | marks`. A word of another epoch holds nobody.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Standing(pub u64);

impl Standing {
    #[must_use]
    pub const fn new(epoch: u64, marks: u64) -> Self {
        Self(epoch << CLIENT_MARKS | marks & MARKS)
    }
    /// Those who stand in `epoch` by this word.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, epoch: u64) -> u64 {
        if self.0 >> CLIENT_MARKS == epoch & 0xff {
            self.0 & MARKS
        } else {
            0
        }
    }
}

/// Kinds of [`HealthState`].
pub mod health_kind {
    /// Nothing is held against it.
    pub const HEALTHY: u8 = 0;
    /// Connects failed; those that follow are watched.
    pub const SUSPECT: u8 = 1;
    /// Left out of draws until `time`; then one standing client's connect is its trial.
    pub const EJECTED: u8 = 2;
    /// One connect, by the client of `mark`, tries it until `time`.
    pub const TRIAL: u8 = 3;
}

/// Health of a backend in one 64-bit word, changed by compare-and-swap: `time:48, mark:8, doublings:6, kind:2`. 0 is healthy. Of a
/// suspect one `mark` is when a connect was last let through to it, in 4.2 ms, and the bits of `doublings` say that one was, that
/// something is held against the backend, and that one more failure ejects it.
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct HealthState(pub u64);

impl HealthState {
    pub const HEALTHY: Self = Self(0);
    /// No client's mark.
    pub const NOBODY: u32 = 0xff;
    /// Most that back-off can double.
    pub const DOUBLINGS_MAX: u32 = 63;

    #[must_use]
    pub const fn suspect(since: u64) -> Self {
        Self(since << 16 | health_kind::SUSPECT as u64)
    }
    /// The same suspicion, with something held against the backend; `grave` if one more failure ejects it.
    #[inline(always)]
    #[must_use]
    pub const fn accused(self, grave: bool) -> Self {
        Self(self.0 | Self::ACCUSED | (grave as u64) << 4)
    }
    /// The same suspicion, after a connect was let through at `now`: others leave the backend until its fate is known.
    #[inline(always)]
    #[must_use]
    pub const fn probed(self, now: u64) -> Self {
        Self(self.0 & !0xff00 | (now >> Self::PROBE_SHIFT & 0xff) << 8 | Self::PROBED)
    }
    /// Whether others are to leave a suspect backend for now: something is held against it, and the connect that was let through to it may
    /// still be on its way, for 100 ms. By the clock's eight bits, an older one may look like that once a second: a draw then
    /// goes elsewhere for nothing.
    #[inline(always)]
    #[must_use]
    pub const fn is_gated(self, now: u64) -> bool {
        const PROBE: u64 = ticks(100) >> HealthState::PROBE_SHIFT;
        let age = (now >> Self::PROBE_SHIFT).wrapping_sub(self.0 >> 8) & 0xff;
        self.0 & (Self::PROBED | Self::ACCUSED) == Self::PROBED | Self::ACCUSED && age <= PROBE
    }
    /// Of a suspect backend: whether one more failure ejects it.
    #[inline(always)]
    #[must_use]
    pub const fn is_grave(self) -> bool {
        self.0 & 1 << 4 != 0
    }
    const PROBE_SHIFT: u32 = 6;
    const PROBED: u64 = 1 << 2;
    const ACCUSED: u64 = 1 << 3;
    /// `doublings` is capped at [`Self::DOUBLINGS_MAX`].
    #[must_use]
    pub const fn ejected(until: u64, doublings: u32) -> Self {
        Self::ejected_by(until, doublings, Self::NOBODY)
    }
    /// After the trial by the client of `mark` failed.
    #[must_use]
    pub const fn ejected_by(until: u64, doublings: u32, mark: u32) -> Self {
        Self::timed(until, doublings, mark, health_kind::EJECTED)
    }
    #[must_use]
    pub const fn trial(deadline: u64, doublings: u32, mark: u32) -> Self {
        Self::timed(deadline, doublings, mark, health_kind::TRIAL)
    }
    const fn timed(time: u64, doublings: u32, mark: u32, kind: u8) -> Self {
        Self(time << 16 | (mark as u64 & 0xff) << 8 | Self::capped(doublings) << 2 | kind as u64)
    }
    const fn capped(doublings: u32) -> u64 {
        if doublings > Self::DOUBLINGS_MAX {
            Self::DOUBLINGS_MAX as u64
        } else {
            doublings as u64
        }
    }
    /// One of [`health_kind`].
    #[inline(always)]
    #[must_use]
    pub const fn kind(self) -> u8 {
        self.0 as u8 & 3
    }
    /// Ejections since the last success but one; of one that is ejected, or on trial.
    #[must_use]
    pub const fn doublings(self) -> u32 {
        self.0 as u32 >> 2 & Self::DOUBLINGS_MAX
    }
    /// Whose connect the trial is, or whose the last one was; [`Self::NOBODY`] if there was none.
    #[must_use]
    pub const fn mark(self) -> u32 {
        self.0 as u32 >> 8 & 0xff
    }
    /// In ticks: since when it is suspect, until when it is ejected, or the trial's deadline.
    #[must_use]
    pub const fn time(self) -> u64 {
        self.0 >> 16
    }
}

/// What is held against a backend, and what a draw looks at.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct BackendHealthRow {
    /// Connects sent there, by atomic addition.
    pub connects: u64,
    /// A [`HealthState`].
    pub state: u64,
    /// Marks of clients to which it is closed until `closed_until`.
    pub closed: u64,
    /// In ticks.
    pub closed_until: u64,
}

/// Value of `backend_failures`, indexed by backend id: touched when a connect fails, and while the backend is suspect.
/// Counts are exact, of sockets that were sent there.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct BackendFailuresRow {
    pub refused: u64,
    /// No route, no host, or an ICMP error that says so.
    pub unreachable: u64,
    /// Connects given up by the kernel without an answer.
    pub timed_out: u64,
    /// Sockets whose first SYN got no answer within the first time-out; some are answered later.
    pub unanswered: u64,
    /// What counts against it since the last verified success: `score:8, marks:56` of the clients that it failed. While it is out,
    /// since when, in ticks: see [`Self::out_since`].
    pub run: u64,
    /// Marks of clients that it failed once since their last verified success there.
    pub doubted: u64,
}

impl BackendFailuresRow {
    /// In ticks: when a backend that is ejected, or on trial, was ejected first. None if that is not known: a program that ejected it
    /// on another CPU has not noted it yet, or a success that was seen just then has overwritten it.
    #[must_use]
    pub const fn out_since(&self) -> Option<u64> {
        if self.run != 0 && self.run <= MARKS {
            Some(self.run)
        } else {
            None
        }
    }
}

/// What programs count of a service, and who stands there.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ServiceHealthRow {
    /// Clients seen established at any backend, [`Standing`] by the epoch's lowest bit.
    pub standing: [u64; 2],
    /// Connects refused by us.
    pub refused: u64,
    /// Draws that found every backend of every tier ejected, and went on as if none were.
    pub all_ejected: u64,
    /// Ejections, but for those after a failed trial.
    pub ejected_total: u64,
}

/// What the agent lets programs do at a service.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ServiceLimitsRow {
    /// A backend is ejected only while [`ServiceHealthRow::ejected_total`] is below this.
    pub allowed_total: u64,
    /// Seconds that a client keeps its backend; 0 is no affinity.
    pub affinity_seconds: u32,
    /// Bits of [`service_flags`].
    pub flags: u32,
}

/// Bits of [`ServiceLimitsRow::flags`].
pub mod service_flags {
    /// Failures are counted, and eject nobody.
    pub const NO_PASSIVE_HEALTH: u32 = 1;
}

/// Watched connects that each client has: services that it uses share them by a hash, and no client can push out another's.
pub const WATCHES_PER_CLIENT: u32 = 64;

/// Value of `watches`, by [`watch_slot`]: a connect whose fate a later one looks at, and what the client last failed at.
#[repr(C)]
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct WatchRow {
    /// The socket's address in the kernel's memory; 0 in a free row. Memory is another's if the cookie there is.
    pub socket: u64,
    pub cookie: u64,
    /// In ticks.
    pub since: u64,
    pub service: u32,
    pub backend: u32,
    pub generation: u32,
    /// Backend id + 1 at which the client last failed without a verified success since; 0 for none.
    pub failed_at: u32,
    /// Slot + 1 of a backend that refused the client, to which its next success elsewhere leads back; 0 for none.
    pub retry_slot: u32,
    pub reserved: u32,
    /// When the client last failed, by whichever service had this row, in ticks.
    pub failed_time: u64,
    /// The cookie again, once the socket was closed established: its memory may be the next one's before anybody looks.
    pub ended: u64,
}

#[inline(always)]
#[must_use]
pub const fn watch_slot(mark: u32, service: u32) -> u32 {
    let spread = (service as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
    mark * WATCHES_PER_CLIENT + (spread as u32 & (WATCHES_PER_CLIENT - 1))
}

const _: () = {
    assert!(size_of::<BackendHealthRow>() == 32);
    assert!(size_of::<BackendFailuresRow>() == 48);
    assert!(size_of::<ServiceHealthRow>() == 40);
    assert!(size_of::<ServiceLimitsRow>() == 16);
    assert!(size_of::<WatchRow>() == 64);
};
