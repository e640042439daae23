//! From batches to rows.

use isthmus_core::model::Protocol;

use super::fleet::Variant::{self, Asking, Bare, Deaf, Forgetful, Ours, Trivial};
use super::{Case, Destination, MANY, Measured};
use crate::bench::sheet::{Row, Target, Unit};
use crate::bench::stats::{Rounds, column};

/// Of batches: low enough to be the cost without the neighbours' noise, and no single lucky batch.
const AT: f64 = 0.1;

/// Cost over a trivial hook's.
const TAX: f64 = 1.8;
const TAX_OF_NOBODY: f64 = 1.25;
/// The whole of `connect(2)` over that without programs, UDP: what was measured of Cilium is 1.32 and 1.12.
const WHOLE: f64 = 1.20;
const WHOLE_OF_NOBODY: f64 = 1.06;

pub fn rows(measured: &[Measured]) -> Vec<Row> {
    let taxes = measured.iter().map(tax);
    let wholes = measured
        .iter()
        .filter(|m| {
            m.case.protocol == Protocol::Udp && m.case.destination != Destination::Getpeername
        })
        .map(whole);
    let cycles = measured.iter().filter(|m| m.case.is_service()).map(cycle);
    let shares = measured
        .iter()
        .filter(|m| m.case.services == MANY && (m.case.is_service() || m.case.fails()))
        .flat_map(shares);
    taxes.chain(wholes).chain(cycles).chain(shares).collect()
}

impl Case {
    fn is_service(self) -> bool {
        matches!(self.destination, Destination::Hot | Destination::Wide)
    }

    /// The kernel reports an error of it.
    fn fails(self) -> bool {
        matches!(self.destination, Destination::Reset | Destination::Dead)
    }
}

impl Measured {
    /// What programs add to. A reset comes after the call.
    fn taxed(&self) -> &Rounds {
        match self.case.destination {
            Destination::Reset => &self.cycle,
            _ => &self.call,
        }
    }

    /// What a variant adds to the bare call.
    fn added(&self, rounds: &[&[f64]], variant: Variant, at: f64) -> f64 {
        self.at(rounds, variant, at) - self.at(rounds, Bare, at)
    }

    fn at(&self, rounds: &[&[f64]], variant: Variant, at: f64) -> f64 {
        column(rounds, self.case.place(variant), at)
    }
}

/// The budget's own rows.
fn tax(m: &Measured) -> Row {
    let taxed = m.taxed();
    let ours = taxed.estimate(|rounds| m.added(rounds, Ours, AT));
    let trivial = taxed.estimate(|rounds| m.added(rounds, Trivial, AT));
    let ratio = taxed.estimate(|rounds| m.added(rounds, Ours, AT) / m.added(rounds, Trivial, AT));
    let all = taxed.all();
    let minima = m.added(&all, Ours, 0.0) / m.added(&all, Trivial, 0.0);
    let row = Row::new(format!("{}: added", m.case.name()), ours, Unit::Nanoseconds)
        .beside("trivial hook", trivial.value, ratio)
        .minima(minima);
    match m.case.destination {
        Destination::Hot | Destination::Wide => row.at_most(Target::Ratio(TAX)),
        Destination::Outside | Destination::Inside => row.at_most(Target::Ratio(TAX_OF_NOBODY)),
        Destination::Reset | Destination::Dead | Destination::Getpeername => row,
    }
}

fn whole(m: &Measured) -> Row {
    let ours = m.call.estimate(|rounds| m.at(rounds, Ours, AT));
    let bare = m.call.estimate(|rounds| m.at(rounds, Bare, AT));
    let ratio = m
        .call
        .estimate(|rounds| m.at(rounds, Ours, AT) / m.at(rounds, Bare, AT));
    let row = Row::new(
        format!("{}: whole call", m.case.name()),
        ours,
        Unit::Nanoseconds,
    )
    .beside("no program", bare.value, ratio);
    match m.case.destination {
        Destination::Hot => row.at_most(Target::Ratio(WHOLE)),
        Destination::Outside | Destination::Inside => row.at_most(Target::Ratio(WHOLE_OF_NOBODY)),
        _ => row,
    }
}

/// From `socket(2)` to `close(2)`: for reading beside the rates that others publish.
fn cycle(m: &Measured) -> Row {
    let ours = m.cycle.estimate(|rounds| m.at(rounds, Ours, AT));
    let bare = m.cycle.estimate(|rounds| m.at(rounds, Bare, AT));
    let ratio = m
        .cycle
        .estimate(|rounds| m.at(rounds, Ours, AT) / m.at(rounds, Bare, AT));
    Row::new(
        format!("{}: socket to close", m.case.name()),
        ours,
        Unit::Nanoseconds,
    )
    .beside("no program", bare.value, ratio)
}

/// Hook + draw + carrier + outcome = what ours adds. The carrier's calls are measured in a program that does nothing else,
/// its row by what is saved when no row is found; the outcome by what is saved when nothing is on the tracepoints. They never
/// see an orderly connect, so that has no outcome.
fn shares(m: &Measured) -> Vec<Row> {
    let row = |share: &str, figure: &dyn Fn(&[&[f64]]) -> f64| {
        let share = format!("{}: of that, {share}", m.case.name());
        Row::new(share, m.taxed().estimate(figure), Unit::Nanoseconds)
    };
    let at = |rounds: &[&[f64]], variant| m.at(rounds, variant, AT);
    let remembering = if m.case.fails() { Deaf } else { Ours };
    let mut rows = vec![
        row("the hook", &|r| at(r, Trivial) - at(r, Bare)),
        row("the draw", &|r| at(r, Forgetful) - at(r, Asking)),
        row("the carrier", &|r| {
            at(r, remembering) - at(r, Forgetful) + at(r, Asking) - at(r, Trivial)
        }),
    ];
    if m.case.fails() {
        rows.push(row("the outcome", &|r| at(r, Ours) - at(r, Deaf)));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_whole() {
        for destination in [
            Destination::Hot,
            Destination::Wide,
            Destination::Reset,
            Destination::Dead,
        ] {
            let case = Case {
                protocol: Protocol::Tcp,
                services: MANY,
                destination,
            };
            // Each variant costs twice the one before, so that no two mistakes make up for each other.
            let costs = |first: f64| {
                let costs = (0..).map(|place| first * f64::from(1 << place));
                let mut rounds = Rounds::default();
                rounds.push_load(vec![costs.take(case.variants().len()).collect()]);
                rounds
            };
            let measured = Measured {
                case,
                call: costs(1.0),
                cycle: costs(1000.0),
            };
            let parts: f64 = shares(&measured).iter().map(|row| row.ours.value).sum();
            let added = tax(&measured).ours.value;
            assert!(
                (parts - added).abs() < 1e-6,
                "{destination:?}: {parts} of {added}"
            );
        }
    }
}
