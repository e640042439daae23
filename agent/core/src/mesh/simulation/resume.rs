//! What a reconnect costs, and what it may not cost.

use super::*;

#[test]
fn a_restart_resumes_and_sends_no_row_again() {
    let mut world = World::new();
    world.run(2 * SECOND);
    world.save();
    let restart_west: fn(&mut World) = |world| {
        world.restart_west();
        world.retell_west();
    };
    for restart in [
        restart_west,
        World::restart_east,
        World::restart_agent,
        World::cut_link,
        World::cut_agent,
    ] {
        restart(&mut world);
        let resumed = world.feed.status().resumed;
        let before = world.store.history.len();
        world.run(2 * SECOND);
        world.assert_converged();
        let new = &world.store.history[before..];
        let rows = |event: &&FeedEvent| matches!(event, FeedEvent::Rows { batch, .. } if !batch.changes.is_empty());
        assert_eq!(new.iter().filter(rows).count(), 0, "{new:?}");
        assert!(world.feed.status().resumed >= resumed);
    }
    assert!(world.feed.status().resumed >= 1);
}

#[test]
fn a_message_that_comes_again_later_changes_nothing() {
    let mut world = World::new();
    world.run(SECOND);
    let mut written = Vec::new();
    for port in [80, 81] {
        world.say(&[service("s", port)]);
        let view = world.west.view(world.now);
        written.extend(world.link.as_mut().unwrap().watcher.poll(&view, world.now));
    }
    let first = written[0].clone();
    assert!(
        matches!(first.message, FromServer::Rows { .. }),
        "{first:?}"
    );
    let queue = &mut world.link.as_mut().unwrap().queue;
    queue.extend(written);
    queue.push_back(first);
    world.run(SECOND);
    world.assert_converged();
}

#[test]
fn long_lists_are_paged_and_changes_meanwhile_arrive() {
    let mut world = World::new();
    let many: Vec<RowChange> = (0..3000)
        .map(|n| endpoint("stable", n + 10, true))
        .collect();
    world.say(&many);
    world.step();
    world.say(&[
        RowKey::of(&many[5]).gone(),
        RowKey::of(&many[2900]).gone(),
        endpoint("stable", 9000, false),
    ]);
    world.run(3 * SECOND);
    world.assert_converged();
    assert_eq!(world.store.rows[&west().id].endpoints(), 3000);
}

#[test]
fn a_reconnect_costs_the_difference_and_a_forgotten_one_a_list() {
    let mut world = World::new();
    let many: Vec<RowChange> = (0..3000)
        .map(|n| endpoint("stable", n + 10, true))
        .collect();
    world.say(&many);
    world.run(3 * SECOND);
    world.assert_converged();
    // Both wires are cut while three rows change; then east restarts too.
    type Back = fn(&mut World);
    let back: [Back; 2] = [
        |_| {},
        |world| {
            world.save();
            world.restart_east();
        },
    ];
    for back in back {
        (world.link_up, world.agent_up) = (false, false);
        world.cut_link();
        world.cut_agent();
        world.say(&[
            RowKey::of(&many[5]).gone(),
            endpoint("stable", 9000, false),
            service("new", 80),
        ]);
        world.run(SECOND);
        (world.link_traffic, world.agent_traffic) = (Traffic::default(), Traffic::default());
        back(&mut world);
        world.heal();
        world.assert_converged();
        for traffic in [&world.link_traffic, &world.agent_traffic] {
            assert_eq!(traffic.beginnings, [Beginning::Resumed]);
            assert_eq!(traffic.rows, 3);
        }
        world.say(&[
            many[5].clone(),
            RowKey::of(&endpoint("stable", 9000, true)).gone(),
            RowChange::ServiceGone(ObjectName::new("n", "new")),
        ]);
        world.run(SECOND);
    }

    // As many rows went as there are: west no longer knows which.
    world.link_up = false;
    world.cut_link();
    for round in 0..2 {
        for row in &many {
            world.say(&[if round == 0 {
                RowKey::of(row).gone()
            } else {
                row.clone()
            }]);
        }
    }
    world.say(
        &many
            .iter()
            .map(RowKey::of)
            .map(RowKey::gone)
            .collect::<Vec<_>>(),
    );
    (world.link_traffic, world.agent_traffic) = (Traffic::default(), Traffic::default());
    world.heal();
    world.assert_converged();
    assert_eq!(world.link_traffic.beginnings, [Beginning::HistoryGone]);
    assert_eq!(world.link_traffic.rows, 2, "what is left is listed");
    // A list of two rows is shorter than 3,000 removals.
    assert_eq!(world.agent_traffic.beginnings, [Beginning::Lagged]);
    assert_eq!(world.agent_traffic.rows, 2);
}

#[test]
fn a_slow_consumer_is_resynchronised_and_the_queue_stays_short() {
    let mut world = World::new();
    world.run(SECOND);
    world.agent.as_mut().unwrap().slow = true;
    let rows = |n: u32| (0..1000).map(move |e| endpoint("stable", 10 + 1000 * n + e, true));
    world.say(&rows(0).collect::<Vec<_>>());
    world.run(SECOND / 2);
    // While it reads those, more come and go than is remembered.
    for n in 1..20 {
        world.say(&rows(n).collect::<Vec<_>>());
        world.step();
        let gone = rows(n).map(|row| RowKey::of(&row).gone());
        world.say(&gone.collect::<Vec<_>>());
        world.say(&[endpoint("stable", 100_000 + n, true)]);
        world.step();
        assert!(world.agent.as_ref().unwrap().queue.len() <= QUEUE);
    }
    world.run(5 * SECOND);
    world.assert_converged();
    assert!(
        world.agent_traffic.beginnings.contains(&Beginning::Lagged),
        "{:?}",
        world.agent_traffic.beginnings
    );
    assert_eq!(world.store.rows[&west().id].endpoints(), 1 + 1000 + 19);
}

/// West crashes before its state file holds what it told last. Nobody goes back to what the file says.
#[test]
fn a_crash_takes_nobody_back_in_time() {
    let mut world = World::new();
    world.say(&[service("short", 80), endpoint("stable", 2, true)]);
    world.run(SECOND);
    world.save();
    world.say(&[
        RowChange::ServiceGone(ObjectName::new("n", "short")),
        endpoint("stable", 2, false),
        endpoint("stable", 3, true),
    ]);
    world.run(SECOND);
    world.assert_converged();
    // East crashes with it, so that neither knows what the agent holds.
    world.restart_west();
    world.restart_east();
    world.link_traffic = Traffic::default();
    let before = world.store.history.len();
    world.run(5 * SECOND);
    assert!(!world.store.stale[&west().id], "it is heard");
    world.retell_west();
    world.run(2 * SECOND);
    world.assert_converged();
    let rows = |event: &&FeedEvent| matches!(event, FeedEvent::Rows { .. });
    let told = world.store.history[before..].iter().filter(rows);
    assert_eq!(told.collect::<Vec<_>>(), Vec::<&FeedEvent>::new());
}

#[test]
fn another_replica_goes_on_where_one_left() {
    let mut world = World::new();
    world.run(SECOND);
    world.link_traffic = Traffic::default();
    world.agent_traffic = Traffic::default();
    for epoch in 1..4 {
        world.switch_west(epoch);
        world.run(SECOND);
        world.assert_converged();
        assert_eq!(world.peer().position.map(|p| p.epoch), Some(Epoch(epoch)));
    }
    assert_eq!(world.link_traffic.beginnings, [Beginning::Resumed; 3]);
    assert_eq!((world.link_traffic.rows, world.agent_traffic.rows), (0, 0));
}
