//! The lab: worlds of clusters, nodes and pods on one machine, made of network namespaces, cgroups, real processes and
//! the real kernel.
//!
//! ```no_run
//! use isthmus_tests::{Lab, LabSpec, Programs, Requests};
//!
//! # fn main() -> anyhow::Result<()> {
//! let spec = LabSpec::read("tests/labs/two-clusters.yaml".as_ref())?;
//! let lab = Lab::build("demo", &spec, Programs::beside_this_one()?)?;
//! let mut client = lab.pod("east/client")?.traffic(&Requests::to("10.11.1.5:8080")?)?;
//! client.rate(2_000.0)?;
//! lab.wire("east", "west")?.cut()?;
//! println!("{:?}", client.stop()?);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here skips: a machine without root, cgroup2 or BPF is an error in one sentence. Nothing is left either: a lab
//! goes when its value is dropped, when its owner dies of anything, and at the latest when the next one is built.

pub mod bench;
pub mod cgroup;
pub mod client;
pub mod flow;
pub mod health;
pub mod host;
pub mod hostile;
pub mod kernel;
mod lab;
pub mod layout;
pub mod leftovers;
pub mod long;
pub mod manifests;
mod mesh;
mod monitor;
pub mod netns;
mod network;
mod pod;
pub mod process;
pub mod serve;
mod spec;
pub mod state;
pub mod trace;
mod traffic;
mod view;
pub mod wait;
pub mod warden;
mod wire;

pub use health::{BackendCounts, KernelHealth, ServiceCounts};
pub use lab::{Cluster, Lab, Node};
pub use long::{FlowKind, LongFlow, LongServer};
pub use manifests::{Manifests, PodStatus};
pub use monitor::{Event, Monitor};
pub use pod::Pod;
pub use process::{Process, Programs};
pub use spec::{ClusterSpec, LabName, LabSpec, LinkSpec, PodSpec};
pub use traffic::{Requests, Traffic};
pub use view::{Backend, Feed, Frontend, KernelCounts, LinkError, Peer, Program};
pub use wait::{wait_for, wait_until};
pub use wire::Wire;
