//! One connection to a mesh server, from TCP to the Watch stream, with each step's failure in words.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use isthmus_core::mesh::{ConsumerHello, Fault, Sequenced};
use isthmus_core::model::{ClusterId, ClusterName};
use isthmus_proto::mesh::v1::mesh_client::MeshClient;
use isthmus_proto::mesh::v1::{WatchRequest, WatchResponse};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::config::{MeshEndpoint, TlsPaths};
use crate::tls::{Tls, client_words, io_words};
use crate::{certs, wire};

/// A SYN, and one more after a second.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// For each of: name look-up, TLS, and the answer to our hello.
const STEP_TIME: Duration = Duration::from_secs(3);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Our own messages that wait to be sent: heartbeats, of which a second one says nothing more.
const OUTBOUND_MAX: usize = 4;

/// Why there is no stream, or no longer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub words: String,
    /// Somebody has to change something; trying again soon is of no use.
    pub refused: bool,
}

impl Failure {
    fn broken(words: String) -> Self {
        Self {
            words,
            refused: false,
        }
    }
    fn refused(words: String) -> Self {
        Self {
            words,
            refused: true,
        }
    }
    /// Three heartbeats were missed on a connection that stands.
    pub(crate) fn silent(endpoint: &MeshEndpoint) -> Self {
        Self::broken(format!(
            "heartbeat timed out: {endpoint} fell silent: firewall, route, or mesh server down?"
        ))
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self {
            refused: fault.is_refusal(),
            words: fault.to_string(),
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that stands, not spoken on yet.
pub struct Transport {
    io: Box<dyn Io>,
    endpoint: String,
    paths: Option<TlsPaths>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Connects to the mesh server of `cluster`.
///
/// # Errors
/// In words, with the endpoint.
pub async fn connect(
    endpoint: &MeshEndpoint,
    tls: Option<&Tls>,
    cluster: &ClusterName,
) -> Result<Transport, Failure> {
    let shown = endpoint.to_string();
    let (io, paths): (Box<dyn Io>, _) = match (endpoint, tls) {
        (MeshEndpoint::Unix(path), _) => {
            let stream = UnixStream::connect(path).await.map_err(|error| {
                Failure::broken(format!(
                    "{shown}: {error}: is isthmus-mesh running, with this --listen-unix?"
                ))
            })?;
            (Box::new(stream), None)
        }
        (MeshEndpoint::Tcp { .. }, None) => {
            return Err(Failure::refused(format!(
                "{shown}: needs --tls-ca, --tls-cert and --tls-key"
            )));
        }
        (MeshEndpoint::Tcp { host, port }, Some(tls)) => {
            let tcp = connect_tcp(&shown, host, *port).await?;
            let configs = tls
                .configs()
                .map_err(|error| Failure::refused(error.to_string()))?;
            if configs.certificate.not_after <= time::OffsetDateTime::now_utc() {
                let (cert, when) = (tls.paths().cert.display(), configs.certificate.expiry());
                return Err(Failure::refused(format!(
                    "our certificate {cert} expired at {when}: renew it"
                )));
            }
            let name = certs::mesh_name(cluster);
            let server =
                ServerName::try_from(name).map_err(|error| Failure::refused(error.to_string()))?;
            let handshake = TlsConnector::from(configs.client).connect(server, tcp);
            let stream = match timeout(STEP_TIME, handshake).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    let words = client_words(&error, tls.paths());
                    let refused = words.is_some();
                    let words = words.unwrap_or_else(|| {
                        format!("the TLS handshake failed: {}", io_words(&error))
                    });
                    return Err(Failure {
                        words: format!("{shown}: {words}"),
                        refused,
                    });
                }
                Err(_) => {
                    return Err(Failure::broken(format!(
                        "{shown} answers TCP and not TLS: is it overloaded?"
                    )));
                }
            };
            (Box::new(stream), Some(tls.paths().clone()))
        }
    };
    Ok(Transport {
        io,
        endpoint: shown,
        paths,
    })
}

async fn connect_tcp(shown: &str, host: &str, port: u16) -> Result<TcpStream, Failure> {
    let found = match timeout(STEP_TIME, lookup_host((host, port))).await {
        Ok(Ok(found)) => found.take(ADDRESSES_MAX).collect::<Vec<_>>(),
        Ok(Err(error)) => {
            return Err(Failure::broken(format!(
                "{shown}: the name cannot be looked up: {error}"
            )));
        }
        Err(_) => {
            return Err(Failure::broken(format!(
                "{shown}: the name cannot be looked up: DNS does not answer"
            )));
        }
    };
    let mut failure = Failure::broken(format!("{shown}: the name has no address"));
    for address in found {
        match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true); // Slower without, and no worse.
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                failure = Failure::broken(format!(
                    "{shown} refuses TCP: is the mesh server running there?"
                ));
            }
            Ok(Err(error)) => failure = Failure::broken(format!("{shown}: {error}")),
            Err(_) => {
                let words =
                    format!("{shown} does not answer TCP: firewall, route, or mesh server down?");
                failure = Failure::broken(words);
            }
        }
    }
    Err(failure)
}

/// A Watch stream, hello said.
#[derive(Debug)]
pub struct Stream {
    inbound: Streaming<WatchResponse>,
    outbound: mpsc::Sender<WatchRequest>,
    faults: Faults,
}

/// What is needed to say why a stream ended.
#[derive(Clone, Debug)]
struct Faults {
    endpoint: String,
    paths: Option<TlsPaths>,
    io: Arc<OnceLock<io::Error>>,
}

impl Transport {
    /// Says hello, and waits until the server takes the stream.
    ///
    /// # Errors
    /// The server refuses, in its own words; or the connection broke.
    pub async fn watch(self, hello: &ConsumerHello) -> Result<Stream, Failure> {
        let faults = Faults {
            endpoint: self.endpoint,
            paths: self.paths,
            io: Arc::default(),
        };
        let io = Observed {
            io: self.io,
            error: faults.io.clone(),
        };
        let slot = Arc::new(Mutex::new(Some(TokioIo::new(io))));
        let connector = tower::service_fn(move |_| {
            let io = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            // A channel would connect again; the words and the waits for that are ours.
            std::future::ready(io.ok_or(io::Error::from(io::ErrorKind::NotConnected)))
        });
        let (outbound, requests) = mpsc::channel(OUTBOUND_MAX);
        let _ = outbound.try_send(wire::say_consumer_hello(hello)); // The queue is empty.
        let watch = async {
            let endpoint = Endpoint::from_static("http://mesh.isthmus.dev");
            let channel = endpoint.connect_with_connector(connector).await;
            let channel: Channel =
                channel.map_err(|error| Status::unavailable(error.to_string()))?;
            let stream = MeshClient::new(channel)
                .watch(ReceiverStream::new(requests))
                .await?;
            Ok::<_, Status>(stream.into_inner())
        };
        match timeout(STEP_TIME, watch).await {
            Ok(Ok(inbound)) => Ok(Stream {
                inbound,
                outbound,
                faults,
            }),
            Ok(Err(status)) => Err(faults.explain(&status)),
            Err(_) => Err(Failure::broken(format!(
                "{} takes connections and does not answer",
                faults.endpoint
            ))),
        }
    }
}

impl Stream {
    /// The next message. Losing the future loses no message.
    ///
    /// # Errors
    /// The stream ended; in words.
    pub async fn next(&mut self) -> Result<Sequenced, Failure> {
        match self.inbound.message().await {
            Ok(Some(said)) => wire::hear(said)
                .map_err(|error| Failure::broken(format!("{} sent {error}", self.faults.endpoint))),
            Ok(None) => Err(Failure::broken(format!(
                "{} ended the stream",
                self.faults.endpoint
            ))),
            Err(status) => Err(self.faults.explain(&status)),
        }
    }

    /// Asks for all rows of a cluster again. Nothing if our words wait already: it is asked again later.
    pub fn relist(&self, id: ClusterId) {
        let _ = self.outbound.try_send(wire::say_relist(id));
    }

    /// Says that we live. If the last such word is not sent yet, this one is not needed.
    pub fn beat(&self) {
        let _ = self.outbound.try_send(wire::say_alive());
    }
}

impl Faults {
    fn explain(&self, status: &Status) -> Failure {
        let endpoint = &self.endpoint;
        if let Some(error) = self.io.get() {
            if let Some(words) = self
                .paths
                .as_ref()
                .and_then(|paths| client_words(error, paths))
            {
                return Failure::refused(format!("{endpoint}: {words}"));
            }
            return Failure::broken(format!(
                "{endpoint}: the connection broke: {}",
                io_words(error)
            ));
        }
        match status.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::FailedPrecondition => {
                Failure::refused(status.message().to_owned())
            }
            Code::Unimplemented => Failure::refused(format!("{endpoint} is no mesh server")),
            Code::Unavailable
                if !status.message().is_empty() && std::error::Error::source(status).is_none() =>
            {
                Failure::broken(format!("{endpoint}: {}", status.message()))
            }
            _ => Failure::broken(format!("{endpoint} closed the connection")),
        }
    }
}

/// Keeps the first error: HTTP/2 above tells less about it.
struct Observed {
    io: Box<dyn Io>,
    error: Arc<OnceLock<io::Error>>,
}

impl Observed {
    fn note<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        Poll::Ready(result.map_err(|error| {
            let kind = error.kind();
            let _ = self.error.set(error); // The first one is told.
            kind.into()
        }))
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.note(result)
    }
}

impl AsyncWrite for Observed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.note(result)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_flush(cx));
        self.note(result)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
