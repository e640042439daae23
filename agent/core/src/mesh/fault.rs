use super::Cluster;
use crate::model::{ClusterId, ClusterName};

/// Why a stream was refused or given up. The message is for the operator of either side.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    #[error(
        "cluster id {id} is taken: \"{one}\" and \"{other}\" both use it; give one another id in its --cluster-id, then restart it"
    )]
    DuplicateId {
        id: ClusterId,
        one: ClusterName,
        other: ClusterName,
    },
    #[error(
        "cluster name \"{name}\" is taken: the clusters with id {one} and id {other} both use it; give one another name in its --cluster-name, then restart it"
    )]
    DuplicateName {
        name: ClusterName,
        one: ClusterId,
        other: ClusterId,
    },
    #[error(
        "the link \"{link}\" reached cluster {found}: correct the link's endpoints, or its name"
    )]
    WrongCluster { link: ClusterName, found: Cluster },
    #[error(
        "the link pins id {pinned}, and {found} answered: correct spec.id, or that cluster's --cluster-id"
    )]
    WrongId { pinned: ClusterId, found: Cluster },
    #[error(
        "the mesh server belongs to cluster {server}, this agent to {agent}: correct --mesh, or --cluster-name and --cluster-id"
    )]
    ForeignMeshServer { server: Cluster, agent: Cluster },
    #[error(
        "an agent of cluster {agent} asked the mesh server of {server}: an agent's --mesh is its own cluster's, with the same --cluster-name and --cluster-id"
    )]
    ForeignAgent { agent: Cluster, server: Cluster },
    #[error(
        "the two sides share no version of the mesh protocol (theirs {theirs:?}, ours [{ours}]): upgrade the older one"
    )]
    NoCommonVersion { theirs: Vec<u32>, ours: u32 },
    #[error("{who} broke the mesh protocol: it {what}")]
    PeerBroke { who: String, what: &'static str },
    #[error("heartbeat timed out")]
    Silent,
    #[error("not linked any more")]
    Unlinked,
}

impl Fault {
    /// Somebody has to change something: trying again soon is of no use.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::PeerBroke { .. } | Self::Silent | Self::Unlinked)
    }
}
