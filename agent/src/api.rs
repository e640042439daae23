//! The node API: `isthmus.node.v1` on a unix socket that root and one group may open.

mod socket;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use isthmus_proto::node::v1::node_server::{Node, NodeServer};
use isthmus_proto::node::v1::{
    DumpLbRequest, DumpLbResponse, GetClusterMeshRequest, GetClusterMeshResponse, GetStatusRequest,
    GetStatusResponse, ListServicesRequest, ListServicesResponse, MonitorEvent, MonitorRequest,
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

pub use socket::ApiSocket;

/// What answers under way are given when the agent stops.
const SHUTDOWN_TIME: Duration = Duration::from_secs(1);

/// What the agent knows, for those who ask. Each method is called on a thread that may block, several at once.
pub trait NodeView: Send + Sync + 'static {
    fn status(&self) -> Result<GetStatusResponse, ViewError>;
    fn cluster_mesh(&self) -> Result<GetClusterMeshResponse, ViewError>;
    fn services(&self) -> Result<ListServicesResponse, ViewError>;
    /// Reads the maps in the kernel, for this call.
    fn dump_lb(&self) -> Result<DumpLbResponse, ViewError>;
    /// What happens from now on. Called on a thread of the runtime; returns at once.
    fn monitor(self: &Arc<Self>, asked: MonitorRequest) -> ReceiverStream<MonitorEvent>;
}

/// Why a question has no answer. The text goes to the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// What was asked for is not there yet, and will be.
    #[error("{0}")]
    Starting(String),
    /// The kernel did not give what was asked of it.
    #[error("{0}")]
    KernelRefused(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("another agent answers on {}; stop it, or give this one another --socket", .0.display())]
    SocketInUse(PathBuf),
    #[error("{} is there and is no socket; move it away, or give another --socket", .0.display())]
    NotASocket(PathBuf),
    #[error("there is no group {0:?}; give an existing one in --socket-group")]
    UnknownGroup(String),
    #[error("{operation} {}: {error}", .path.display())]
    Socket {
        operation: &'static str,
        path: PathBuf,
        error: io::Error,
    },
    #[error("node API: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Answers on `socket` until `shutdown`, then removes it.
pub async fn serve<V: NodeView>(
    socket: ApiSocket,
    view: Arc<V>,
    shutdown: CancellationToken,
) -> Result<(), ApiError> {
    let ApiSocket {
        listener,
        path,
        inode,
    } = socket;
    let server = Server::builder()
        .add_service(NodeServer::new(Answers(view)))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled());
    let result = tokio::select! {
        result = server => result,
        // A client that neither reads nor leaves does not keep the agent from stopping.
        () = async { shutdown.cancelled().await; tokio::time::sleep(SHUTDOWN_TIME).await } => Ok(()),
    };
    if socket::inode(&path).is_ok_and(|now| now == inode) {
        // Nothing is lost if it stays: the next agent finds that nobody answers, and replaces it.
        let _ = fs::remove_file(&path);
    }
    Ok(result?)
}

/// The generated service, answered by a view.
struct Answers<V>(Arc<V>);

impl<V: NodeView> Answers<V> {
    async fn ask<T: Send + 'static>(
        &self,
        question: fn(&V) -> Result<T, ViewError>,
    ) -> Result<Response<T>, Status> {
        let view = Arc::clone(&self.0);
        match tokio::task::spawn_blocking(move || question(&view)).await {
            Ok(Ok(answer)) => Ok(Response::new(answer)),
            Ok(Err(error @ ViewError::Starting(_))) => Err(Status::unavailable(error.to_string())),
            Ok(Err(error @ ViewError::KernelRefused(_))) => {
                Err(Status::internal(error.to_string()))
            }
            Err(_) => Err(Status::internal(
                "the agent failed while it answered; its log says more",
            )),
        }
    }
}

type MonitorStream = Pin<Box<dyn Stream<Item = Result<MonitorEvent, Status>> + Send>>;

#[tonic::async_trait]
impl<V: NodeView> Node for Answers<V> {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        self.ask(V::status).await
    }
    async fn get_cluster_mesh(
        &self,
        _: Request<GetClusterMeshRequest>,
    ) -> Result<Response<GetClusterMeshResponse>, Status> {
        self.ask(V::cluster_mesh).await
    }
    async fn list_services(
        &self,
        _: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        self.ask(V::services).await
    }
    async fn dump_lb(&self, _: Request<DumpLbRequest>) -> Result<Response<DumpLbResponse>, Status> {
        self.ask(V::dump_lb).await
    }

    type MonitorStream = MonitorStream;

    async fn monitor(
        &self,
        request: Request<MonitorRequest>,
    ) -> Result<Response<MonitorStream>, Status> {
        let events = self.0.monitor(request.into_inner());
        Ok(Response::new(Box::pin(events.map(Ok))))
    }
}

#[cfg(test)]
mod tests;
