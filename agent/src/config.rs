//! The agent's settings: every flag, what it means, and what must hold between them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use isthmus_abi::CIDRS_MAX;
use isthmus_core::desired::Programmed;
use isthmus_mesh::config::{
    Cluster, CommonArgs, ConfigError, MeshEndpoint, SourceSpec, TlsPaths, duration, listen_address,
};

use crate::datapath::{DatapathConfig, MapSizes};

/// Joins this node's connections to services of several Kubernetes clusters or plain hosts, in the kernel.
///
/// The datapath works on when the agent stops; `cleanup` removes it.
#[derive(Parser, Clone, Debug)]
#[command(name = "isthmus-agent", version, next_line_help = true)]
pub struct AgentArgs {
    #[command(flatten)]
    pub common: CommonArgs,

    /// The name of this node, as in `nodeName` of Pods and EndpointSlices; the host's name if not given.
    #[arg(long, value_name = "NAME", global = true, help_heading = "Cluster")]
    pub node_name: Option<String>,

    /// Ranges that Services' addresses are in, at most 4 of each family. A Service that has no clusterIP gets one of the
    /// first range of its family; a connect to an unknown port of a Service's address in a range is refused at once.
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        default_values = ["10.96.0.0/12", "fd00:10:96::/108"],
        value_parser = cidr,
        help_heading = "Services"
    )]
    pub service_cidr: Vec<IpNet>,

    /// Which Services are served here; connections to others go on to kube-proxy or whatever else there is.
    #[arg(long, value_enum, default_value_t = Services::All, help_heading = "Services")]
    pub services: Services,

    /// Whose connections are served: those of all pods and the host, or the host's only.
    #[arg(long, value_enum, default_value_t = SocketLb::All, help_heading = "Services")]
    pub socket_lb: SocketLb,

    /// What `connect` gives for a service that has no backend: ECONNREFUSED or EHOSTUNREACH.
    #[arg(long, value_enum, default_value_t = Refuse::Refused, help_heading = "Services")]
    pub refuse: Refuse,

    /// Whether the kernel leaves out backends that fail, by itself: connects that are refused, unreachable or unanswered
    /// count; what a client did itself does not.
    #[arg(long, value_enum, default_value_t = Switch::On, help_heading = "Services")]
    pub passive_health: Switch,

    /// This cluster's mesh server: HOST:PORT (with TLS) or unix:PATH. A cluster alone needs none.
    #[arg(long, value_name = "SERVER", help_heading = "Mesh")]
    pub mesh: Option<MeshEndpoint>,

    /// A peer that our mesh server has not heard for so long is stale: its backends serve only when nothing else does.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration, help_heading = "Mesh")]
    pub peer_stale_after: Duration,

    /// A peer that our mesh server has not heard for so long is dropped, with all its backends.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration, help_heading = "Mesh")]
    pub cluster_ttl: Duration,

    /// The cgroup whose sockets are served, as a directory of cgroup2. Nodes that share a machine have one each. By
    /// default the root of pid 1's cgroup namespace.
    #[arg(long, value_name = "DIR", global = true, help_heading = "This node")]
    pub cgroup: Option<PathBuf>,

    /// Where maps and links are pinned; /sys/fs/bpf/isthmus/NODE if not given.
    #[arg(long, value_name = "DIR", global = true, help_heading = "This node")]
    pub bpffs: Option<PathBuf>,

    /// Where the agent keeps what it must know after a restart without its mesh server.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/isthmus/agent",
        help_heading = "This node"
    )]
    pub state_dir: PathBuf,

    /// The socket that agentctl asks; its mode is 0660.
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/isthmus/agent.sock",
        help_heading = "This node"
    )]
    pub socket: PathBuf,

    /// The group, by name or number, that may use the socket.
    #[arg(
        long,
        value_name = "GROUP",
        default_value = "root",
        help_heading = "This node"
    )]
    pub socket_group: String,

    /// Where /metrics, /healthz and /readyz are served, without TLS.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9970",
        value_parser = http_address,
        help_heading = "This node"
    )]
    pub http: String,

    /// Most service ports, one for each port and protocol of a Service, and most frontends of each family. About 416 bytes
    /// of kernel memory each, 26 MiB at the default. Another size makes new maps at the next start, with no connection
    /// lost.
    #[arg(
        long,
        value_name = "ENTRIES",
        default_value_t = 65536,
        value_parser = clap::value_parser!(u32).range(64..=1 << 24),
        help_heading = "Map sizes"
    )]
    pub lb_services_max: u32,

    /// Most backends, one for each endpoint and port of a Service. About 112 bytes of kernel memory each, 7 MiB at the
    /// default.
    #[arg(
        long,
        value_name = "ENTRIES",
        default_value_t = 65536,
        value_parser = clap::value_parser!(u32).range(64..=1 << 24),
        help_heading = "Map sizes"
    )]
    pub lb_backends_max: u32,

    /// Most places in the rings that connections draw from, one or more for each backend. About 8 bytes of kernel memory
    /// each, 2 MiB at the default.
    #[arg(
        long,
        value_name = "ENTRIES",
        default_value_t = 262_144,
        value_parser = clap::value_parser!(u32).range(64..=1 << 26),
        help_heading = "Map sizes"
    )]
    pub lb_ring_slots_max: u32,

    /// Most clients of services with session affinity whose backend is remembered, each counted once for each such service;
    /// beyond it those that connected least recently are drawn anew. About 104 bytes of kernel memory each, 7 MiB at the
    /// default.
    #[arg(
        long,
        value_name = "ENTRIES",
        default_value_t = 65536,
        value_parser = clap::value_parser!(u32).range(1024..=1 << 24),
        help_heading = "Map sizes"
    )]
    pub lb_affinity_max: u32,

    #[command(subcommand)]
    pub command: Option<AgentCommand>,
}

#[derive(Subcommand, Clone, Copy, PartialEq, Eq, Debug)]
pub enum AgentCommand {
    /// Detach, unpin and remove the datapath of this node; connections go where they say from then on.
    Cleanup,
}

/// `--services`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Services {
    /// Every Service with a ClusterIP
    All,
    /// Those with `service.cilium.io/global: "true"`
    Global,
}

impl From<Services> for Programmed {
    fn from(services: Services) -> Self {
        match services {
            Services::All => Self::All,
            Services::Global => Self::Global,
        }
    }
}

/// `--socket-lb`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketLb {
    /// Pods and the host
    All,
    /// The host's own network namespace only
    Host,
}

/// `--passive-health`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Switch {
    On,
    Off,
}

/// `--refuse`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refuse {
    /// ECONNREFUSED
    Refused,
    /// EHOSTUNREACH
    Unreachable,
}

/// Longest path of a unix socket.
const SOCKET_PATH_MAX: usize = 107;

impl AgentArgs {
    /// Proves what no flag can prove alone. Call it before anything is touched.
    ///
    /// # Errors
    /// The flag, what is wrong with it, and the way out.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |flag, message: String| Err(ConfigError::Invalid { flag, message });
        self.cluster()?;
        self.tls()?;
        let node = self.node_name();
        if node.is_empty()
            || node.contains(['/', '\0'])
            || node.len() > 253
            || node.starts_with('.')
        {
            return invalid(
                "--node-name",
                format!("{node:?} is no name for a node; give one as Kubernetes would"),
            );
        }
        for v4 in [true, false] {
            let ranges = self
                .service_cidr
                .iter()
                .filter(|cidr| matches!(cidr, IpNet::V4(_)) == v4)
                .count();
            if ranges > CIDRS_MAX {
                return invalid(
                    "--service-cidr",
                    format!("has {ranges} ranges of one family; {CIDRS_MAX} are the most"),
                );
            }
        }
        if self.peer_stale_after.is_zero() {
            return invalid(
                "--peer-stale-after",
                "0 would make every peer stale; give some heartbeats' time, as 3s".to_owned(),
            );
        }
        if self.cluster_ttl < self.peer_stale_after {
            let (ttl, stale) = (self.cluster_ttl, self.peer_stale_after);
            return invalid(
                "--cluster-ttl",
                format!(
                    "{ttl:?} is less than --peer-stale-after {stale:?}: a peer would be dropped before it is stale"
                ),
            );
        }
        if self.lb_ring_slots_max < self.lb_backends_max {
            let (slots, backends) = (self.lb_ring_slots_max, self.lb_backends_max);
            return invalid(
                "--lb-ring-slots-max",
                format!(
                    "{slots} is less than --lb-backends-max {backends}; each backend takes a place, four times as many are good"
                ),
            );
        }
        let socket = self.socket.as_os_str().len();
        if socket > SOCKET_PATH_MAX {
            return invalid(
                "--socket",
                format!("is {socket} bytes long; the kernel takes {SOCKET_PATH_MAX}"),
            );
        }
        Ok(())
    }

    /// # Errors
    /// Name or id is missing.
    pub fn cluster(&self) -> Result<Cluster, ConfigError> {
        self.common.cluster()
    }

    /// Certificates for the mesh server; none where there is none to be proved.
    ///
    /// # Errors
    /// Some of the three are missing.
    pub fn tls(&self) -> Result<Option<TlsPaths>, ConfigError> {
        match self.mesh {
            Some(MeshEndpoint::Tcp { .. }) => self
                .common
                .tls
                .required("--mesh is not a unix socket")
                .map(Some),
            Some(MeshEndpoint::Unix(_)) | None => self.common.tls.paths(),
        }
    }

    /// The directory of manifests.
    #[must_use]
    pub fn source_dir(&self) -> PathBuf {
        let SourceSpec::Dir(path) = &self.common.source;
        path.clone()
    }

    /// `--node-name`, or the host's.
    #[must_use]
    pub fn node_name(&self) -> String {
        let host = || fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.node_name
            .clone()
            .unwrap_or_else(|| host().trim().to_owned())
    }

    /// `--bpffs`, or this node's. bpffs keeps names with dots for itself, and no node's name has a `_`.
    #[must_use]
    pub fn bpffs_dir(&self) -> PathBuf {
        let own = || PathBuf::from("/sys/fs/bpf/isthmus").join(self.node_name().replace('.', "_"));
        self.bpffs.clone().unwrap_or_else(own)
    }

    /// What the datapath has to be.
    ///
    /// # Errors
    /// As [`Self::validate`].
    pub fn datapath(&self) -> Result<DatapathConfig, ConfigError> {
        self.validate()?;
        let refuse_errno = match self.refuse {
            Refuse::Refused => libc::ECONNREFUSED,
            Refuse::Unreachable => libc::EHOSTUNREACH,
        };
        Ok(DatapathConfig {
            bpffs: self.bpffs_dir(),
            cgroup: self.cgroup.clone(),
            sizes: MapSizes {
                services: self.lb_services_max,
                backends: self.lb_backends_max,
                ring_slots: self.lb_ring_slots_max,
                affinity: self.lb_affinity_max,
            },
            service_cidrs: self.service_cidr.clone(),
            translate_pods: self.socket_lb == SocketLb::All,
            refuse_unknown_port: self.services == Services::All,
            refuse_errno: refuse_errno.unsigned_abs(),
            passive_health: self.passive_health == Switch::On,
        })
    }
}

/// A range that has addresses to give.
fn cidr(text: &str) -> Result<IpNet, String> {
    let cidr = isthmus_mesh::config::cidr(text)?;
    if cidr.max_prefix_len() - cidr.prefix_len() < 2 {
        return Err(format!("{cidr} has no addresses to give; make it wider"));
    }
    Ok(cidr)
}

fn http_address(text: &str) -> Result<String, String> {
    listen_address(text).map(|address| address.to_string())
}

#[cfg(test)]
mod tests;
