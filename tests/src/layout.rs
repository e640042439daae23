//! Where everything of a lab is: names, addresses and paths, worked out from the lab file before anything is made.
//!
//! ```text
//! cluster number C (1..9, its place in the file), node number N, pod number P within its node
//!   node   10.C.0.(N+1)     fd00:C::(N+1)        mesh server: on the first node
//!   pod    10.1C.N.(4+P)    fd00:1C:N::(4+P)
//! one backbone namespace routes between all nodes; wires are rules in it
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::spec::{ClusterSpec, LabName};

/// Where labs keep their files, one directory each.
pub const STATE_ROOT: &str = "/run/isthmus-lab";
/// The node agents' bpffs directories are below this one.
pub const PIN_ROOT: &str = "/sys/fs/bpf/isthmus";

/// Both addresses of a node or pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Addresses {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Addresses {
    #[must_use]
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterPlan {
    pub lab: LabName,
    pub name: String,
    /// Place in the lab file, from 1: part of the addresses, where ids may repeat on purpose.
    pub number: u8,
    pub id: u16,
    pub nodes: Vec<NodePlan>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodePlan {
    pub lab: LabName,
    /// `east-1`
    pub name: String,
    pub cluster: u8,
    pub number: u8,
    pub addresses: Addresses,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PodPlan {
    pub lab: LabName,
    pub cluster: String,
    /// `backend-1`, unique in its cluster.
    pub name: String,
    pub node: NodePlan,
    /// Number within its node, from 1.
    pub number: u8,
    pub addresses: Addresses,
}

impl ClusterPlan {
    #[must_use]
    pub fn new(lab: &LabName, number: u8, spec: &ClusterSpec) -> Self {
        let node = |n: u8| NodePlan {
            lab: lab.clone(),
            name: format!("{}-{n}", spec.name),
            cluster: number,
            number: n,
            addresses: Addresses {
                v4: Ipv4Addr::new(10, number, 0, n + 1),
                v6: v6([number, 0], u16::from(n) + 1),
            },
        };
        Self {
            lab: lab.clone(),
            name: spec.name.clone(),
            number,
            id: spec.id,
            nodes: (1..=spec.nodes).map(node).collect(),
        }
    }
    /// The cluster's files: `manifests/`, `links/`, `certs/`, the mesh server's state.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        state_dir(&self.lab).join(&self.name)
    }
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.dir().join("manifests")
    }
    /// Where peers and agents reach the mesh server.
    #[must_use]
    pub fn mesh_endpoint(&self) -> String {
        format!("{}:4260", self.nodes[0].addresses.v4)
    }
    /// Matches the backbone's interfaces to this cluster's nodes.
    #[must_use]
    pub fn backbone_interfaces(&self) -> String {
        format!("c{}n*", self.number)
    }
}

impl NodePlan {
    #[must_use]
    pub fn netns(&self) -> String {
        format!("isthmus-{}-{}", self.lab, self.name)
    }
    /// Below the lab's cgroup.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        cgroup(&self.lab).join(&self.name)
    }
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        state_dir(&self.lab).join(&self.name)
    }
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        Path::new(PIN_ROOT).join(format!("{}-{}", self.lab, self.name))
    }
    /// The backbone's end of this node's wire.
    #[must_use]
    pub fn backbone_interface(&self) -> String {
        format!("c{}n{}", self.cluster, self.number)
    }
    #[must_use]
    pub fn pod(&self, cluster: &str, name: &str, number: u8) -> PodPlan {
        PodPlan {
            lab: self.lab.clone(),
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            node: self.clone(),
            number,
            addresses: self.pod_address(number + 4),
        }
    }
    /// What pods use as their gateway.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.pod_address(1).v4
    }
    /// Prefix of the node's pods, for routes.
    #[must_use]
    pub fn pod_prefixes(&self) -> [String; 2] {
        let base = self.pod_address(0);
        [format!("{}/24", base.v4), format!("{}/64", base.v6)]
    }
    fn pod_address(&self, host: u8) -> Addresses {
        Addresses {
            v4: Ipv4Addr::new(10, 10 + self.cluster, self.number, host),
            v6: v6([10 + self.cluster, self.number], u16::from(host)),
        }
    }
}

impl PodPlan {
    #[must_use]
    pub fn netns(&self) -> String {
        format!("isthmus-{}-{}.{}", self.lab, self.cluster, self.name)
    }
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        self.node.cgroup().join("pods").join(&self.name)
    }
    /// `east/backend-1`: how scenarios and people name the pod.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.cluster, self.name)
    }
    /// The node's end of the pod's veth.
    #[must_use]
    pub fn node_interface(&self) -> String {
        format!("p{}", self.number)
    }
}

#[must_use]
pub fn state_dir(lab: &LabName) -> PathBuf {
    Path::new(STATE_ROOT).join(lab.as_str())
}

/// The lab's cgroup, relative to the mount of cgroup2.
#[must_use]
pub fn cgroup(lab: &LabName) -> PathBuf {
    PathBuf::from(format!("isthmus-{lab}"))
}

#[must_use]
pub fn backbone_netns(lab: &LabName) -> String {
    format!("isthmus-{lab}-backbone")
}

/// `fd00:A:B::host`, where A and B read as the decimal digits of the IPv4 analog.
fn v6([a, b]: [u8; 2], host: u16) -> Ipv6Addr {
    let as_written = |n: u8| {
        u16::from_str_radix(&n.to_string(), 16).expect("decimal digits are hexadecimal digits")
    };
    Ipv6Addr::new(0xfd00, as_written(a), as_written(b), 0, 0, 0, 0, host)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;
    use crate::spec::LabSpec;

    #[test]
    fn addresses_and_names_are_the_documented_ones() {
        let spec = LabSpec::parse("clusters: [{name: east, id: 1, nodes: 2}, {name: west, id: 1}]")
            .unwrap();
        let lab = "demo".parse().unwrap();
        let west = ClusterPlan::new(&lab, 2, &spec.clusters[1]);
        assert_eq!(west.mesh_endpoint(), "10.2.0.2:4260");
        let east = ClusterPlan::new(&lab, 1, &spec.clusters[0]);
        let node = &east.nodes[1];
        assert_eq!(node.addresses.v4.to_string(), "10.1.0.3");
        assert_eq!(node.addresses.v6.to_string(), "fd00:1::3");
        assert_eq!(node.pins(), Path::new("/sys/fs/bpf/isthmus/demo-east-2"));
        let pod = node.pod("east", "backend-2", 1);
        assert_eq!(pod.addresses.v4.to_string(), "10.11.2.5");
        assert_eq!(pod.addresses.v6.to_string(), "fd00:11:2::5");
        assert_eq!(pod.netns(), "isthmus-demo-east.backend-2");
        assert_eq!(
            pod.cgroup(),
            Path::new("isthmus-demo/east-2/pods/backend-2")
        );
        assert_eq!(node.pod_prefixes(), ["10.11.2.0/24", "fd00:11:2::/64"]);
    }
}
