use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use isthmus_core::model::{ClusterId, ClusterName};
use isthmus_mesh::config::{MeshEndpoint, cidr, duration, peer_endpoint};

/// Shows and changes what this node knows of its mesh.
///
/// Exit codes: 0 good; 1 something is wrong, or the agent does not answer; 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "agentctl", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "For every command")]
pub struct Global {
    /// The agent's unix socket
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "ISTHMUS_SOCKET",
        default_value = "/run/isthmus/agent.sock"
    )]
    pub socket: PathBuf,
    /// What to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Print without colours, as NO_COLOR in the environment does
    #[arg(long, global = true)]
    pub no_color: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    /// More columns, nothing shortened
    Wide,
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// This node: sources, programs, maps, and whether the kernel holds what it should
    Status,
    /// Versions of agentctl and of the agent
    Version {
        /// Do not ask the agent
        #[arg(long)]
        client: bool,
    },
    /// The other clusters: their state, and links to them
    #[command(subcommand)]
    Clustermesh(Clustermesh),
    /// What happens, live, until Ctrl-C: ejections, trials, returns, refusals, tiers, peers
    Monitor(Monitor),
    /// Services and their backends in all clusters
    #[command(subcommand)]
    Service(Service),
    /// The kernel's own tables
    #[command(subcommand)]
    Bpf(Bpf),
}

#[derive(Debug, Subcommand)]
pub enum Clustermesh {
    /// The feed from this cluster's mesh server, and every peer
    Status {
        /// Wait until the mesh server knows all of its links, at least one, and each peer is connected, has told all of its
        /// rows and hears us; 1m if no time is given
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
              default_missing_value = "1m", value_parser = duration)]
        wait: Option<Duration>,
    },
    /// Link to another cluster: writes its link file, and prints the command for the other side. What the file says already
    /// and the command does not name (id, ranges, limits, certificates) stays
    Connect(Connect),
    /// Remove the link to another cluster
    Disconnect {
        /// The other cluster's name
        name: ClusterName,
        #[command(flatten)]
        links: Links,
    },
    /// Make a certificate authority and a cluster's certificates
    Certs(Certs),
}

#[derive(Debug, Args)]
pub struct Connect {
    /// The other cluster's name
    pub name: ClusterName,
    /// Where its mesh server listens; repeat it for more addresses
    #[arg(long = "endpoint", value_name = "HOST:PORT", required = true, value_parser = peer_endpoint)]
    pub endpoints: Vec<MeshEndpoint>,
    /// Accept it with this cluster id only
    #[arg(long)]
    pub id: Option<ClusterId>,
    /// Accept its endpoints in this range only; repeat it for more. If none is given, those that it announces when it is
    /// first connected, if it does
    #[arg(long = "cidr", value_name = "CIDR", value_parser = cidr)]
    pub cidrs: Vec<IpNet>,
    /// Wait until it is connected; 1m if no time is given
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
          default_missing_value = "1m", value_parser = duration)]
    pub wait: Option<Duration>,
    #[command(flatten)]
    pub links: Links,
    #[command(flatten)]
    pub tls: Tls,
}

#[derive(Debug, Args)]
pub struct Links {
    /// The mesh server's directory of links
    #[arg(
        long,
        value_name = "DIR",
        env = "ISTHMUS_LINKS",
        default_value = "/etc/isthmus/links"
    )]
    pub links: PathBuf,
}

/// All three, or none: then the mesh server uses its own.
#[derive(Debug, Args)]
pub struct Tls {
    /// Certificate authority that the other mesh server is checked against; the mesh server's own if not given
    #[arg(long, value_name = "FILE", env = "ISTHMUS_TLS_CA", requires_all = ["tls_cert", "tls_key"])]
    pub tls_ca: Option<PathBuf>,
    /// Certificate that this cluster's mesh server shows
    #[arg(long, value_name = "FILE", env = "ISTHMUS_TLS_CERT", requires_all = ["tls_ca", "tls_key"])]
    pub tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", env = "ISTHMUS_TLS_KEY", requires_all = ["tls_ca", "tls_cert"])]
    pub tls_key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Certs {
    /// The cluster that the certificates are for
    #[arg(long, value_name = "NAME")]
    pub cluster: ClusterName,
    /// Where to write them. A key that is there is used, never replaced
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Directory of the authority, made if it is empty; --out itself if not given
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
}

/// Filters. Events that were lost are told whatever is asked for.
#[derive(Debug, Args)]
pub struct Monitor {
    /// Events of this service only
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = service_name)]
    pub service: Option<String>,
    /// Events of these types only; repeat it, or separate them by commas
    #[arg(long = "type", value_name = "TYPE", value_enum, value_delimiter = ',')]
    pub types: Vec<EventType>,
    /// Events of backends of this cluster, and of this peer, only
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<ClusterName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EventType {
    /// A backend is left out
    Ejection,
    /// A trial of an ejected backend began, failed or was abandoned
    Trial,
    /// A backend takes connections again
    Return,
    /// A backend is closed to one client alone
    Closed,
    /// A client's failures do not count until it succeeds
    Disbelieved,
    /// A service's limit did not allow an ejection
    Capped,
    /// The datapath refused a connect
    Refusal,
    /// Every backend of a service is ejected
    AllEjected,
    /// Connections of a service go to another tier
    Tier,
    /// A peer changed its state
    Peer,
}

#[derive(Debug, Subcommand)]
pub enum Service {
    /// One line for each frontend and backend
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Debug, Subcommand)]
pub enum Bpf {
    /// The load balancer's maps
    #[command(subcommand)]
    Lb(Lb),
}

#[derive(Debug, Subcommand)]
pub enum Lb {
    /// Frontends, rings, slots and backends, as the kernel holds them
    #[command(visible_alias = "ls")]
    List,
}

/// `NAMESPACE/NAME`.
fn service_name(text: &str) -> Result<String, String> {
    let whole = |part: &str| !part.is_empty() && !part.contains(['/', ' ']);
    match text.split_once('/') {
        Some((namespace, name)) if whole(namespace) && whole(name) => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is no NAMESPACE/NAME like production/backend"
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wait_takes_its_time_after_an_equals_sign_only() {
        let wait = |args: &[&str]| {
            let all = ["agentctl", "clustermesh", "status"].iter().chain(args);
            match Cli::try_parse_from(all).map(|cli| cli.command) {
                Ok(Command::Clustermesh(Clustermesh::Status { wait })) => Some(wait),
                _ => None,
            }
        };
        assert_eq!(wait(&[]), Some(None));
        assert_eq!(wait(&["--wait"]), Some(Some(Duration::from_secs(60))));
        assert_eq!(wait(&["--wait=5s"]), Some(Some(Duration::from_secs(5))));
        assert_eq!(wait(&["--wait", "5s"]), None);
    }
}
