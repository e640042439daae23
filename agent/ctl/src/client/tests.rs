#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isthmus_proto::node::v1::node_server::{Node, NodeServer};
use isthmus_proto::node::v1::{Frontend, Peer};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::{Request, Response};

use super::*;

/// An agent that knows one service of 10 MB, and one more peer each time it is asked.
#[derive(Debug, Clone, Default)]
struct FakeAgent(Arc<AtomicU64>);

#[tonic::async_trait]
impl Node for FakeAgent {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        Err(Status::unavailable("the maps are being read"))
    }
    async fn get_cluster_mesh(
        &self,
        _: Request<GetClusterMeshRequest>,
    ) -> Result<Response<GetClusterMeshResponse>, Status> {
        let peers = usize::try_from(self.0.fetch_add(1, Ordering::Relaxed)).unwrap();
        Ok(Response::new(GetClusterMeshResponse {
            peers: vec![Peer::default(); peers],
            ..GetClusterMeshResponse::default()
        }))
    }
    async fn list_services(
        &self,
        _: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let frontend = Frontend {
            problem: "x".repeat(10 << 20),
            ..Frontend::default()
        };
        Ok(Response::new(ListServicesResponse {
            frontends: vec![frontend],
            ..ListServicesResponse::default()
        }))
    }
    async fn dump_lb(&self, _: Request<DumpLbRequest>) -> Result<Response<DumpLbResponse>, Status> {
        Err(Status::unimplemented(""))
    }
    type MonitorStream = tokio_stream::Empty<Result<MonitorEvent, Status>>;
    async fn monitor(
        &self,
        _: Request<MonitorRequest>,
    ) -> Result<Response<Self::MonitorStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

struct World {
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            socket: directory.path().join("agent.sock"),
            _directory: directory,
        }
    }
    /// Listens before it returns, answers until it is aborted.
    fn serve(&self, agent: &FakeAgent) -> JoinHandle<()> {
        // A socket of an earlier agent may be there, or not.
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        let server = Server::builder().add_service(NodeServer::new(agent.clone()));
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        tokio::spawn(async move { server.serve_with_incoming(incoming).await.unwrap() })
    }
}

#[tokio::test]
async fn large_answers_arrive_and_refusals_are_in_the_agent_s_words() {
    let world = World::new();
    let server = world.serve(&FakeAgent::default());
    let mut agent = Agent::connect(&world.socket).await.unwrap();
    assert_eq!(
        agent.services().await.unwrap().frontends[0].problem.len(),
        10 << 20
    );
    let error = agent.status().await.unwrap_err().to_string();
    assert_eq!(error, "the agent says: the maps are being read");
    let error = agent.dump_lb().await.unwrap_err().to_string();
    assert!(
        error.starts_with("this agent is older than this agentctl"),
        "{error}"
    );
    server.abort();
}

#[tokio::test]
async fn no_agent_is_named_with_the_way_out() {
    let world = World::new();
    let path = world.socket.display();
    let error = Agent::connect(&world.socket).await.unwrap_err().to_string();
    let wanted = format!(
        "no agent at {path} (no such file): is isthmus-agent running? other socket: --socket or ISTHMUS_SOCKET"
    );
    assert_eq!(error, wanted);
    drop(UnixListener::bind(&world.socket).unwrap());
    let error = Agent::connect(&world.socket).await.unwrap_err().to_string();
    let wanted = format!(
        "no agent at {path} (connection refused): is isthmus-agent running? other socket: --socket or ISTHMUS_SOCKET"
    );
    assert_eq!(error, wanted);
}

#[tokio::test]
async fn waiting_outlives_an_agent_that_comes_late_and_one_that_restarts() {
    let world = World::new();
    let known = FakeAgent::default();
    let socket = world.socket.clone();
    let waiting = tokio::spawn(async move {
        let question = async |agent: &mut Agent| agent.cluster_mesh().await;
        poll(&socket, Duration::from_secs(20), question, |answer| {
            answer.peers.len() >= 6
        })
        .await
    });
    for asked in [3, 7] {
        let server = world.serve(&known);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while known.0.load(Ordering::Relaxed) < asked {
            assert!(tokio::time::Instant::now() < deadline, "asked {known:?}");
            tokio::task::yield_now().await;
        }
        server.abort();
    }
    let (answer, done) = waiting.await.unwrap().unwrap();
    assert!(done);
    assert_eq!(answer.peers.len(), 6);
}

#[tokio::test]
async fn the_time_of_a_wait_ends_with_the_last_answer_or_its_error() {
    let world = World::new();
    let question = async |agent: &mut Agent| agent.cluster_mesh().await;
    let time = Duration::from_millis(120);
    let error = poll(&world.socket, time, question, |_| true)
        .await
        .unwrap_err();
    assert!(error.to_string().starts_with("no agent at "), "{error}");
    let server = world.serve(&FakeAgent::default());
    let (answer, done) = poll(&world.socket, time, question, |_| false)
        .await
        .unwrap();
    assert!(!done && !answer.peers.is_empty());
    server.abort();
}
