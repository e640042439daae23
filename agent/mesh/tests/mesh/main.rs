//! Mesh servers and feeds on real sockets, with real certificates, over wires that can be cut.
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod blind;
mod liar;
mod process;
mod relay;
mod resume;
mod rules;
mod troubles;
mod world;

use std::fs;
use std::time::Duration;

use isthmus_core::mesh::{Dropped, FeedEvent, FeedState, HearsUs, PeerState};
use isthmus_mesh::certs;
use relay::Wire;
use time::OffsetDateTime;
use world::{Agent, HEARTBEAT, MESH_NAME, STALE, World, cluster, endpoint, rows, service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_cross_and_changes_follow_and_an_unlinked_cluster_goes() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| {
            agent.held("west") == Some((1, 1)) && agent.complete("west")
        })
        .await;
    agent
        .until("west does not hear us yet", |agent| {
            agent.peer("west").hears_us != HearsUs::Yes
        })
        .await;

    west.publish(vec![endpoint("backend", 2)]).await;
    agent
        .until("the second endpoint", |agent| {
            agent.held("west") == Some((1, 2))
        })
        .await;
    let position = west.hub.views().borrow().own.ledger.rows().position();
    agent
        .until("its position", |agent| {
            agent.peer("west").position == position
        })
        .await;

    west.link("east", east.address, Some(1));
    agent
        .until("west hears us", |agent| {
            agent.peer("west").hears_us == HearsUs::Yes
        })
        .await;
    assert_eq!(agent.peer("west").state, PeerState::Connected);

    fs::remove_file(east.links.join("west.yaml")).unwrap();
    agent
        .until("west is unlinked", |agent| agent.held("west").is_none())
        .await;
    let dropped = FeedEvent::Dropped {
        cluster: cluster("west", 2),
        why: Dropped::Unlinked,
    };
    assert!(agent.events.contains(&dropped));
    assert!(agent.status().feed.peers.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_wire_makes_stale_and_a_mended_one_resumes() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    east.publish(vec![]).await;
    let wire = Wire::new(west.address).await;
    east.link("west", wire.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    let told = agent.rows_told;

    wire.cut(true);
    let cut = std::time::Instant::now();
    agent
        .until("west is stale", |agent| agent.stale("west"))
        .await;
    assert!(
        cut.elapsed() >= STALE - HEARTBEAT * 3 / 2,
        "stale after {:?}",
        cut.elapsed()
    );
    assert_eq!(agent.held("west"), Some((1, 1)), "stale rows stay");
    agent
        .until("the cause", |agent| agent.peer("west").last_error.is_some())
        .await;
    assert_eq!(agent.peer("west").state, PeerState::Stale);
    assert_eq!(agent.status().feed.state, FeedState::Connected);

    wire.cut(false);
    agent
        .until("west is live", |agent| !agent.stale("west"))
        .await;
    agent
        .until("no error is left", |agent| {
            agent.peer("west").last_error.is_none()
        })
        .await;
    assert_eq!(agent.rows_told, told, "nothing is sent again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_beyond_the_ttl_drops_and_a_word_brings_back() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    east.publish(vec![]).await;
    let wire = Wire::new(west.address).await;
    east.link("west", wire.address, None);
    let mut config = world.agent_config(&east, "east", 1);
    config.ttl = 2 * STALE;
    let mut agent = Agent::new(config);
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    wire.cut(true);
    agent
        .until("west is dropped", |agent| agent.held("west").is_none())
        .await;
    assert_eq!(agent.peer("west").state, PeerState::Dropped);
    wire.cut(false);
    agent
        .until("west is back", |agent| {
            agent.held("west") == Some((1, 1)) && agent.complete("west")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_resume_and_an_agent_alone_keeps_its_rows() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    let told = agent.rows_told;

    // West restarts, and its source says the same.
    let west = west.restart().await;
    west.publish(vec![endpoint("backend", 1), service("backend")])
        .await;
    east.until_connected("west").await;
    assert_eq!(
        west.hub.views().borrow().own.ledger.rows().position(),
        agent.peer("west").position
    );

    // East restarts: the feed is lost, then resumed.
    let east = east.restart().await;
    east.publish(vec![]).await;
    agent
        .until("the feed is resumed", |agent| {
            agent.status().feed.resumed == 1
        })
        .await;
    assert_eq!(agent.rows_told, told, "nothing is sent again");

    // Everybody dies. The agent says what it knew, and no list is complete.
    let config = world.agent_config(&east, "east", 1);
    agent.stop().await;
    west.stop().await;
    east.stop().await;
    let mut agent = Agent::new(config);
    agent
        .until("rows from the state file", |agent| {
            agent.held("west") == Some((1, 1))
        })
        .await;
    assert!(!agent.stale("west") && !agent.complete("west"));
    agent
        .until("the cause", |agent| {
            agent.status().feed.last_error.is_some()
        })
        .await;
    assert_eq!(agent.status().feed.state, FeedState::Connecting);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_just_before_the_end_outlives_it() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(rows(1)).await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    // Within the pause that follows the write of the first rows.
    west.publish(rows(7)).await;
    agent
        .until("more rows", |agent| agent.held("west") == Some((1, 7)))
        .await;
    let config = world.agent_config(&east, "east", 1);
    agent.leave().await;
    east.stop().await;
    let mut agent = Agent::new(config);
    agent
        .until("rows from the state file", |agent| {
            agent.held("west") == Some((1, 7))
        })
        .await;
    agent.stop().await;
    west.stop().await;
}

/// The stream of the old way is no sign that the new one leads anywhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_leads_elsewhere_is_not_connected_until_it_is_anew() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(rows(1)).await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    east.until_connected("west").await;
    // It takes connections, and says nothing.
    let wire = Wire::new(west.address).await;
    wire.cut(true);
    east.link("west", wire.address, None);
    east.until("the old stream is over", |east| !east.is_connected("west"))
        .await;
    assert!(
        east.error("west").contains("its link's file changed"),
        "{}",
        east.error("west")
    );
    wire.cut(false);
    east.until_connected("west").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_id_is_refused_with_both_names_on_both_sides() {
    let world = World::new();
    let (west, east, lab2) = (
        world.mesh("west", 2).await,
        world.mesh("east", 1).await,
        world.mesh("lab2", 2).await,
    );
    for mesh in [&west, &east, &lab2] {
        mesh.publish(vec![service("backend"), endpoint("backend", 1)])
            .await;
    }
    east.link("west", west.address, None);
    east.until_connected("west").await;
    east.link("lab2", lab2.address, None);
    lab2.link("east", east.address, None);
    let words = "cluster id 2 is taken: \"west\" and \"lab2\" both use it; give one another id in its --cluster-id, \
                 then restart it";
    assert_eq!(east.until_refused("lab2").await, words);
    assert_eq!(lab2.until_refused("east").await, words);
    assert!(east.is_connected("west"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_explained_and_read_again() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend")]).await;
    east.publish(vec![]).await;

    // Expired on the far side.
    let past = certs::Validity {
        from: OffsetDateTime::now_utc() - time::Duration::days(2),
        to: OffsetDateTime::now_utc() - time::Duration::days(1),
    };
    let names = |name: &str| name.parse().unwrap();
    certs::issue_for(&names("west"), &west.certs, Some(&world.ca), past).unwrap();
    let wire = Wire::new(west.address).await;
    east.link("west", wire.address, None);
    let words = east.until_refused("west").await;
    assert!(
        words.contains("its certificate expired at ") && words.contains(&wire.address.to_string()),
        "{words}"
    );

    // Renewed in place: nothing is restarted.
    certs::issue(&names("west"), &west.certs, Some(&world.ca)).unwrap();
    east.until_connected("west").await;

    // Expired on our side.
    certs::issue_for(&names("east"), &east.certs, Some(&world.ca), past).unwrap();
    wire.cut(true);
    east.until("the cut is seen", |east| !east.is_connected("west"))
        .await;
    wire.cut(false);
    let words = east.until_refused("west").await;
    assert!(
        words.starts_with("our certificate ") && words.contains("mesh.crt expired at "),
        "{words}"
    );
    certs::issue(&names("east"), &east.certs, Some(&world.ca)).unwrap();
    east.until_connected("west").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_authority_is_named_on_both_sides() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    let other = world.directory.path().join("other-ca");
    let strange = world.directory.path().join("strange");
    certs::issue(&"east".parse().unwrap(), &strange, Some(&other)).unwrap();
    // We do not believe them.
    east.link_with("west", west.address, &strange.join("ca.crt"), &east.certs);
    let words = east.until_refused("west").await;
    assert!(
        words.contains("is not signed by an authority in") && words.contains("strange/ca.crt"),
        "{words}"
    );
    // They do not believe us.
    east.link_with("west", west.address, &west.certs.join("ca.crt"), &strange);
    east.until("they turn us down", |east| {
        let words = east.error("west");
        words.contains("turns down our certificate")
            && words.contains("not signed by an authority in its --tls-ca")
    })
    .await;
    // And the right ones.
    east.link("west", west.address, None);
    east.until_connected("west").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_in_certificates_are_held_to() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    // The endpoint is another cluster's.
    east.link("north", west.address, None);
    let words = east.until_refused("north").await;
    let name = |cluster: &str| format!("{MESH_NAME}.{cluster}.mesh.isthmus.dev");
    assert!(
        words.contains(&format!(
            "is for {}, not for {}",
            name("west"),
            name("north")
        )),
        "{words}"
    );
    // A pinned id is held to.
    east.link("west", west.address, Some(7));
    assert!(
        east.until_refused("west")
            .await
            .contains("pins id 7, and \"west\" (id 2) answered")
    );

    // An agent of another cluster, and one that shows a mesh server's certificate, get nothing.
    let mut config = world.agent_config(&east, "west", 2);
    config.tls.as_mut().unwrap().cert = west.certs.join("agent.crt");
    config.tls.as_mut().unwrap().key = west.certs.join("agent.key");
    let mut agent = Agent::new(config.clone());
    agent
        .until("the refusal", |agent| {
            agent.status().feed.last_error.is_some()
        })
        .await;
    let words = agent.status().feed.last_error.unwrap().0;
    assert!(
        words.contains("mesh.east.mesh.isthmus.dev, not for mesh.west.mesh.isthmus.dev"),
        "{words}"
    );
    config.cluster = cluster("east", 1);
    let mut agent = Agent::new(config);
    agent
        .until("the refusal", |agent| {
            agent.status().feed.last_error.is_some()
        })
        .await;
    let words = agent.status().feed.last_error.unwrap().0;
    assert!(
        words.contains(
            "needs a certificate for agent.east.mesh.isthmus.dev; this one is for agent.west"
        ),
        "{words}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_feeds_its_agent_over_a_unix_socket() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    let mut config = world.agent_config(&east, "east", 1);
    config.server = format!("unix:{}", east.socket.display()).parse().unwrap();
    config.tls = None;
    let mut agent = Agent::new(config.clone());
    agent
        .until("rows of west", |agent| agent.held("west") == Some((1, 1)))
        .await;
    // Another cluster's agent is refused there too.
    config.cluster = cluster("west", 2);
    config.state_dir = world.directory.path().join("another");
    let mut other = Agent::new(config);
    other
        .until("the refusal", |agent| {
            agent.status().feed.last_error.is_some()
        })
        .await;
    assert!(
        other
            .status()
            .feed
            .last_error
            .unwrap()
            .0
            .contains("asked the mesh server of \"east\" (id 1)")
    );
    let socket = east.socket.clone();
    east.stop().await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_waits_for_the_dead() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    // Ten peers that take connections and say nothing, and ten that are not there.
    let dead = Wire::new(west.address).await;
    dead.cut(true);
    for n in 0..10 {
        east.link(&format!("silent-{n}"), dead.address, None);
        east.link(&format!("gone-{n}"), "127.0.0.1:1".parse().unwrap(), None);
    }
    east.link("west", west.address, None);
    east.publish(rows(3)).await;
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    agent
        .until("all links", |agent| agent.status().feed.peers.len() == 21)
        .await;
    let error = agent
        .peer("gone-3")
        .last_error
        .map(|(words, _)| words)
        .unwrap_or_default();
    assert_eq!(
        error,
        "127.0.0.1:1 refuses TCP: is the mesh server running there?"
    );
    fs::remove_file(east.links.join("silent-4.yaml")).unwrap();
    agent
        .until("one less", |agent| agent.status().feed.peers.len() == 20)
        .await;
    let began = std::time::Instant::now();
    agent.stop().await;
    east.stop().await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "stopping took {:?}",
        began.elapsed()
    );
}
