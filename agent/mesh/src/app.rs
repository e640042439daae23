//! The mesh server, put together: what starts in which order, and stops in the reverse one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use ipnet::IpNet;
use isthmus_core::manifest::ManifestOptions;
use isthmus_core::mesh::{CIDRS_MAX, Cluster, Guard};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::{CommonArgs, ConfigError, SourceSpec, cidr, duration, listen_address, percent};
use crate::http::{self, Hold, Readiness};
use crate::hub::{self, HubConfig, HubHandle};
use crate::links::{self, Links};
use crate::metrics::MeshMetrics;
use crate::parts::{Parts, STOP_TIME};
use crate::server::{self, Listen, Served};
use crate::source::files::{self, SourceUpdate};
use crate::tls::Tls;

/// The clustermesh API server: publishes its cluster's shared services to the clusters it is linked with, and feeds its
/// own cluster's agents what those publish.
#[derive(clap::Parser, Clone, Debug)]
#[command(name = "isthmus-mesh", version)]
pub struct MeshArgs {
    #[command(flatten)]
    pub common: CommonArgs,

    /// Where peers and agents connect, with mTLS.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:4260", value_parser = listen_address)]
    pub listen: SocketAddr,

    /// A socket for this host's own agent, without TLS.
    #[arg(long, value_name = "PATH")]
    pub listen_unix: Option<PathBuf>,

    /// The directory of links, which is watched: one ClusterLink a file.
    #[arg(long, value_name = "DIR", default_value = "/etc/isthmus/links")]
    pub links: PathBuf,

    /// How often to say that we live, to peers and to agents.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub heartbeat: Duration,

    /// Where this cluster's endpoints are. Peers pin it when they first connect, and refuse endpoints elsewhere from then on;
    /// ours elsewhere are not lent, and no peer's are taken there. Not said if not given.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = cidr)]
    pub endpoint_cidrs: Vec<IpNet>,

    /// A list that leaves out more than this share of the rows that it replaces is doubted: a peer's, and the first of our
    /// own source after a restart. 100% believes all.
    #[arg(long, value_name = "PERCENT", default_value = "50%", value_parser = percent)]
    pub quarantine_share: u8,

    /// How long rows stay that a doubted list left out, if they are not named meanwhile.
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    pub quarantine_time: Duration,

    /// What outlives a restart: the epoch, what was told, and what is known of peers.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/isthmus/mesh")]
    pub state_dir: PathBuf,

    /// Where /metrics, /healthz and /readyz are served, without TLS.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9971", value_parser = listen_address)]
    pub http: SocketAddr,
}

/// Heartbeats that consumers accept.
const HEARTBEAT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(60);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start: in words for the operator.
pub async fn run(args: MeshArgs) -> Result<()> {
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        stop.cancel();
    });
    serve(args, shutdown).await
}

/// Runs until `shutdown`.
///
/// # Errors
/// As [`run`].
pub async fn serve(args: MeshArgs, shutdown: CancellationToken) -> Result<()> {
    let own = args.common.cluster()?;
    let own = Cluster {
        name: own.name,
        id: own.id,
    };
    let paths = args
        .common
        .tls
        .required("peers and agents come with certificates")?;
    if !HEARTBEAT.contains(&args.heartbeat) {
        let message = format!("{:?} is not between 10ms and 60s", args.heartbeat);
        return Err(ConfigError::Invalid {
            flag: "--heartbeat",
            message,
        }
        .into());
    }
    if args.endpoint_cidrs.len() > CIDRS_MAX {
        let (flag, message) = (
            "--endpoint-cidrs",
            format!("has more than {CIDRS_MAX} ranges"),
        );
        return Err(ConfigError::Invalid { flag, message }.into());
    }
    let tls = Arc::new(Tls::new(paths.clone()));
    let certificate = tls.configs()?.certificate;
    let wanted = crate::certs::mesh_name(&own.name);
    if !certificate.names.contains(&wanted) {
        let (cert, names) = (paths.cert.display(), certificate.names.join(", "));
        bail!("--tls-cert {cert} is for {names}, not for {wanted}: peers would turn it down");
    }

    // Sockets first: whoever is told that we run can connect.
    let mut listen = Listen::default().tcp(args.listen, tls.clone()).await?;
    if let Some(path) = &args.listen_unix {
        listen = listen.unix(path)?;
    }
    let http_listener = http::listen(&args.http.to_string()).await?;

    // The hub outlives all who talk to it, and writes the state last.
    let hub_stop = CancellationToken::new();
    let config = HubConfig {
        own: own.clone(),
        node: node_name(),
        heartbeat: args.heartbeat,
        guard: Guard {
            percent: args.quarantine_share,
            grace: args.quarantine_time,
        },
        cidrs: args.endpoint_cidrs,
        state_dir: args.state_dir,
    };
    let (hub, hub_task) = hub::spawn(config, hub_stop.clone())?;
    let mut last = Parts::default();
    last.adopt("the hub", hub_task);

    let readiness = Readiness::default();
    let mut parts = Parts::default();
    let served = Arc::new(Served::default());
    let mut registry = http::registry("mesh", env!("CARGO_PKG_VERSION"));
    registry.register_collector(Box::new(MeshMetrics {
        hub: hub.clone(),
        served: served.clone(),
        tls,
    }));
    parts.run(
        "the HTTP server",
        http::serve(
            http_listener,
            Arc::new(registry),
            readiness.clone(),
            shutdown.clone(),
        ),
    );
    let SourceSpec::Dir(directory) = &args.common.source;
    // Peers are told no ClusterIP, and endpoints of every family that a Service may have: which it has where its range
    // is known, only the agents know.
    let service_cidrs = Vec::new();
    let options = ManifestOptions { service_cidrs };
    let updates = files::watch(directory.clone(), options, shutdown.clone());
    let source = &args.common.source;
    let hold = readiness.hold(format!("the first list of {source} is not complete"));
    parts.run(
        "the source",
        publish(updates, hub.clone(), hold, shutdown.clone()),
    );
    let directory = Links::new(args.links, own.name.clone(), Some(paths));
    let keeper = links::spawn(directory, hub.clone(), shutdown.clone());
    parts.adopt("the keeper of links", keeper);
    let streams = server::serve(listen, hub, served, shutdown.clone());
    parts.spawn("the server of mesh streams", streams);

    tracing::info!(cluster = %own, listen = %args.listen, "isthmus-mesh {} runs", env!("CARGO_PKG_VERSION"));
    let result = tokio::select! {
        // First: told to stop, parts end too.
        biased;
        () = shutdown.cancelled() => Ok(()),
        ended = parts.first_end() => Err(ended),
        ended = last.first_end() => Err(ended),
    };
    shutdown.cancel();
    let result = result.and(parts.finish(STOP_TIME).await);
    hub_stop.cancel();
    Ok(result.and(last.finish(STOP_TIME).await)?)
}

/// Source → hub, for as long as both are there. A source that hangs does not hold up the end.
async fn publish(
    mut updates: mpsc::Receiver<SourceUpdate>,
    hub: HubHandle,
    hold: Hold,
    shutdown: CancellationToken,
) {
    let mut hold = Some(hold);
    let mut told = Vec::new();
    while let Some(Some(update)) = shutdown.run_until_cancelled(updates.recv()).await {
        let problems: Vec<String> = update
            .status
            .problems
            .iter()
            .map(|(problem, _)| problem.to_string())
            .collect();
        for problem in problems.iter().filter(|problem| !told.contains(*problem)) {
            tracing::warn!("source: {problem}");
        }
        told = problems;
        if !update.batch.is_empty() {
            hub.publish(update.batch).await;
        }
        if update.status.complete {
            hold = None;
        }
    }
    drop(hold);
}

/// For people who look at a peer's log; empty if unknown.
fn node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    #[tokio::test]
    async fn a_source_that_hangs_does_not_hold_up_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let config = HubConfig {
            own: Cluster {
                name: "east".parse().unwrap(),
                id: 1.try_into().unwrap(),
            },
            node: String::new(),
            heartbeat: Duration::from_secs(1),
            guard: Guard::default(),
            cidrs: Vec::new(),
            state_dir: directory.path().to_owned(),
        };
        let stop = CancellationToken::new();
        let (hub, hub_task) = hub::spawn(config, stop.clone()).unwrap();
        let (_hangs, updates) = mpsc::channel(1);
        let hold = Readiness::default().hold("its first list");
        stop.cancel();
        let ended = publish(updates, hub, hold, stop);
        let ended = tokio::time::timeout(Duration::from_secs(20), ended).await;
        assert!(ended.is_ok());
        hub_task.await.unwrap();
    }
}
