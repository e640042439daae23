//! Leads what the mesh feed says into the engine.

use std::collections::BTreeSet;
use std::time::Instant;

use isthmus_core::mesh::FeedEvent;
use isthmus_core::store::{Owner, PeerState};
use isthmus_mesh::config::Cluster;
use isthmus_mesh::feed::{self, FeedConfig};
use isthmus_mesh::parts::Parts;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::AgentArgs;
use crate::engine::Event;
use crate::view::MeshReceiver;

/// Starts the feed, if the agent was given a mesh server, as two of its parts: the one that writes the state file ends when
/// that is written. A cluster alone is linked with nobody, and says so: backends of peers that an earlier configuration left
/// in the maps are to go.
///
/// # Errors
/// If certificates that are needed are not given.
pub fn start(
    parts: &mut Parts,
    args: &AgentArgs,
    cluster: &Cluster,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
) -> anyhow::Result<Option<MeshReceiver>> {
    let Some(server) = args.mesh.clone() else {
        // An engine that has ended says so itself.
        tokio::spawn(async move { events.send(Event::Linked(BTreeSet::new())).await });
        return Ok(None);
    };
    let config = FeedConfig {
        server,
        tls: args.tls()?,
        cluster: isthmus_core::mesh::Cluster {
            name: cluster.name.clone(),
            id: cluster.id,
        },
        node: args.node_name(),
        stale_after: args.peer_stale_after,
        ttl: args.cluster_ttl,
        state_dir: args.state_dir.clone(),
    };
    let feed = feed::spawn(config, shutdown);
    parts.adopt("the mesh feed", feed.task);
    parts.run("what passes the mesh feed on", pass_on(feed.events, events));
    Ok(Some(feed.status))
}

async fn pass_on(mut feed: mpsc::Receiver<FeedEvent>, events: mpsc::Sender<Event>) {
    while let Some(event) = feed.recv().await {
        let event = match event {
            FeedEvent::Peer {
                cluster,
                stale,
                silent,
            } => {
                info!(peer = %cluster.name, stale, ?silent, "peer");
                Event::Peer(
                    cluster.id,
                    PeerState {
                        name: cluster.name,
                        stale,
                    },
                )
            }
            FeedEvent::Rows { cluster, batch } => Event::Rows {
                owner: Owner::Peer(cluster.id),
                batch,
                seen: Instant::now(),
            },
            FeedEvent::Dropped { cluster, why } => {
                info!(peer = %cluster.name, ?why, "peer dropped");
                Event::Drop(cluster.id)
            }
            FeedEvent::Linked(clusters) => {
                Event::Linked(clusters.into_iter().map(|cluster| cluster.id).collect())
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use clap::Parser;
    use isthmus_mesh::parts::STOP_TIME;

    use super::*;

    #[tokio::test]
    async fn the_end_is_reached_when_the_state_file_is_written() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().display();
        let args = AgentArgs::parse_from([
            "isthmus-agent",
            "--cluster-name=east",
            "--cluster-id=1",
            &format!("--state-dir={dir}"),
            &format!("--mesh=unix:{dir}/no.sock"),
        ]);
        let cluster = args.cluster().unwrap();
        let (events, told) = mpsc::channel(1);
        let (mut parts, shutdown) = (Parts::default(), CancellationToken::new());
        start(&mut parts, &args, &cluster, events, shutdown.clone()).unwrap();
        // The engine may end first.
        drop(told);
        shutdown.cancel();
        parts.finish(STOP_TIME).await.unwrap();
        assert!(state.path().join("peers.state").exists());
    }
}
