//! Who is silent, and who is to blame.

use super::*;

#[test]
fn a_cut_makes_stale_then_drops_and_a_word_brings_all_back() {
    let mut world = World::new();
    world.run(SECOND);
    world.assert_converged();
    assert!(world.store.complete[&west().id]);
    world.link_up = false;
    if let Some(wire) = &mut world.link {
        wire.void = true;
    }
    let silent_for = |world: &World| world.now - world.last_word;
    while silent_for(&world) < STALE - STEP {
        world.step();
        assert_eq!(world.peer().state, PeerState::Connected);
    }
    world.run(2 * STEP);
    assert_eq!(world.peer().state, PeerState::Stale);
    assert!(world.store.stale[&west().id]);
    assert_eq!(
        world.store.rows[&west().id].endpoints(),
        1,
        "stale rows stay"
    );
    world.run(TTL);
    assert_eq!(world.peer().state, PeerState::Dropped);
    assert!(world.store.rows.is_empty());
    world.heal();
    world.assert_converged();
    assert!(world.store.complete[&west().id]);
    let listed =
        |event: &&FeedEvent| matches!(event, FeedEvent::Rows { batch, .. } if batch.complete);
    assert_eq!(world.store.history.iter().filter(listed).count(), 2);
}

#[test]
fn while_the_feed_is_lost_nothing_grows_stale() {
    let mut world = World::new();
    world.run(SECOND);
    world.kill_east();
    world.run(2 * TTL);
    assert_eq!(world.feed.status().state, FeedState::Lost);
    assert!(!world.store.stale[&west().id]);
    // Half-open is found by silence, and is no news about west either.
    world.restart_east();
    world.run(SECOND);
    assert_eq!(world.feed.status().state, FeedState::Connected);
    world.agent.as_mut().unwrap().void = true;
    world.agent_up = false;
    world.run(TTL);
    assert_eq!(world.feed.status().state, FeedState::Lost);
    assert!(!world.store.stale[&west().id]);
    world.heal();
    world.assert_converged();
}

#[test]
fn a_restart_with_everybody_dead_loses_nothing_and_a_stale_peer_stays_stale() {
    let mut world = World::new();
    world.run(SECOND);
    world.save();
    world.kill_west();
    world.kill_east();
    world.now += 3600 * SECOND;
    world.restart_agent();
    world.run(TTL);
    let rows = &world.store.rows[&west().id];
    assert_eq!((rows.services(), rows.endpoints()), (1, 1));
    assert!(!world.store.stale[&west().id]);
    assert!(
        !world.store.complete[&west().id],
        "a state file is no passport"
    );
    // East comes back alone: from here on it witnesses the silence.
    world.restart_east();
    world.run(5 * SECOND);
    assert!(world.store.stale[&west().id]);
    world.save();
    world.restart_agent();
    assert!(world.store.stale[&west().id], "its own file says so");
    world.restart_east();
    world.run(SECOND / 2);
    assert!(world.store.stale[&west().id], "no word of west, no change");
    world.heal();
    world.assert_converged();
}

/// A peer that was heard a moment before the clocks were set, and one that was stale, stay what they were in another life;
/// only what people read of the last word's age is wrong, never in the future, and right again with the next word.
#[test]
fn a_wall_clock_that_is_set_between_two_lives_moves_no_silence() {
    let hour = 3600;
    for (silent, was_stale) in [(SECOND / 2, false), (STALE + SECOND, true)] {
        for hours in [-1, 5, -200, 20, -400] {
            let mut world = World::new();
            world.run(SECOND);
            world.link_up = false;
            if let Some(wire) = &mut world.link {
                wire.void = true;
            }
            world.run(silent);
            assert_eq!(world.store.stale[&west().id], was_stale);
            world.save();
            world.kill_east();
            for whose in [Party::East, Party::Agent] {
                world.clocks.set(whose, hours * hour);
            }
            world.restart_agent();
            let shown = |world: &World| {
                let word = world.peer().last_word.expect("it was heard once");
                word.at(world.now)
            };
            let set = Duration::from_secs((hours * hour).unsigned_abs());
            let wanted = if hours < 0 { Duration::ZERO } else { set };
            let wrong = shown(&world);
            assert!(
                wrong >= wanted && wrong - wanted <= silent + 2 * HEARTBEAT,
                "{hours} h: {wrong:?} ago"
            );
            // East comes back, and witnesses no more than it lives through.
            world.restart_east();
            for _ in 0..8 {
                world.step();
                assert_eq!(world.store.stale[&west().id], was_stale, "{hours} h");
            }
            world.run(STALE);
            assert!(world.store.stale[&west().id], "its silence goes on");
            world.save();
            world.heal();
            world.assert_converged();
        }
    }
}

#[test]
fn a_mesh_server_that_was_stopped_blames_nobody() {
    let mut world = World::new();
    world.run(2 * SECOND);
    // East's mesh server does not run for an hour, then runs on: words lie in its socket.
    world.now += 3600 * SECOND;
    if let Some(wire) = &mut world.link {
        wire.heard = world.now;
        wire.watcher.heard(world.now);
    }
    world.run(2 * SECOND);
    assert!(
        world
            .store
            .history
            .iter()
            .all(|event| !matches!(event, FeedEvent::Peer { stale: true, .. }))
    );
    world.heal();
    world.assert_converged();
}

#[test]
fn a_server_that_was_stopped_gives_its_consumer_one_more_heartbeat() {
    let mut world = World::new();
    world.run(2 * SECOND);
    let start = world.now;
    let watcher = &mut world.link.as_mut().unwrap().watcher;
    watcher.heard(start);
    assert_eq!(watcher.deserted_at(), start + 3 * HEARTBEAT);
    assert!(watcher.is_deserted(start + 3 * HEARTBEAT));
    let again = start + 3600 * SECOND;
    assert!(
        !watcher.is_deserted(again),
        "its words may lie in the socket"
    );
    assert!(watcher.is_deserted(again + HEARTBEAT));
}
