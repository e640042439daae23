use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use isthmus_proto::node::v1::node_client::NodeClient;
use isthmus_proto::node::v1::{
    DumpLbRequest, DumpLbResponse, GetClusterMeshRequest, GetClusterMeshResponse, GetStatusRequest,
    GetStatusResponse, ListServicesRequest, ListServicesResponse, MonitorEvent, MonitorRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

/// The largest map dump: 262,144 slots of 8 bytes, 65,536 frontends and backends of some 60, five times over.
const ANSWER_MAX: usize = 64 << 20;

/// An agent that does not answer within this time does not answer.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Between two questions of `--wait`.
const POLL_TIME: Duration = Duration::from_millis(50);

/// The agent of this node.
#[derive(Debug)]
pub struct Agent(NodeClient<Channel>);

impl Agent {
    pub async fn connect(socket: &Path) -> Result<Self> {
        // The transport's own error hides the cause: ask the socket first.
        if let Err(error) = UnixStream::connect(socket).await {
            return Err(no_agent(socket, error.kind(), &error.to_string()));
        }
        let path = socket
            .to_str()
            .context("the path of --socket is not UTF-8")?;
        let channel = Endpoint::try_from(format!("unix:{path}"))?
            .timeout(ANSWER_TIME)
            .connect()
            .await
            .with_context(|| {
                format!("no agent at {path}: what listens there speaks another protocol")
            })?;
        Ok(Self(
            NodeClient::new(channel).max_decoding_message_size(ANSWER_MAX),
        ))
    }
    pub async fn status(&mut self) -> Result<GetStatusResponse> {
        let answer = self.0.get_status(GetStatusRequest {}).await;
        Ok(answer.map_err(said)?.into_inner())
    }
    pub async fn cluster_mesh(&mut self) -> Result<GetClusterMeshResponse> {
        let answer = self.0.get_cluster_mesh(GetClusterMeshRequest {}).await;
        Ok(answer.map_err(said)?.into_inner())
    }
    pub async fn services(&mut self) -> Result<ListServicesResponse> {
        let answer = self.0.list_services(ListServicesRequest {}).await;
        Ok(answer.map_err(said)?.into_inner())
    }
    pub async fn dump_lb(&mut self) -> Result<DumpLbResponse> {
        let answer = self.0.dump_lb(DumpLbRequest {}).await;
        Ok(answer.map_err(said)?.into_inner())
    }
    /// What happens from the moment that this returns.
    pub async fn monitor(&mut self, asked: MonitorRequest) -> Result<Streaming<MonitorEvent>> {
        let answer = self.0.monitor(asked).await;
        Ok(answer.map_err(said)?.into_inner())
    }
}

fn no_agent(socket: &Path, kind: ErrorKind, text: &str) -> anyhow::Error {
    let (why, hint) = match kind {
        ErrorKind::ConnectionRefused => ("connection refused", "is isthmus-agent running?"),
        ErrorKind::NotFound => ("no such file", "is isthmus-agent running?"),
        ErrorKind::PermissionDenied => (
            "permission denied",
            "run as root, or join the group of --socket-group;",
        ),
        _ => (text, "is isthmus-agent running?"),
    };
    anyhow!(
        "no agent at {} ({why}): {hint} other socket: --socket or ISTHMUS_SOCKET",
        socket.display()
    )
}

/// The agent's own words, without the transport's.
fn said(status: Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unimplemented => anyhow!(
            "this agent is older than this agentctl ({}): it does not know the question",
            env!("CARGO_PKG_VERSION")
        ),
        tonic::Code::Cancelled | tonic::Code::DeadlineExceeded => {
            anyhow!(
                "the agent gave no answer within {} s",
                ANSWER_TIME.as_secs()
            )
        }
        _ => anyhow!("the agent says: {}", status.message()),
    }
}

/// Asks `question` until `settled`, or until `time` is over: then the last answer, if there ever was one. An agent that
/// is not there yet may still come.
pub async fn poll<T>(
    socket: &Path,
    time: Duration,
    mut question: impl AsyncFnMut(&mut Agent) -> Result<T>,
    settled: impl Fn(&T) -> bool,
) -> Result<(T, bool)> {
    let deadline = tokio::time::Instant::now() + time;
    let mut agent = None;
    loop {
        let answer = async {
            let connected = match agent.take() {
                Some(connected) => connected,
                None => Agent::connect(socket).await?,
            };
            question(agent.insert(connected)).await
        };
        let answer = answer.await;
        let done = answer.as_ref().is_ok_and(&settled);
        if done || tokio::time::Instant::now() >= deadline {
            return answer.map(|answer| (answer, done));
        }
        if answer.is_err() {
            // The agent may have been restarted: the next round connects anew.
            agent = None;
        }
        tokio::time::sleep(POLL_TIME).await;
    }
}

#[cfg(test)]
mod tests;
