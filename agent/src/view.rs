//! What the node API answers: what is wanted from the store, what is there from the kernel's maps.

mod lb;
mod mesh;
mod services;
mod status;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isthmus_core::desired::Here;
use isthmus_core::model::ClusterName;
use isthmus_mesh::feed::MeshStatus;
use isthmus_mesh::http::Readiness;
use isthmus_mesh::source::files::SourceStatus;
use isthmus_proto::node::v1 as pb;
use tokio::sync::watch;

use crate::api::{NodeView, ViewError};
use crate::datapath::{Datapath, DatapathError};
use crate::engine::{Published, lock};

/// Everything that is looked at to answer. Cheap to share; takes no lock while it works but the datapath's own.
#[derive(Debug)]
pub struct View {
    pub cluster: ClusterName,
    pub here: Here,
    pub node: String,
    pub started: Instant,
    pub bpffs: PathBuf,
    pub readiness: Readiness,
    pub datapath: Arc<Mutex<Datapath>>,
    pub published: watch::Receiver<Arc<Published>>,
    pub source: watch::Receiver<Arc<SourceStatus>>,
    /// The mesh, if the agent was given one.
    pub mesh: Option<MeshReceiver>,
    pub peer_stale_after: Duration,
    pub cluster_ttl: Duration,
}

/// How the feed from this cluster's own mesh server stands.
pub type MeshReceiver = watch::Receiver<Arc<MeshStatus>>;

impl View {
    fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    fn node_info(&self) -> pb::NodeInfo {
        pb::NodeInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.cluster.to_string(),
            cluster_id: self.here.cluster.get().into(),
            node: self.node.clone(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            abi_version: isthmus_abi::ABI_VERSION,
        }
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
}

fn seconds_since(then: Instant) -> f64 {
    then.elapsed().as_secs_f64()
}
