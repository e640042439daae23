#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
use std::time::Duration;

use super::*;
use crate::mesh::Epoch;
use crate::mesh::simulation::{endpoint, service};

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
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            intake: Intake::default(),
            rows: Rows::default(),
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

    fn say(&mut self, changes: Vec<RowChange>) -> Vec<RowChange> {
        self.intake.rows(&mut self.rows, changes, None).unwrap()
    }

    fn live(&mut self, changes: Vec<RowChange>, revision: u64) {
        let position = Some(position(revision));
        self.intake.rows(&mut self.rows, changes, position).unwrap();
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
    let say = |world: &mut World, position| world.intake.rows(&mut world.rows, row(), position);
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
    let load = |rows: &Rows| Intake::default().load(rows).open();
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
