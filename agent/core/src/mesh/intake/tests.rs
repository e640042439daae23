#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
use std::time::Duration;

use super::*;
use crate::mesh::Epoch;
use crate::mesh::simulation::{endpoint, endpoint_at, service};

const GRACE: Duration = Duration::from_secs(60);

fn position(revision: u64) -> Position {
    Position {
        epoch: Epoch(7),
        revision,
        digest: revision,
    }
}

fn gone(row: &RowChange) -> RowChange {
    RowKey::of(row).gone()
}

/// An intake with its table, and a clock that stands unless told otherwise.
struct World {
    intake: Intake,
    rows: Rows,
    rules: Rules<'static>,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            intake: Intake::default(),
            rows: Rows::default(),
            rules: Rules::NONE,
            now: Instant::now(),
        }
    }

    /// At position 1, live.
    fn with(list: Vec<RowChange>) -> Self {
        let mut world = Self::new();
        assert_eq!(world.intake.open(), None);
        world.list(Beginning::First, list.clone());
        assert_eq!(world.rows.all(), list);
        world
    }

    fn start(&mut self, beginning: Beginning) -> Result<(), &'static str> {
        self.intake.start(beginning, &self.rows)
    }

    fn tell(
        &mut self,
        changes: Vec<RowChange>,
        position: Option<Position>,
    ) -> Result<Vec<RowChange>, &'static str> {
        let (rows, rules) = (&mut self.rows, &self.rules);
        self.intake.rows(rows, changes, vec![], position, rules)
    }

    fn say(&mut self, changes: Vec<RowChange>) -> Vec<RowChange> {
        self.tell(changes, None).unwrap()
    }

    fn live(&mut self, changes: Vec<RowChange>, revision: u64) {
        self.tell(changes, Some(position(revision))).unwrap();
    }

    fn complete(&mut self, revision: u64) -> Result<Vec<RowChange>, &'static str> {
        let (guard, position) = (Guard::default(), position(revision));
        self.intake
            .complete(&mut self.rows, position, guard, self.now)
    }

    /// A whole list that leads to position 1. What goes with it.
    fn list(&mut self, beginning: Beginning, list: Vec<RowChange>) -> Vec<RowChange> {
        self.start(beginning).unwrap();
        self.say(list);
        assert!(!self.intake.is_still());
        let gone = self.complete(1).unwrap();
        assert!(self.intake.is_still());
        gone
    }

    fn release(&mut self) -> usize {
        self.intake.release(&mut self.rows, self.now).len()
    }

    fn withheld(&self) -> usize {
        self.intake.quarantine().map_or(0, |held| held.rows)
    }
}

fn pair() -> World {
    World::with(vec![service("a", 80), service("b", 80)])
}

#[test]
fn a_list_sweeps_what_it_does_not_name() {
    let mut world = pair();
    world.live(vec![service("c", 80), endpoint("b", 1, true)], 2);
    assert_eq!(world.intake.open(), Some(position(2)));
    world.start(Beginning::HistoryGone).unwrap();
    let list = vec![service("a", 80), service("b", 81)];
    assert_eq!(world.say(list), vec![service("b", 81)]);
    // Named, and gone again before the end.
    world.say(vec![service("c", 80), gone(&service("c", 80))]);
    assert_eq!(world.complete(3), Ok(vec![gone(&endpoint("b", 1, true))]));
    assert_eq!(world.rows.all(), vec![service("a", 80), service("b", 81)]);
    assert_eq!(world.rows.position(), Some(position(3)));
}

#[test]
fn a_difference_changes_what_it_names_and_nothing_else() {
    let mut world = pair();
    assert_eq!(world.intake.open(), Some(position(1)));
    world.start(Beginning::Resumed).unwrap();
    let difference = vec![service("b", 81), gone(&service("c", 80))];
    assert_eq!(world.say(difference), vec![service("b", 81)]);
    assert_eq!(world.rows.position(), None);
    assert_eq!(world.complete(2), Ok(vec![]));
    assert_eq!(world.rows.all(), vec![service("a", 80), service("b", 81)]);
    assert_eq!(world.rows.position(), Some(position(2)));
    // Nothing changed at all, and another replica's name for it.
    assert_eq!(world.intake.open(), Some(position(2)));
    world.start(Beginning::Resumed).unwrap();
    assert_eq!(world.complete(9), Ok(vec![]));
    assert_eq!(world.rows.position(), Some(position(9)));
}

/// Each is how a first stream ends in the middle; then one takes up at the state before.
#[test]
fn a_stream_that_ended_half_way_leaves_nothing_behind() {
    let half = || vec![gone(&service("a", 80)), service("c", 80), service("b", 81)];
    type Half = (Option<Beginning>, Vec<RowChange>);
    let halves: [Half; 3] = [
        (None, half()), // Of a change of many rows.
        (Some(Beginning::Resumed), half()),
        (
            Some(Beginning::HistoryGone),
            vec![service("b", 82), service("c", 80)],
        ),
    ];
    for (beginning, half) in halves {
        let mut world = pair();
        if let Some(beginning) = beginning {
            world.intake.open();
            world.start(beginning).unwrap();
        }
        world.say(half);
        // The next server is a replica that has not heard of `c`, and has `b` at 81.
        assert_eq!(world.intake.open(), Some(position(1)));
        world.start(Beginning::Resumed).unwrap();
        world.say(vec![service("b", 81)]);
        let restored = world.complete(2).unwrap();
        assert!(restored.contains(&gone(&service("c", 80))), "{restored:?}");
        assert_eq!(world.rows.all(), vec![service("a", 80), service("b", 81)]);
    }
}

#[test]
fn what_no_server_may_say() {
    let row = || vec![service("a", 80)];
    let say = |world: &mut World, position| world.tell(row(), position);
    let mut world = World::new();
    assert!(say(&mut world, None).is_err());
    assert!(world.complete(1).is_err());
    assert!(world.start(Beginning::Resumed).is_err(), "nothing is held");
    world.start(Beginning::First).unwrap();
    assert!(say(&mut world, Some(position(1))).is_err());
    let mut world = pair();
    assert!(world.complete(1).is_err());
    world.intake.open();
    world.start(Beginning::Resumed).unwrap();
    assert!(say(&mut world, Some(position(1))).is_err());
    // A state file's rows are held, if they are whole.
    let load = |rows: &Rows| Intake::default().load(rows, true).open();
    assert_eq!(load(&world.rows), Some(position(1)));
    world.rows.apply(&service("c", 80));
    assert_eq!(load(&world.rows), None);
}

/// A service and 39 endpoints.
fn crowd() -> Vec<RowChange> {
    let endpoints = (1..40).map(|n| endpoint("a", n, true));
    std::iter::once(service("a", 80)).chain(endpoints).collect()
}

#[test]
fn a_short_list_is_doubted_unless_its_server_lived_on() {
    for (beginning, doubted) in [
        (Beginning::First, true),
        (Beginning::HistoryGone, true),
        (Beginning::Lagged, false),
    ] {
        let mut world = World::with(crowd());
        world.intake.open();
        let gone = world.list(beginning, crowd()[..10].to_vec()).len();
        let (wanted_gone, wanted_held) = if doubted { (0, 30) } else { (30, 0) };
        assert_eq!(
            (gone, world.withheld()),
            (wanted_gone, wanted_held),
            "{beginning:?}"
        );
        assert_eq!(world.rows.len(), 10 + wanted_held);
    }
    // Begun again before its end, the first list is still the first.
    let mut world = World::with(crowd());
    world.intake.open();
    world.start(Beginning::First).unwrap();
    assert_eq!(world.list(Beginning::Lagged, vec![]), vec![]);
    assert_eq!(world.withheld(), 40);
}

#[test]
fn the_grace_time_ends_once_and_what_is_named_meanwhile_stays() {
    let mut world = World::with(crowd());
    world.intake.open();
    world.list(Beginning::First, vec![]);
    assert_eq!((world.withheld(), world.intake.is_exact()), (40, false));
    let deadline = world.intake.next_deadline().unwrap();
    assert_eq!(deadline, world.now + GRACE);

    // Named: by a change, even one to what is held; and by a removal.
    world.live(vec![service("a", 80), endpoint("a", 1, false)], 2);
    world.live(vec![gone(&endpoint("a", 2, true))], 3);
    assert_eq!((world.withheld(), world.rows.len()), (37, 39));

    // Told again in half the time: the deadline is the same. With more missing: a new one.
    world.now += GRACE / 2;
    let named = || vec![service("a", 80), endpoint("a", 1, false)];
    world.intake.open();
    world.list(Beginning::First, named());
    assert_eq!(world.withheld(), 37);
    assert_eq!(world.intake.next_deadline(), Some(deadline));
    world.intake.open();
    world.list(Beginning::First, vec![service("a", 80)]);
    assert_eq!(world.withheld(), 38);
    assert_eq!(world.intake.next_deadline(), Some(world.now + GRACE));

    // A server that lived on lists anew: that decides about what was named since, and not about what is withheld.
    world.live(vec![endpoint("a", 100, true)], 4);
    let gone = world.list(Beginning::Lagged, vec![service("a", 80)]);
    assert_eq!(gone.len(), 1);
    assert_eq!(world.withheld(), 38);

    assert_eq!(world.release(), 0);
    world.now += GRACE;
    assert_eq!(world.release(), 38);
    assert_eq!((world.withheld(), world.intake.is_exact()), (0, true));
    assert_eq!(world.rows.all(), vec![service("a", 80)]);
    assert_eq!(world.rows.position(), Some(position(1)), "it is settled");
    // What a stream takes up from is the newest state, without them.
    world.intake.open();
    world.start(Beginning::Resumed).unwrap();
    assert_eq!(world.complete(2), Ok(vec![]));
}

#[test]
fn an_absence_told_again_after_its_grace_time_is_believed() {
    let mut world = World::with(crowd());
    world.intake.open();
    world.list(Beginning::First, vec![]);
    world.now += GRACE; // Nobody released: the peer was silent.
    world.intake.open();
    assert_eq!(world.list(Beginning::First, vec![]).len(), 40);
    assert!(world.intake.is_exact() && world.rows.is_empty());
}

#[test]
fn a_list_that_is_not_doubted_ends_a_quarantine() {
    let mut world = World::with(crowd());
    world.intake.open();
    world.list(Beginning::First, vec![]);
    world.intake.open();
    let gone = world.list(Beginning::First, crowd()[..35].to_vec());
    assert_eq!((gone.len(), world.withheld()), (5, 0));
}

#[test]
fn states_that_differ_from_the_publishers_have_names_of_their_own() {
    let mut world = World::with(crowd());
    world.intake.salt = Some(Salt::new(1, 1));
    world.intake.open();
    world.list(Beginning::First, vec![]);
    let first = world.rows.position().unwrap();
    assert_eq!((first.epoch, first.revision), (Epoch(7), 1));
    assert_ne!(first.digest, position(1).digest);
    assert_eq!(world.intake.open(), Some(position(1)), "as its server says");
    world.intake.stage = Stage::Live;
    world.live(vec![service("b", 80)], 1);
    assert_ne!(world.rows.position(), Some(first));
    world.now += GRACE;
    world.release();
    assert_eq!(world.rows.position(), Some(position(1)));
}

/// Refused now, by reason.
fn refused(world: &World) -> Vec<(Refusal, u64)> {
    let reports = world.intake.refused().report().into_iter();
    let standing = reports.filter(|report| report.rows > 0);
    standing
        .map(|report| (report.reason, report.rows))
        .collect()
}

#[test]
fn what_breaks_a_rule_is_refused_row_by_row_and_the_rest_goes_on() {
    let mut world = pair();
    world.intake.salt = Some(Salt::new(1, 1));
    let told = vec![
        endpoint("a", 1, true),
        endpoint_at("a", "127.0.0.1"),
        service("c", 80),
    ];
    world.live(told, 2);
    assert_eq!(world.rows.len(), 4);
    assert_eq!(refused(&world), [(Refusal::SpecialAddress, 1)]);
    let name = world.rows.position().unwrap();
    assert_eq!(name.revision, 2);
    assert_ne!(name.digest, 2, "not all that the publisher calls so");
    // It takes it back: then all is as it says.
    world.live(vec![gone(&endpoint_at("a", "127.0.0.1"))], 3);
    assert_eq!(refused(&world), []);
    assert_eq!(world.rows.position(), Some(position(3)));
}

#[test]
fn a_row_that_became_bad_is_not_held_as_it_was() {
    let mut world = pair();
    let bad = |key| BadRow {
        key,
        field: "ports",
    };
    let key = RowKey::of(&service("a", 80));
    let rows = (&mut world.rows, vec![bad(Some(key)), bad(None)]);
    let told = world
        .intake
        .rows(rows.0, vec![], rows.1, Some(position(2)), &world.rules);
    assert_eq!(told, Ok(vec![gone(&service("a", 80))]));
    assert_eq!(world.rows.all(), vec![service("b", 80)]);
    assert_eq!(refused(&world), [(Refusal::Malformed, 1)]);
    assert_eq!(world.intake.refused().total(), 2);
    world.live(vec![service("a", 82)], 3);
    assert_eq!(refused(&world), []);
    assert_eq!(world.rows.len(), 2);
}

#[test]
fn quotas_count_what_the_publisher_has_and_not_what_is_about_to_go() {
    let mut world = World::with(crowd()); // 40 rows.
    world.rules.rows_max = 40;
    world.live(vec![endpoint("a", 1, false)], 2);
    assert_eq!(refused(&world), [], "a change of a row that it has");
    world.live(vec![endpoint("a", 100, true)], 3);
    assert_eq!(refused(&world), [(Refusal::TooManyRows, 1)]);
    let replaced = vec![gone(&endpoint("a", 1, true)), endpoint("a", 101, true)];
    world.live(replaced, 4);
    assert_eq!((world.rows.len(), refused(&world).len()), (40, 1));
    // A list of others, as many: those held go at its end, and do not count.
    let others: Vec<RowChange> = (0..40).map(|n| service(&format!("s{n}"), 80)).collect();
    world.intake.open();
    world.start(Beginning::Lagged).unwrap();
    world.say(others.clone());
    world.say(vec![service("s0", 81), service("s99", 80)]);
    assert_eq!(refused(&world), [(Refusal::TooManyRows, 1)]);
    world.complete(5).unwrap();
    assert_eq!(world.rows.len(), 40);
    // What is in quarantine is not the publisher's.
    world.intake.open();
    world.list(Beginning::First, vec![]);
    world.live(crowd(), 6);
    assert_eq!((world.withheld(), refused(&world)), (40, vec![]));
    assert_eq!(world.rows.len(), 80);
}

#[test]
fn bytes_are_counted_like_rows() {
    let row = |name: &str| service(name, 80);
    let bytes = row_bytes(&row("a"));
    let mut world = pair();
    world.rules.bytes_max = 3 * bytes;
    world.live(vec![row("c")], 2);
    world.live(vec![row("d")], 3);
    assert_eq!(refused(&world), [(Refusal::TooManyBytes, 1)]);
    world.intake.open();
    world.start(Beginning::Lagged).unwrap();
    world.say(vec![
        row("a"),
        row("a"),
        row("b"),
        gone(&row("b")),
        row("c"),
        row("d"),
    ]);
    assert_eq!(refused(&world), []);
    world.say(vec![row("e")]);
    assert_eq!(refused(&world), [(Refusal::TooManyBytes, 1)]);
    world.complete(4).unwrap();
    assert_eq!(world.rows.bytes(), 3 * bytes);
}

#[test]
fn new_rules_hold_at_once_and_no_stream_brings_back_what_they_took() {
    let mut world = pair();
    world.live(
        vec![endpoint("a", 1, true), endpoint_at("a", "10.9.0.1")],
        2,
    );
    let allowed = ["10.0.0.0/24".parse().unwrap()];
    let rules = Rules {
        allowed: Some(&allowed),
        ..Rules::NONE
    };
    let taken = world.intake.enforce(&mut world.rows, &rules);
    assert_eq!(taken, [gone(&endpoint_at("a", "10.9.0.1"))]);
    assert_eq!(refused(&world), [(Refusal::OutsideAddress, 1)]);
    assert!(world.rows.position().is_some(), "it is settled");
    assert_eq!(world.intake.open(), Some(position(2)));
    world.start(Beginning::Resumed).unwrap();
    assert_eq!(world.complete(2), Ok(vec![]));
    assert_eq!(world.rows.endpoints(), 1);
}
