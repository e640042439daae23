//! The rows that sources, mesh and store share: a service, an endpoint, and who said so.
//!
//! A cluster's own objects and those of its peers have the same rows; they differ in their owner only.

mod address;
mod cluster;
mod row;

pub use address::{Address, Protocol};
pub use cluster::{ClusterId, ClusterName, InvalidClusterId, InvalidClusterName};
pub use row::{
    Affinity, Batch, Condition, EndpointKey, EndpointPort, EndpointRow, ObjectName, PORTS_MAX,
    PortRow, Problem, ProblemKind, RowChange, ServiceRow, ServiceRules,
};
