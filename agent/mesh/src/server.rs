//! What a mesh server serves: the Watch stream, over mTLS to peers and agents, over a unix socket to this host's agents.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_core::mesh::{ConsumerHello, Fault, Role, Watcher};
use isthmus_core::model::ClusterId;
use isthmus_proto::mesh::v1::mesh_server::{Mesh, MeshServer};
use isthmus_proto::mesh::v1::watch_request::Message;
use isthmus_proto::mesh::v1::{WatchRequest, WatchResponse};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::hub::HubHandle;
use crate::{certs, wire};

mod listen;
mod served;
#[cfg(test)]
mod tests;

pub use listen::{Listen, ListenError, serve};
pub use served::{Fill, Served};

/// Streams at once.
const STREAMS_MAX: usize = 4096;
/// Messages of one stream that wait to be sent. What changes meanwhile is folded, not queued.
const OUTBOUND_MAX: usize = 4;
/// Heartbeats for which a consumer may leave its messages unread.
const STALLED: u32 = 10;
/// The least time between two wakings by the clock.
const CIRCLE: Duration = Duration::from_millis(5);
/// For a consumer's hello.
const GREETING: Duration = Duration::from_secs(3);

/// How a consumer came.
#[derive(Clone, Debug)]
pub enum Visitor {
    /// Over mTLS: the DNS names of its certificate.
    Certified {
        names: Arc<[String]>,
        from: SocketAddr,
    },
    /// Over this host's unix socket: whoever may open it is this host's.
    Host,
}

impl Visitor {
    /// # Errors
    /// The hello says what the certificate does not.
    fn prove(&self, hello: &ConsumerHello) -> Result<(), String> {
        let cluster = &hello.cluster;
        match (self, hello.role) {
            (Self::Host, Role::Agent) => Ok(()),
            (Self::Host, Role::MeshServer) => {
                Err("a peer's mesh server comes over the network, with its certificate".to_owned())
            }
            (Self::Certified { names, .. }, role) => {
                let (what, wanted) = match role {
                    Role::MeshServer => ("the mesh server", certs::mesh_name(&cluster.name)),
                    Role::Agent => ("an agent", certs::agent_name(&cluster.name)),
                };
                if names.contains(&wanted) {
                    return Ok(());
                }
                let shown = if names.is_empty() {
                    "nobody by name".to_owned()
                } else {
                    names.join(", ")
                };
                Err(format!(
                    "who comes as {what} of cluster \"{}\" needs a certificate for {wanted}; this one is for {shown}",
                    cluster.name
                ))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Service {
    hub: HubHandle,
    served: Arc<Served>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

#[tonic::async_trait]
impl Mesh for Service {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let Ok(permit) = Arc::clone(&self.served.streams).try_acquire_owned() else {
            return Err(Status::unavailable(format!(
                "{STREAMS_MAX} streams are open, no more are taken"
            )));
        };
        let visitor = request.extensions().get::<Visitor>().cloned();
        let visitor = visitor.ok_or_else(|| Status::internal("a connection of unknown origin"))?;
        let mut inbound = request.into_inner();
        let hello = timeout(GREETING, inbound.message()).await;
        let hello = hello.map_err(|_| Status::invalid_argument("no hello came"))??;
        let Some(Message::Hello(hello)) = hello.and_then(|said| said.message) else {
            return Err(Status::invalid_argument(
                "the stream did not begin with a hello",
            ));
        };
        let hello = wire::consumer_hello(hello)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if let Err(words) = visitor.prove(&hello) {
            tracing::warn!(cluster = %hello.cluster, ?visitor, words, "a consumer is turned down");
            return Err(Status::permission_denied(words));
        }
        let views = self.hub.views();
        let watcher = Watcher::new(hello.clone(), &views.borrow(), Instant::now())
            .map_err(|fault| turned_down(&hello, &fault))?;
        let (sender, receiver) = mpsc::channel(OUTBOUND_MAX);
        let session = Session {
            watcher,
            role: hello.role,
            inbound,
            sender,
            views,
            served: self.served.clone(),
            shutdown: self.shutdown.clone(),
        };
        let (answer, verdict) = oneshot::channel();
        let hub = self.hub.clone();
        // This call ends wherever it stands when the consumer hangs up. Who was admitted has to leave: so both are
        // another task's, which then finds the stream closed.
        self.tasks.spawn(async move {
            let _permit: OwnedSemaphorePermit = permit;
            if let Err(fault) = hub.admit(hello.clone()).await {
                let _ = answer.send(Err(turned_down(&hello, &fault)));
                return;
            }
            let _ = answer.send(Ok(()));
            tracing::info!(cluster = %hello.cluster, role = ?hello.role, node = hello.node, "a consumer watches");
            let why = session.run().await;
            tracing::info!(cluster = %hello.cluster, role = ?hello.role, node = hello.node, why, "a consumer is gone");
            hub.leave(hello).await;
        });
        let stops = |_| Status::unavailable("the mesh server stops");
        verdict.await.map_err(stops)??;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn turned_down(hello: &ConsumerHello, fault: &Fault) -> Status {
    tracing::warn!(cluster = %hello.cluster, error = %fault, "a consumer is turned down");
    Status::failed_precondition(fault.to_string())
}

/// One consumer's stream.
struct Session {
    watcher: Watcher,
    role: Role,
    inbound: Streaming<WatchRequest>,
    sender: mpsc::Sender<Result<WatchResponse, Status>>,
    views: tokio::sync::watch::Receiver<isthmus_core::mesh::View>,
    served: Arc<Served>,
    shutdown: CancellationToken,
}

/// What a consumer says after its hello.
enum Heard {
    Alive,
    Relist(ClusterId),
}

fn heard(said: WatchRequest) -> Result<Heard, String> {
    match said.message {
        Some(Message::Heartbeat(_)) => Ok(Heard::Alive),
        Some(Message::Relist(said)) => match wire::relist(said) {
            Ok(id) => Ok(Heard::Relist(id)),
            Err(error) => Err(error.to_string()),
        },
        _ => Err("only heartbeats and relists follow a hello".to_owned()),
    }
}

/// What a session does until something happens.
#[derive(Clone, Copy)]
enum Waiting {
    /// Nothing is to say until the next view, or until the watcher's deadline, but not before this.
    Idle(Instant),
    /// For room for the next message, until this.
    Room(Instant),
}

impl Waiting {
    /// The consumer left its messages unread for too long.
    fn is_stalled(self, now: Instant) -> bool {
        matches!(self, Self::Room(latest) if now >= latest)
    }
}

impl Session {
    /// Returns why it ended.
    async fn run(mut self) -> &'static str {
        let patience = STALLED * self.views.borrow().heartbeat;
        let room = || Waiting::Room(Instant::now() + patience);
        let mut waiting = room();
        loop {
            let deadline = match waiting {
                Waiting::Idle(earliest) => {
                    let deadline = self.watcher.next_deadline(&self.views.borrow());
                    deadline.max(earliest)
                }
                Waiting::Room(latest) => latest.min(self.watcher.deserted_at()),
            };
            let idle = matches!(waiting, Waiting::Idle(_));
            tokio::select! {
                // What a consumer said comes before the clock: if it was us who were stopped, its heartbeats wait here.
                biased;
                () = self.shutdown.cancelled() => {
                    let _ = self.sender.try_send(Err(Status::unavailable("the mesh server stops")));
                    return "the mesh server stops";
                }
                // Room first, then the message: what is said is of this moment.
                permit = self.sender.reserve(), if !idle => {
                    let Ok(permit) = permit else { return "it closed the stream" };
                    let view = self.views.borrow_and_update().clone();
                    waiting = match self.watcher.poll(&view, Instant::now()) {
                        Some(said) => {
                            self.served.note(self.role, &said.message);
                            permit.send(Ok(wire::say(said)));
                            room()
                        }
                        None => Waiting::Idle(Instant::now() + CIRCLE),
                    };
                }
                changed = self.views.changed(), if idle => {
                    if changed.is_err() {
                        return "the mesh server stops";
                    }
                    waiting = room();
                }
                said = self.inbound.message() => match said {
                    Ok(Some(said)) => match heard(said) {
                        Ok(Heard::Alive) => {
                            let now = Instant::now();
                            self.watcher.heard(now);
                            // Who speaks without end never lets the clock be asked.
                            if waiting.is_stalled(now) {
                                self.served.note_stalled();
                                return "it does not read";
                            }
                        }
                        Ok(Heard::Relist(id)) => {
                            self.watcher.relist(id);
                            if idle {
                                waiting = room();
                            }
                        }
                        Err(words) => {
                            let _ = self.sender.try_send(Err(Status::invalid_argument(words)));
                            return "it broke the protocol";
                        }
                    },
                    Ok(None) | Err(_) => return "it closed the stream",
                },
                () = tokio::time::sleep_until(deadline.into()) => {
                    let now = Instant::now();
                    if self.watcher.is_deserted(now) {
                        return "its heartbeat timed out";
                    }
                    if waiting.is_stalled(now) {
                        self.served.note_stalled();
                        return "it does not read";
                    }
                    if idle {
                        waiting = room();
                    }
                }
            }
        }
    }
}

fn service(
    hub: HubHandle,
    served: Arc<Served>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
) -> MeshServer<Service> {
    let service = Service {
        hub,
        served,
        tasks,
        shutdown,
    };
    // A hello names one position for each of 511 clusters.
    MeshServer::new(service).max_decoding_message_size(256 * 1024)
}
