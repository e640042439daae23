//! The tasks that listen: to programs, by their ring buffer, and to the mesh, by its status.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_abi::Counter;
use isthmus_core::mesh::PeerState;
use isthmus_core::model::ClusterName;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::{Happening, Monitors, What};
use crate::datapath::{CounterReader, EventRing};
use crate::engine::Event;
use crate::view::MeshReceiver;

/// Records that go to the engine at once.
const BATCH: usize = 256;
/// How often losses are looked for.
const LOSSES_EVERY: Duration = Duration::from_secs(1);

/// Leads what programs tell into the engine, and tells of what they could not tell.
///
/// # Errors
/// If the runtime cannot wait for the ring buffer, or a counter is refused.
pub async fn read_ring(
    ring: EventRing,
    counters: CounterReader,
    engine: mpsc::Sender<Event>,
    monitors: Arc<Monitors>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let mut ring = ring.watched()?;
    let mut look = tokio::time::interval(LOSSES_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut untold = counters.read(Counter::EventLost)?;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            readable = ring.readable_mut() => {
                let mut readable = readable?;
                let rows = readable.get_inner_mut().read(BATCH);
                if rows.len() < BATCH {
                    readable.clear_ready();
                }
                if !rows.is_empty() && engine.send(Event::Kernel(rows)).await.is_err() {
                    return Ok(());
                }
            }
            _ = look.tick() => {
                let counted = counters.read(Counter::EventLost)?;
                if counted > untold {
                    let what = What::Untold(counted - untold);
                    monitors.tell(Happening { at: Instant::now(), what });
                }
                untold = counted;
            }
        }
    }
}

/// Tells of peers that change their state.
pub async fn watch_peers(
    mut mesh: MeshReceiver,
    monitors: Arc<Monitors>,
    shutdown: CancellationToken,
) {
    let mut known: BTreeMap<ClusterName, PeerState> = BTreeMap::new();
    loop {
        let status = mesh.borrow_and_update().clone();
        let mut before = std::mem::take(&mut known);
        for peer in &status.feed.peers {
            let was = before.remove(&peer.name);
            known.insert(peer.name.clone(), peer.state);
            if was != Some(peer.state) {
                monitors.tell(Happening {
                    at: Instant::now(),
                    what: What::Peer {
                        name: peer.name.clone(),
                        id: peer.id,
                        before: was,
                        now: Some(peer.state),
                        error: peer.last_error.as_ref().map(|(error, _)| error.clone()),
                    },
                });
            }
        }
        for (name, was) in before {
            monitors.tell(Happening {
                at: Instant::now(),
                what: What::Peer {
                    name,
                    id: None,
                    before: Some(was),
                    now: None,
                    error: None,
                },
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = mesh.changed() => if changed.is_err() { return },
        }
    }
}
