//! What a link allows.

use super::quarantine::{crowd, take_back};
use super::*;

fn held(world: &World) -> usize {
    world.store.rows[&west().id].endpoints()
}

#[test]
fn a_link_allows_addresses_and_what_was_refused_is_asked_for_when_it_may_be_had() {
    let mut world = World::new();
    let far = endpoint_at("stable", "10.9.0.1");
    world.say(&[far.clone(), endpoint("stable", 2, true)]);
    world.run(SECOND);
    world.assert_converged();
    assert_eq!(held(&world), 3);
    let near = |rows_max| Terms {
        cidrs: Some(vec!["10.0.0.0/24".parse().unwrap()]),
        rows_max,
        ..Terms::default()
    };
    // At once, and without a word of west.
    world.link_up = false;
    world.cut_link();
    world.allow(near(100));
    world.run(STEP * 3);
    assert_eq!(held(&world), 2);
    world.link_up = true;
    world.run(SECOND);
    let peer = world.peer();
    let outside = |peer: &PeerStatus| -> Vec<(Refusal, u64)> {
        let rows = |report: &RefusalReport| (report.reason, report.rows);
        peer.refusals.iter().map(rows).collect()
    };
    assert_eq!(outside(&peer), [(Refusal::OutsideAddress, 1)]);
    assert_eq!(peer.refusals[0].example, "endpoint 10.9.0.1 of n/stable");
    assert!(matches!(peer.ranges.allowed, Some((RangesFrom::Link, _))));
    let position = world.published().position().unwrap();
    assert_eq!(peer.position.map(|p| p.revision), Some(position.revision));
    assert_ne!(peer.position, Some(position), "it is not all that west has");
    // An agent that comes back is resumed, all the same.
    world.cut_agent();
    world.agent_traffic = Traffic::default();
    world.run(SECOND);
    assert_eq!(world.agent_traffic.beginnings, [Beginning::Resumed]);
    // Allowed again while connected: one list is asked for, and nothing else is told anew.
    (world.link_traffic, world.agent_traffic) = (Traffic::default(), Traffic::default());
    world.allow(Terms::default());
    world.run(3 * SECOND);
    world.assert_converged();
    assert_eq!(world.link_traffic.beginnings, [Beginning::Asked]);
    assert_eq!(world.agent_traffic.rows, 1);
    assert_eq!(outside(&world.peer()), [(Refusal::OutsideAddress, 0)]);
}

#[test]
fn a_peer_beyond_its_quota_is_cut_short_and_made_whole_when_there_is_room() {
    let mut world = World::new();
    world.allow(Terms {
        rows_max: 20,
        ..Terms::default()
    });
    world.say(&crowd());
    world.run(SECOND);
    let held = |world: &World| world.store.rows[&west().id].len();
    assert_eq!(held(&world), 20);
    let peer = world.peer();
    assert_eq!(peer.state, PeerState::Connected);
    assert_eq!(
        (peer.refusals[0].reason, peer.refusals[0].rows),
        (Refusal::TooManyRows, 22)
    );
    // What is held stays and changes.
    world.say(&[service("stable", 81)]);
    world.run(SECOND);
    assert_eq!(held(&world), 20);
    // West shrinks.
    world.say(&take_back(&crowd()[..30]));
    world.run(2 * SECOND);
    world.assert_converged();
    assert_eq!((held(&world), world.peer().refusals[0].rows), (12, 0));
}

#[test]
fn where_a_peers_endpoints_are_is_learnt_once_and_held_to() {
    let mut world = World::new();
    let announce = |world: &mut World, cidr: &str| {
        let mut settings = world.west_settings.clone();
        settings.cidrs = vec![cidr.parse().unwrap()];
        world.west_settings = settings;
        world.restart_west();
        world.retell_west();
        world.run(SECOND);
    };
    world.run(SECOND);
    assert_eq!(world.peer().ranges, Ranges::default());
    announce(&mut world, "10.0.0.0/24");
    let near: Vec<IpNet> = vec!["10.0.0.0/24".parse().unwrap()];
    let learnt = || Some((RangesFrom::Learnt, near.clone()));
    assert_eq!(world.peer().ranges.allowed, learnt());
    let told = world.east.take_notices();
    assert!(matches!(told[..], [Notice::Learnt { .. }]), "{told:?}");
    // It says otherwise later, be it that its own rules are weaker, or that it is not what it was.
    announce(&mut world, "10.0.0.0/8");
    world.say(&[endpoint_at("stable", "10.9.0.1")]);
    world.run(SECOND);
    let peer = world.peer();
    assert_eq!(peer.ranges.allowed, learnt());
    assert_eq!(peer.ranges.announced, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(world.store.rows[&west().id].endpoints(), 1);
    // That outlives us.
    world.save();
    world.restart_east();
    world.run(SECOND);
    assert_eq!(world.peer().ranges.allowed, learnt());
    assert_eq!(world.store.rows[&west().id].endpoints(), 1);
    // The operator has the last word.
    world.allow(Terms {
        cidrs: Some(vec!["10.0.0.0/8".parse().unwrap()]),
        ..Terms::default()
    });
    world.run(3 * SECOND);
    assert_eq!(world.store.rows[&west().id].endpoints(), 2);
    world.assert_converged();
}

/// A peer's row is held, and comes from the state file into a life with other rules, in which west does not say a word.
fn live_on(world: &mut World, narrow: impl Fn(&mut World), reason: Refusal) {
    let wide = world.terms.clone();
    world.say(&[endpoint_at("stable", "10.9.0.1")]);
    world.run(3 * SECOND);
    assert_eq!(held(world), 2);
    world.save();
    world.link_up = false;
    narrow(world);
    world.restart_east();
    world.run(SECOND);
    for link_up in [false, true] {
        world.link_up = link_up;
        world.run(SECOND);
        let refused = |report: RefusalReport| (report.reason, report.rows);
        let refused: Vec<_> = world.peer().refusals.into_iter().map(refused).collect();
        assert_eq!((held(world), refused), (1, vec![(reason, 1)]));
    }
    // As wide as before in the next one.
    world.save();
    (world.terms, world.east_cidrs) = (wide, Vec::new());
    world.restart_east();
    world.run(3 * SECOND);
    assert_eq!(held(world), 2);
    world.assert_converged();
}

#[test]
fn rows_of_an_earlier_life_are_held_to_our_own_ranges_of_this_one() {
    let mut world = World::new();
    let narrow = |world: &mut World| world.east_cidrs = vec!["10.9.0.0/16".parse().unwrap()];
    live_on(&mut world, narrow, Refusal::OwnAddress);
}

#[test]
fn rows_of_an_earlier_life_are_held_to_what_was_learnt_when_the_link_allows_no_more() {
    let mut world = World::new();
    for announced in ["10.0.0.0/24", "10.0.0.0/8"] {
        world.west_settings.cidrs = vec![announced.parse().unwrap()];
        world.restart_west();
        world.retell_west();
        world.run(SECOND);
    }
    world.allow(Terms {
        cidrs: Some(vec!["10.0.0.0/8".parse().unwrap()]),
        ..Terms::default()
    });
    let narrow = |world: &mut World| world.terms = Terms::default();
    live_on(&mut world, narrow, Refusal::OutsideAddress);
}
