//! Stories, one a test.

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
fn a_third_clusters_rows_are_refused_counted_and_named() {
    let mut world = World::new();
    world.run(SECOND);
    let wire = world.link.as_mut().unwrap();
    let view = world.west.view(world.now);
    // West's next message is about north.
    let sequence = loop {
        match wire.watcher.poll(&view, world.now + 2 * SECOND) {
            Some(said) if matches!(said.message, FromServer::Heartbeat(_)) => break said.sequence,
            Some(_) => {}
            None => panic!("a heartbeat was due"),
        }
    };
    let north = cluster("north", 3).id;
    let message = FromServer::Rows {
        id: north,
        changes: vec![service("stolen", 80)],
        position: None,
    };
    world
        .east
        .receive(&west().name, Sequenced { sequence, message }, world.now)
        .unwrap();
    world.run(2 * SECOND);
    world.assert_converged();
    let peer = world.peer();
    assert_eq!((peer.state, peer.refused_rows), (PeerState::Connected, 1));
    assert_eq!(
        peer.last_error.unwrap().0,
        "\"west\" spoke for cluster id 3: 1 rows refused, a mesh server speaks for its own cluster only"
    );
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
fn duplicates_are_refused_with_both_names() {
    let mut world = World::new();
    world.run(SECOND);
    let lab: ClusterName = "lab2".parse().unwrap();
    let links: BTreeMap<_, _> = [(west().name, None), (lab.clone(), None)].into();
    world.east.set_links(&links, true, world.now);
    let hello = |name: &str, id| ServerHello {
        cluster: cluster(name, id),
        epoch: Epoch(9),
        heartbeat: HEARTBEAT,
        guard: GUARD,
        version: 1,
    };
    let mut say = |hello: ServerHello| {
        world.east.open(&lab, "e").unwrap();
        let said = Sequenced {
            sequence: 1,
            message: FromServer::Hello(hello),
        };
        world
            .east
            .receive(&lab, said, world.now)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        say(hello("lab2", 2)),
        "cluster id 2 is taken: \"west\" and \"lab2\" both use it; give one another id in its --cluster-id, then restart it"
    );
    assert!(say(hello("lab2", 1)).starts_with("cluster id 1 is taken: \"east\" and \"lab2\""));
    assert!(
        say(hello("east", 7))
            .starts_with("cluster name \"east\" is taken: the clusters with id 1 and id 7")
    );
    assert!(say(hello("north", 7)).contains("the link \"lab2\" reached cluster \"north\" (id 7)"));
    let consumer = |name: &str, id, role| ConsumerHello {
        cluster: cluster(name, id),
        role,
        node: String::new(),
        held: vec![],
        stale_after: None,
        versions: vec![1],
    };
    let mut ask = |hello: ConsumerHello| world.east.admit(&hello).unwrap_err().to_string();
    assert!(
        ask(consumer("lab2", 2, Role::MeshServer))
            .starts_with("cluster id 2 is taken: \"west\" and \"lab2\"")
    );
    assert!(
        ask(consumer("east", 5, Role::MeshServer)).starts_with("cluster name \"east\" is taken")
    );
    assert!(ask(consumer("east", 5, Role::Agent)).contains("same --cluster-name and --cluster-id"));
    world.run(SECOND);
    world.assert_converged();
}

#[test]
fn hears_us_is_told_and_an_unlinked_cluster_goes() {
    let mut world = World::new();
    world.run(10 * SECOND);
    assert_eq!(world.peer().hears_us, HearsUs::No);
    let hello = ConsumerHello {
        cluster: west(),
        role: Role::MeshServer,
        node: String::new(),
        held: vec![],
        stale_after: None,
        versions: vec![1],
    };
    world.east.admit(&hello).unwrap();
    world.run(SECOND);
    assert_eq!(world.peer().hears_us, HearsUs::Yes);
    world.east.leave(&hello);
    world.run(SECOND);
    assert_eq!(world.peer().hears_us, HearsUs::No);
    // Unlinked while the agent is away: it hears of it when it is back.
    world.cut_agent();
    world.link_up = false;
    world.cut_link();
    world.east.set_links(&BTreeMap::new(), false, world.now);
    assert!(world.east.open(&west().name, "e").is_none());
    world.run(SECOND);
    assert!(world.store.rows.is_empty());
    let last = world
        .store
        .history
        .iter()
        .rfind(|event| matches!(event, FeedEvent::Dropped { .. }));
    assert_eq!(
        last,
        Some(&FeedEvent::Dropped {
            cluster: west(),
            why: Dropped::Unlinked
        })
    );
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

/// Rows enough to be doubted when they are missing.
fn crowd() -> Vec<RowChange> {
    (0..40).map(|n| endpoint("stable", n + 10, true)).collect()
}

fn take_back(rows: &[RowChange]) -> Vec<RowChange> {
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
