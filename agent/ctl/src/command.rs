//! What each command does.

mod certs;
mod link;
mod monitor;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use time::OffsetDateTime;

use crate::cli::{Bpf, Cli, Clustermesh, Command, Global, Lb, Service};
use crate::client::{Agent, poll};
use crate::output::show;
use crate::report::lb::LoadBalancerMaps;
use crate::report::mesh::ClusterMeshStatus;
use crate::report::service::ServiceList;
use crate::report::status::NodeStatus;
use crate::report::version::Version;

pub async fn run(cli: Cli) -> Result<ExitCode> {
    let global = &cli.global;
    match cli.command {
        Command::Status => status(global).await,
        Command::Version { client } => version(global, client).await,
        Command::Clustermesh(Clustermesh::Status { wait }) => mesh_status(global, wait).await,
        Command::Clustermesh(Clustermesh::Connect(connect)) => {
            link::connect(global, &connect).await
        }
        Command::Clustermesh(Clustermesh::Disconnect { name, links }) => {
            link::disconnect(global, &name, &links).await
        }
        Command::Clustermesh(Clustermesh::Certs(order)) => certs::issue(global, &order),
        Command::Monitor(filters) => monitor::watch(global, filters).await,
        Command::Service(Service::List) => services(global).await,
        Command::Bpf(Bpf::Lb(Lb::List)) => load_balancer(global).await,
    }
}

async fn status(global: &Global) -> Result<ExitCode> {
    let mut agent = Agent::connect(&global.socket).await?;
    let answer = agent.status().await?;
    let mesh = mesh(&mut agent).await?;
    show(&NodeStatus::new(answer, &mesh), global)
}

/// Shows what is known of this side even if the agent does not answer, and says so by the exit code.
async fn version(global: &Global, client_only: bool) -> Result<ExitCode> {
    if client_only {
        return show(&Version::new(None), global);
    }
    let asked = async { Agent::connect(&global.socket).await?.status().await };
    match asked.await {
        Ok(answer) => show(&Version::new(Some(answer.node.unwrap_or_default())), global),
        Err(error) => {
            show(&Version::new(None), global)?;
            Err(error)
        }
    }
}

async fn mesh_status(global: &Global, wait: Option<Duration>) -> Result<ExitCode> {
    let Some(time) = wait else {
        let mut agent = Agent::connect(&global.socket).await?;
        return show(&mesh(&mut agent).await?, global);
    };
    let settled = ClusterMeshStatus::is_settled;
    let (status, done) = poll(&global.socket, time, mesh, settled).await?;
    let code = show(&status, global)?;
    if done {
        return Ok(code);
    }
    anyhow::bail!(
        "after {time:?} still waiting for {}; --wait=DURATION waits longer",
        status.awaited().join(", ")
    )
}

async fn services(global: &Global) -> Result<ExitCode> {
    let answer = Agent::connect(&global.socket).await?.services().await?;
    show(&ServiceList::new(answer), global)
}

async fn load_balancer(global: &Global) -> Result<ExitCode> {
    let answer = Agent::connect(&global.socket).await?.dump_lb().await?;
    show(&LoadBalancerMaps::new(answer), global)
}

async fn mesh(agent: &mut Agent) -> Result<ClusterMeshStatus> {
    let answer = agent.cluster_mesh().await?;
    Ok(ClusterMeshStatus::new(answer, OffsetDateTime::now_utc()))
}
