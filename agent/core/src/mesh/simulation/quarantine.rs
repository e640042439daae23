//! Lists that leave out much.

use super::*;

/// Rows enough to be doubted when they are missing.
pub(super) fn crowd() -> Vec<RowChange> {
    (0..40).map(|n| endpoint("stable", n + 10, true)).collect()
}

pub(super) fn take_back(rows: &[RowChange]) -> Vec<RowChange> {
    rows.iter().map(|row| RowKey::of(row).gone()).collect()
}

#[test]
fn a_false_list_does_not_empty_the_mesh() {
    let mut world = World::new();
    world.say(&crowd());
    world.run(SECOND);
    world.assert_converged();
    let held = |world: &World| world.store.rows[&west().id].len();
    // West lost its state and is given an empty directory: its list is complete, and short.
    let rows = std::mem::take(&mut world.west_rows);
    world.say(&[service("stable", 80), endpoint("stable", 1, true)]);
    world.switch_west(7);
    world.run(SECOND);
    assert_eq!(held(&world), 42, "nothing is believed at once");
    let peer = world.peer();
    assert_eq!(peer.state, PeerState::Connected);
    let quarantine = peer.quarantine.expect("it is told");
    assert_eq!((quarantine.rows, quarantine.held), (40, 42));
    assert!(quarantine.left(world.now) <= GUARD.grace);
    let notices = world.east.take_notices();
    assert!(
        matches!(notices[..], [Notice::Quarantined { .. }]),
        "{notices:?}"
    );
    assert!(
        notices[0]
            .to_string()
            .starts_with("west: its newest list leaves out 40 of 42 rows")
    );
    // Changes go on meanwhile, and so do restarts of ours and the agent's.
    world.say(&[endpoint("stable", 5000, true)]);
    world.run(SECOND);
    assert_eq!(held(&world), 43);
    world.save();
    world.restart_agent();
    world.run(SECOND / 2);
    assert_eq!(held(&world), 43);
    // The directory is back in time: nothing was ever gone.
    for row in rows.all() {
        world.say(&[row]);
    }
    world.run(SECOND);
    assert_eq!(world.peer().quarantine, None);
    assert!(matches!(
        world.east.take_notices()[..],
        [Notice::Confirmed { .. }]
    ));
    world.run(2 * GUARD.grace);
    world.assert_converged();
    let gone = |event: &&FeedEvent| matches!(event, FeedEvent::Rows { batch, .. } if batch.changes.iter().any(|change| matches!(change, RowChange::EndpointGone(_))));
    assert_eq!(world.store.history.iter().find(gone), None);
}

#[test]
fn what_a_true_list_leaves_out_goes_after_the_grace_time() {
    let mut world = World::new();
    world.say(&crowd());
    world.run(SECOND);
    world.west_rows = Rows::default();
    world.say(&[service("stable", 80), endpoint("stable", 1, true)]);
    let held = |world: &World| world.store.rows[&west().id].len();
    world.switch_west(7);
    world.run(GUARD.grace / 2);
    assert_eq!(held(&world), 42);
    // A cut in between, with the same absence told again, gives no second grace time; but nothing goes while it is silent.
    world.cut_link();
    world.link_up = false;
    world.run(GUARD.grace);
    assert_eq!(held(&world), 42, "silent");
    world.link_up = true;
    world.run(SECOND);
    assert_eq!(held(&world), 2);
    world.assert_converged();
    let notices = world.east.take_notices();
    assert!(
        matches!(
            notices[..],
            [
                Notice::Quarantined { .. },
                Notice::Released { rows: 40, .. }
            ]
        ),
        "{notices:?}"
    );
}

#[test]
fn explicit_removals_are_believed_live_and_after_a_cut() {
    let mut world = World::new();
    let held = |world: &World| world.store.rows[&west().id].len();
    for cut in [false, true] {
        world.say(&crowd());
        world.run(SECOND);
        assert_eq!(held(&world), 42);
        if cut {
            world.cut_link();
            world.cut_agent();
        }
        world.say(&take_back(&crowd()));
        world.run(SECOND);
        assert_eq!((held(&world), world.peer().quarantine), (2, None));
    }
    world.assert_converged();
}

#[test]
fn an_agent_doubts_its_own_mesh_server_too() {
    let mut world = World::new();
    world.say(&crowd());
    world.run(SECOND);
    // East loses its state, and hears a short list of west before the agent is back.
    world.west_rows = Rows::default();
    world.say(&[service("stable", 80), endpoint("stable", 1, true)]);
    world.agent_up = false;
    world.cut_agent();
    world.east_saved = SavedHub::empty(Epoch(0xea57));
    world.restart_east();
    world.switch_west(7);
    world.run(2 * SECOND);
    world.agent_up = true;
    world.run(SECOND);
    let held = |world: &World| world.store.rows[&west().id].len();
    assert_eq!(held(&world), 42);
    assert_eq!(world.peer().quarantine.map(|q| q.rows), Some(40));
    world.run(GUARD.grace);
    assert_eq!(held(&world), 2);
    world.assert_converged();
}
