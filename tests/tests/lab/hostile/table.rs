//! The hostile clients: what each has done before and to its own network, how it connects, and what must have come of that.

use std::time::Duration;

use isthmus_tests::hostile::{Account, Behaviour};

use super::super::own::Own;

/// Whether a hostile client has reached the service before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Past {
    /// Never.
    Newcomer,
    /// It stands: its failures count.
    Proven,
}

/// Of how many connects the kernel saw a first SYN without an answer in time: no client can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Silence {
    Never,
    /// Of all that the client held, and gave up.
    OfAbandoned,
    /// Of all that the kernel gave up: it looks at the client's patience only when it has sent again.
    OfTimedOut,
    /// Of none, or of some.
    Perhaps,
}

pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) past: Past,
    pub(super) own: Own,
    pub(super) behaviour: Behaviour,
    /// For how long connects are held, or the kernel is told to have patience.
    pub(super) hold: Duration,
    /// Did what its name says, and nothing else.
    pub(super) did: fn(&Account) -> bool,
    pub(super) silence: Silence,
}

pub(super) const MANY: u64 = 10_000;

const AT_ONCE: Duration = Duration::ZERO;
/// Shorter than the kernel waits before it looks at it.
const HALF_A_SECOND: Duration = Duration::from_millis(500);
/// Not until first time-outs are noticed.
const A_WHILE: Duration = Duration::from_millis(150);
/// Until first time-outs are noticed.
pub(super) const FIRST_TIME_OUT: Duration = Duration::from_millis(1500);
/// Until an ICMP error is believed, also where the first was lost.
const SECOND_TIME_OUT: Duration = Duration::from_millis(3500);

use Behaviour::{
    Abandon, Bounded, Connect, Destroyed, Dissolve, Hold, Killed, KilledInCalls, Reuse,
};
use Past::{Newcomer, Proven};
use Silence::{Never, OfAbandoned, OfTimedOut, Perhaps};

const fn row(
    name: &'static str,
    past: Past,
    own: Own,
    behaviour: Behaviour,
    did: fn(&Account) -> bool,
) -> Row {
    Row {
        name,
        past,
        own,
        behaviour,
        hold: AT_ONCE,
        did,
        silence: Never,
    }
}

impl Row {
    const fn held(self, hold: Duration, silence: Silence) -> Self {
        Self {
            hold,
            silence,
            ..self
        }
    }
}

fn all_refused(a: &Account) -> bool {
    a.refused == a.connects
}

fn all_abandoned(a: &Account) -> bool {
    a.abandoned == a.connects
}

fn all_timed_out(a: &Account) -> bool {
    a.timed_out == a.connects
}

/// Of each family one backend is refused until it is closed to this client, after two failures; the other serves.
fn refused_by_one(a: &Account) -> bool {
    let closings = 4;
    (closings..=10 * closings).contains(&a.refused) && a.established == a.connects - a.refused
}

/// Drawn in equal shares: each backend has far more than a third of all.
fn silent_by_one(a: &Account) -> bool {
    a.abandoned * 3 > a.connects
        && a.established * 3 > a.connects
        && a.established + a.abandoned == a.connects
}

/// Whether an answer was there already when it gave up is chance.
fn given_up(a: &Account) -> bool {
    a.established + a.abandoned == a.connects
}

fn almost_all_unreachable(a: &Account) -> bool {
    let unreachable = a.other_of("EHOSTUNREACH");
    unreachable * 10 >= a.connects * 9 && unreachable + a.abandoned == a.connects
}

/// ICMPv6 has an error of its own for it.
fn almost_all_prohibited(a: &Account) -> bool {
    let prohibited = [a.other_of("EHOSTUNREACH"), a.other_of("EACCES")];
    let all: u64 = prohibited.iter().sum();
    prohibited.iter().all(|some| some * 3 > a.connects)
        && all * 10 >= a.connects * 9
        && all + a.abandoned == a.connects
}

fn almost_all_refused(a: &Account) -> bool {
    a.refused * 10 >= a.connects * 9 && a.refused + a.abandoned == a.connects
}

fn all_without_a_route(a: &Account) -> bool {
    a.other_of("EHOSTUNREACH") == a.connects
}

/// Ten ports, to two addresses of each family.
fn almost_all_without_a_port(a: &Account) -> bool {
    let ports = 4 * 10;
    let without = a.other_of("EADDRNOTAVAIL");
    without >= a.connects - ports && without + a.established + a.abandoned == a.connects
}

#[rustfmt::skip]
pub(super) const ROWS: [Row; 25] = [
    row("never succeeded, own firewall resets", Newcomer, Own::Reset, Connect, all_refused),
    row("never succeeded, own firewall drops", Newcomer, Own::Drop, Hold, all_abandoned)
        .held(FIRST_TIME_OUT, OfAbandoned),
    row("own firewall resets", Proven, Own::Reset, Connect, all_refused),
    row("own firewall resets to one backend", Proven, Own::ResetOne, Connect, refused_by_one),
    row("own firewall says unreachable", Proven, Own::Unreachable, Hold, almost_all_unreachable)
        .held(SECOND_TIME_OUT, Perhaps),
    row("own firewall says prohibited", Proven, Own::Prohibited, Hold, almost_all_prohibited)
        .held(SECOND_TIME_OUT, Perhaps),
    row("own firewall says that nobody is at the port", Proven, Own::NoPort, Hold, almost_all_refused)
        .held(SECOND_TIME_OUT, Perhaps),
    row("own firewall drops, gives up after a while", Proven, Own::Drop, Hold, all_abandoned)
        .held(A_WHILE, Perhaps),
    row("own firewall drops to one backend, gives up after a while", Proven, Own::DropOne, Hold, silent_by_one)
        .held(A_WHILE, Perhaps),
    row("own firewall drops, gives up late", Proven, Own::Drop, Hold, all_abandoned)
        .held(FIRST_TIME_OUT, OfAbandoned),
    row("own firewall drops to one backend, gives up late", Proven, Own::DropOne, Hold, silent_by_one)
        .held(FIRST_TIME_OUT, OfAbandoned),
    row("own firewall drops, gives up at once", Proven, Own::Drop, Abandon, all_abandoned),
    row("own firewall drops, the kernel gives up early for it", Proven, Own::Drop, Bounded, all_timed_out)
        .held(HALF_A_SECOND, OfTimedOut),
    row("own firewall drops, killed while connecting", Proven, Own::Drop, Killed, all_abandoned),
    row("own firewall drops, killed in calls of connect", Proven, Own::Drop, KilledInCalls, all_abandoned),
    row("own firewall drops, destroyed while connecting", Proven, Own::Drop, Destroyed, all_abandoned),
    row("own firewall drops, dissolves and connects again", Proven, Own::Drop, Dissolve, all_abandoned),
    row("own firewall drops answers, gives up at once", Proven, Own::Deaf, Abandon, all_abandoned),
    row("own firewall drops answers, dissolves and connects again", Proven, Own::Deaf, Dissolve, all_abandoned),
    row("gives up at once", Proven, Own::Nothing, Abandon, given_up),
    row("dissolves and connects again", Proven, Own::Nothing, Dissolve, given_up),
    row("one descriptor for all", Proven, Own::Nothing, Reuse, given_up),
    row("one descriptor for all, own firewall resets", Proven, Own::Reset, Reuse, all_refused),
    row("ports are used up", Proven, Own::FewPorts, Hold, almost_all_without_a_port),
    row("no route", Proven, Own::NoRoute, Connect, all_without_a_route),
];
