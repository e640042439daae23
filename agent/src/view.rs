//! What the node API answers: what is wanted from the store, what is there from the kernel's maps.

pub(crate) mod health;
pub(crate) mod lb;
mod mesh;
mod monitor;
mod services;
mod status;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isthmus_core::desired::{Here, Programmed};
use isthmus_core::model::{ClusterId, ClusterName};
use isthmus_mesh::feed::MeshStatus;
use isthmus_mesh::http::Readiness;
use isthmus_mesh::source::files::SourceStatus;
use isthmus_proto::node::v1 as pb;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::api::{NodeView, ViewError};
use crate::datapath::{Datapath, DatapathError};
use crate::engine::{Published, lock};
use crate::events::Monitors;

/// Everything that is looked at to answer. Cheap to share; takes no lock while it works but the datapath's own.
#[derive(Debug)]
pub struct View {
    pub cluster: ClusterName,
    pub cluster_id: ClusterId,
    pub programmed: Programmed,
    pub node: String,
    pub started: Instant,
    pub bpffs: PathBuf,
    pub readiness: Readiness,
    pub datapath: Arc<Mutex<Datapath>>,
    pub published: watch::Receiver<Arc<Published>>,
    pub source: watch::Receiver<Arc<SourceStatus>>,
    /// The mesh, if the agent was given one.
    pub mesh: Option<MeshReceiver>,
    pub monitors: Arc<Monitors>,
    /// `--passive-health`.
    pub passive_health: bool,
    /// Ends what listens.
    pub shutdown: CancellationToken,
    pub peer_stale_after: Duration,
    pub cluster_ttl: Duration,
}

/// How the feed from this cluster's own mesh server stands.
pub type MeshReceiver = watch::Receiver<Arc<MeshStatus>>;

impl View {
    fn here(&self) -> Here<'_> {
        Here {
            cluster: self.cluster_id,
            node: &self.node,
            programmed: self.programmed,
        }
    }

    pub(crate) fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    fn node_info(&self) -> pb::NodeInfo {
        pb::NodeInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.cluster.to_string(),
            cluster_id: self.cluster_id.get().into(),
            node: self.node.clone(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            abi_version: isthmus_abi::ABI_VERSION,
        }
    }

    /// The name of cluster `id`; a word with the number for a peer whose name nobody said.
    pub(crate) fn cluster_name(&self, published: &Published, id: u16) -> String {
        if id == self.cluster_id.get() {
            return self.cluster.to_string();
        }
        let peer = ClusterId::try_from(id)
            .ok()
            .and_then(|id| published.rows.peer(id));
        peer.map_or_else(|| format!("cluster-{id}"), |peer| peer.name.to_string())
    }

    fn with_datapath<T>(
        &self,
        look: impl FnOnce(&Datapath) -> Result<T, DatapathError>,
    ) -> Result<T, ViewError> {
        look(&lock(&self.datapath)).map_err(|error| ViewError::KernelRefused(error.to_string()))
    }
}

impl NodeView for View {
    fn status(&self) -> Result<pb::GetStatusResponse, ViewError> {
        self.status()
    }

    fn cluster_mesh(&self) -> Result<pb::GetClusterMeshResponse, ViewError> {
        Ok(self.cluster_mesh())
    }

    fn services(&self) -> Result<pb::ListServicesResponse, ViewError> {
        self.services()
    }

    fn dump_lb(&self) -> Result<pb::DumpLbResponse, ViewError> {
        self.dump_lb()
    }

    fn monitor(self: &Arc<Self>, asked: pb::MonitorRequest) -> ReceiverStream<pb::MonitorEvent> {
        self.monitor(asked)
    }
}

fn seconds_since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64()
}
