//! What is wrong, in words for people.

use std::fs;

use isthmus_core::mesh::{Age, FeedState, Trouble};

use super::world::{Agent, Mesh, World, endpoint, service};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_without_a_word_are_told_in_plain_words() {
    let world = World::new();
    let east = world.mesh("east", 1).await;
    let rude = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    east.link("west", rude.local_addr().unwrap(), None);
    tokio::spawn(async move { while rude.accept().await.is_ok() {} });
    east.until("the failure", |east| !east.error("west").is_empty())
        .await;
    let said = east.error("west");
    assert!(
        said.contains("the TLS handshake failed: the other side ") && !said.contains("://"),
        "{said}"
    );
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_state_file_is_set_aside_and_said() {
    let world = World::new();
    let east: Mesh = world.mesh("east", 1).await;
    let config = world.agent_config(&east, "east", 1);
    fs::create_dir_all(&config.state_dir).unwrap();
    let file = config.state_dir.join("peers.state");
    fs::write(&file, "isthmus-state 1 peers 00\n{}").unwrap();
    let mut agent = Agent::new(config);
    agent
        .until("the trouble", |agent| agent.status().troubles.len() == 1)
        .await;
    let trouble = agent.status().troubles[0].0.clone();
    assert!(trouble.way_out.contains("peers.state.bad-1"), "{trouble:?}");
    agent
        .until("the feed", |agent| {
            agent.status().feed.state == FeedState::Connected
        })
        .await;
    fs::remove_file(file.with_file_name("peers.state.bad-1")).unwrap();
    agent
        .until("its end", |agent| agent.status().troubles.is_empty())
        .await;

    // The mesh server's own is told to agents.
    let state = east.home.join("state/mesh.state");
    let east = east
        .restart_after(|| fs::write(&state, "isthmus-state 1 mesh 00\n{}").unwrap())
        .await;
    agent
        .until("the mesh server's trouble", |agent| {
            let troubles = agent.status().feed.troubles;
            troubles.iter().any(|(trouble, _)| {
                trouble.about == "state file" && trouble.way_out.contains("mesh.state.bad-1")
            })
        })
        .await;
    agent.stop().await;
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_file_that_cannot_be_written_is_said_until_it_can() {
    let world = World::new();
    let (west, east) = (world.mesh("west", 2).await, world.mesh("east", 1).await);
    west.publish(vec![service("backend")]).await;
    east.link("west", west.address, None);
    let mut agent = world.agent(&east, "east", 1).await;
    agent
        .until("rows of west", |agent| agent.complete("west"))
        .await;
    // Where the new files should be. Rights would not stop root.
    let files = ["state/mesh.state.new", "agent/peers.state.new"].map(|file| east.home.join(file));
    for obstacle in &files {
        // The last write may be under way.
        while fs::create_dir(obstacle).is_err() {
            tokio::task::yield_now().await;
        }
    }
    west.publish(vec![service("backend"), endpoint("backend", 1)])
        .await;
    let of_mesh = |agent: &Agent| agent.status().feed.troubles;
    let of_agent = |agent: &Agent| agent.status().troubles.to_vec();
    let says = |found: &[(Trouble, Age)], file: &str| {
        found
            .iter()
            .any(|(trouble, _)| trouble.about == "state directory" && trouble.cause.contains(file))
    };
    agent
        .until("both troubles", |agent| {
            says(&of_mesh(agent), "mesh.state") && says(&of_agent(agent), "peers.state")
        })
        .await;
    for obstacle in &files {
        fs::remove_dir(obstacle).unwrap();
    }
    agent
        .until("their end", |agent| {
            of_mesh(agent).is_empty() && of_agent(agent).is_empty()
        })
        .await;
    agent.stop().await;
    east.stop().await;
    west.stop().await;
}
