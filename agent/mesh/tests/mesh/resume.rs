//! What a reconnect costs, and what becomes of those who do not read.

use std::sync::Arc;
use std::time::Duration;

use isthmus_core::mesh::{Beginning, ConsumerHello, HearsUs, Role, RowKey};
use isthmus_core::model::{EndpointRow, RowChange};
use isthmus_mesh::config::TlsPaths;
use isthmus_mesh::dial::{self, Failure};
use isthmus_mesh::server::Served;
use isthmus_mesh::tls::Tls;

use super::relay::Wire;
use super::world::{Agent, HEARTBEAT, Mesh, World, cluster, endpoint_at, service};

/// A service and `n` endpoints.
fn rows(n: u32) -> Vec<RowChange> {
    let endpoints = (0..n).map(|n| endpoint_at("backend", 0x0a00_0000 + n));
    std::iter::once(service("backend"))
        .chain(endpoints)
        .collect()
}

fn begun(served: &Served, role: Role) -> [u64; Beginning::ALL.len()] {
    Beginning::ALL.map(|beginning| served.begun(role, beginning))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reconnect_costs_the_difference() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(rows(2000)).await;
    east.publish(vec![]).await;
    let to_west = Wire::new(west.address).await;
    let to_east = Wire::new(east.address).await;
    east.link("west", to_west.address, None);
    let mut config = world.agent_config(&east, "east", 1);
    config.server = to_east.address.to_string().parse().unwrap();
    let mut agent = Agent::new(config);
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    assert_eq!(west.served.rows(Role::MeshServer), 2001);
    assert_eq!(east.served.rows(Role::Agent), 2001);

    // The wire between the clusters: the agent's stream goes on, and carries the difference.
    to_west.cut(true);
    east.until("the cut is seen", |east| !east.is_connected("west"))
        .await;
    west.until("on both sides", |west| {
        west.hub.audience().borrow().mesh_servers == 0
    })
    .await;
    let gone = RowKey::of(&endpoint_at("backend", 0x0a00_0000)).gone();
    west.publish(vec![
        gone,
        endpoint_at("backend", 0x0b00_0000),
        service("more"),
    ])
    .await;
    to_west.cut(false);
    agent
        .until("the difference, to its end", |agent| {
            agent.held("west") == Some((2, 2000)) && agent.peer("west").position == west.position()
        })
        .await;
    assert_eq!(begun(&west.served, Role::MeshServer), [1, 1, 0, 0, 0]);
    assert_eq!(west.served.rows(Role::MeshServer), 2001 + 3);
    assert_eq!(east.served.rows(Role::Agent), 2001 + 3);

    // The wire to our own mesh server, and that one restarts meanwhile.
    to_east.cut(true);
    agent
        .until("the feed is lost", |agent| {
            agent.status().feed.last_error.is_some()
        })
        .await;
    west.publish(vec![service("third")]).await;
    let position = west.position();
    east.until("west's change", |east| east.position_of("west") == position)
        .await;
    let east = east.restart().await;
    east.publish(vec![]).await;
    east.until_connected("west").await;
    to_east.cut(false);
    agent
        .until("the difference", |agent| {
            agent.held("west") == Some((3, 2000))
        })
        .await;
    assert_eq!(begun(&east.served, Role::Agent), [1, 0, 0, 0, 0]);
    assert_eq!(east.served.rows(Role::Agent), 1);
    assert_eq!(begun(&west.served, Role::MeshServer), [2, 1, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_is_resumed() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    let other = world.mesh_at("west", 2, "west-other", &[]).await;
    for west in [&west, &other] {
        west.publish(rows(500)).await;
    }
    east.publish(vec![]).await;
    east.link_all("west", &[west.address, other.address]);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    assert_eq!(other.served.rows(Role::MeshServer), 0);
    west.stop().await;
    east.until_connected("west").await;
    let position = other.position();
    agent
        .until("the other's position", |agent| {
            agent.peer("west").position == position
        })
        .await;
    assert_eq!(begun(&other.served, Role::MeshServer), [1, 0, 0, 0, 0]);
    assert_eq!(
        other.served.rows(Role::MeshServer),
        0,
        "nothing is sent again"
    );
    assert_eq!(agent.peer("west").hears_us, HearsUs::Unknown);
}

/// A consumer that says that it lives, and reads nothing.
async fn deaf(mesh: &Mesh) -> Result<dial::Stream, Failure> {
    let file = |name: &str| mesh.certs.join(name);
    let tls = Tls::new(TlsPaths {
        ca: file("ca.crt"),
        cert: file("agent.crt"),
        key: file("agent.key"),
    });
    let own = cluster("east", 1);
    let server = mesh.address.to_string().parse().unwrap();
    let transport = dial::connect(&server, Some(&tls), &own.name).await?;
    let hello = ConsumerHello {
        cluster: own,
        role: Role::Agent,
        node: "deaf".to_owned(),
        held: vec![],
        stale_after: None,
        versions: vec![1],
    };
    transport.watch(&hello).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_let_go() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    // More than the buffers on both sides of a stream take, some 3 MiB.
    let long: Arc<str> = "x".repeat(500).into();
    let lengthen = |row| match row {
        RowChange::Endpoint(row) => RowChange::Endpoint(Arc::new(EndpointRow {
            node: long.clone(),
            ..row.as_ref().clone()
        })),
        other => other,
    };
    west.publish(rows(10_000).into_iter().map(lengthen).collect())
        .await;
    east.publish(vec![]).await;
    east.link("west", west.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    let stream = deaf(&east).await.unwrap();
    let mut beat = tokio::time::interval(HEARTBEAT);
    let began = std::time::Instant::now();
    while east.served.stalled() == 0 {
        beat.tick().await;
        stream.beat();
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it is still served"
        );
    }
    assert!(began.elapsed() >= 10 * HEARTBEAT, "{:?}", began.elapsed());
    agent
        .until("everybody else is served on", |agent| {
            agent.status().feed.last_word.is_some()
        })
        .await;
    assert_eq!(agent.status().feed.last_error, None);
}
