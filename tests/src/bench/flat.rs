//! G3, flat in scale: a connect to a random one of very many services beside one of few.

use anyhow::{Result, ensure};
use isthmus_core::model::Protocol;
use serde_json::json;

use super::arena::Arena;
use super::machine::{interleaved, pin};
use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Random, Rounds, column};
use super::tax::calls::{Caller, TIMED, WARM};
use super::tax::expect_bare;
use super::tax::fleet::{Fleet, Scale, Variant};

const ROUNDS: usize = 320;
/// As in G1; each fills a million rows.
const LOADS: usize = 4;
const FEW: Scale = Scale::of(10);
const MANY: Scale = Scale {
    services: 100_000,
    each: 10,
};
/// Time of the one over that of the other, random keys.
const FLAT: f64 = 1.15;
/// Of batches, as in G1.
const AT: f64 = 0.1;

/// Places in a round.
const BARE: usize = 0;
const OF_FEW: usize = 1;
const OF_MANY: usize = 2;

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let rounds = batches.unwrap_or(ROUNDS).max(2);
    let loads = LOADS.min(rounds / 2);
    let arena = Arena::enter()?;
    let cpu = pin()?;
    let mut random = Random::new(2026);
    let caller = Caller::new(Protocol::Udp)?;
    let mut calls = Rounds::default();
    let mut discarded = 0;
    for load in 0..loads {
        expect_bare()?;
        let share = (load + 1) * rounds / loads - load * rounds / loads;
        let fleets = [FEW, MANY].map(|scale| Fleet::build(&arena, scale, Protocol::Udp));
        let [few, many] = fleets;
        let (few, many) = (few?, many?);
        let before = few.sent() + many.sent();
        let mut made = 0;
        let table = interleaved::<3>(&cpu, share, &mut discarded, |place| {
            let (fleet, variant) = match place {
                BARE => (&few, Variant::Bare),
                OF_FEW => (&few, Variant::Ours),
                _ => (&many, Variant::Ours),
            };
            let targets = fleet.targets(variant, true, &mut random, WARM + TIMED);
            let _links = fleet.attach(variant)?;
            if variant == Variant::Ours {
                made += targets.len();
            }
            Ok(caller.batch(&targets)?.connect)
        })?;
        let sent = few.sent() + many.sent() - before;
        ensure!(
            sent == made as u64,
            "{made} connects were made to services, {sent} translated"
        );
        calls.push_load(table);
    }
    Ok(Sheet {
        title: "a connect to a random service of 100,000 with 10 backends each, over one of 10 services",
        method: format!(
            "{rounds} rounds of interleaved batches of {TIMED} UDP connects by fresh sockets in one process, over {loads} loads of the \
             programs, pinned to {cpu}; a batch's value is the median by the clock, for there is no instruction counter; figures are \
             the 10th percentile of the batches, [95% bootstrap interval over loads and rounds]; {discarded} rounds were thrown away \
             for stolen time"
        ),
        rows: rows(&calls),
        raw: json!({"variants": ["bare", "few", "many"], "unit": "nanoseconds; loads of rounds of variants", "call": calls}),
    })
}

fn rows(calls: &Rounds) -> Vec<Row> {
    let at = |place: usize| move |rounds: &[&[f64]]| column(rounds, place, AT);
    let added = |place: usize| {
        move |rounds: &[&[f64]]| column(rounds, place, AT) - column(rounds, BARE, AT)
    };
    let over = |figure: &dyn Fn(usize) -> f64| figure(OF_MANY) / figure(OF_FEW);
    vec![
        Row::new("whole call", calls.estimate(at(OF_MANY)), Unit::Nanoseconds)
            .beside(
                "of 10 services",
                calls.estimate(at(OF_FEW)).value,
                calls.estimate(|rounds| over(&|place| column(rounds, place, AT))),
            )
            .at_most(Target::Ratio(FLAT)),
        Row::new(
            "added to it",
            calls.estimate(added(OF_MANY)),
            Unit::Nanoseconds,
        )
        .beside(
            "of 10 services",
            calls.estimate(added(OF_FEW)).value,
            calls.estimate(|rounds| {
                over(&|place| column(rounds, place, AT) - column(rounds, BARE, AT))
            }),
        ),
    ]
}
