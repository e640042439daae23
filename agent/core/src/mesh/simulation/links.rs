//! Who may say what, and who hears whom.

use super::*;

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
        bad: vec![],
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
    let refusal = RefusalReport {
        reason: Refusal::ForeignCluster,
        rows: 0,
        total: 1,
        example: "cluster id 3".to_owned(),
    };
    assert_eq!((peer.refusals, peer.last_error), (vec![refusal], None));
    let notices = world.east.take_notices();
    let words: Vec<String> = notices.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        ["west: 1 rows refused (foreign-cluster), among them cluster id 3"]
    );
}

#[test]
fn duplicates_are_refused_with_both_names() {
    let mut world = World::new();
    world.run(SECOND);
    let lab: ClusterName = "lab2".parse().unwrap();
    let names = [west().name, lab.clone()];
    let links: BTreeMap<_, _> = names.map(|name| (name, Terms::default())).into();
    world.east.set_links(&links, true, world.now);
    let hello = |name: &str, id| ServerHello {
        cluster: cluster(name, id),
        epoch: Epoch(9),
        heartbeat: HEARTBEAT,
        guard: GUARD,
        cidrs: vec![],
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
