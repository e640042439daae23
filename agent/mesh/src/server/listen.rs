//! Sockets: accepting, TLS, and the names that a certificate proves.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::{Served, Visitor};
use crate::hub::HubHandle;
use crate::tls::{Certificate, Tls, server_words};

/// Connections at once, with those that still shake hands.
pub(super) const CONNECTIONS_MAX: usize = 8192;
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// For streams to end at shutdown.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {cause}; give a free address in --listen")]
    Tcp {
        address: SocketAddr,
        cause: io::Error,
    },
    #[error("cannot listen on unix:{}: {cause}", path.display())]
    Unix { path: PathBuf, cause: io::Error },
    #[error("a mesh server is running on unix:{} already", path.display())]
    UnixTaken { path: PathBuf },
}

/// Bound sockets.
#[derive(Debug, Default)]
pub struct Listen {
    tcp: Option<(TcpListener, Arc<Tls>)>,
    unix: Option<(UnixListener, PathBuf)>,
}

impl Listen {
    /// # Errors
    /// The address is not free.
    pub async fn tcp(mut self, address: SocketAddr, tls: Arc<Tls>) -> Result<Self, ListenError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|cause| ListenError::Tcp { address, cause })?;
        self.tcp = Some((listener, tls));
        Ok(self)
    }

    /// A socket file that nobody listens on any more is replaced. Mode 0660: root's, and the group of the directory's
    /// choosing.
    ///
    /// # Errors
    /// Somebody listens there, or the path cannot be used.
    pub fn unix(mut self, path: &Path) -> Result<Self, ListenError> {
        let failed = |cause| ListenError::Unix {
            path: path.to_owned(),
            cause,
        };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ListenError::UnixTaken {
                    path: path.to_owned(),
                });
            }
            fs::remove_file(path).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        self.unix = Some((listener, path.to_owned()));
        Ok(self)
    }

    /// The address that was given, with the port that was chosen if it was 0.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp
            .as_ref()
            .and_then(|(listener, _)| listener.local_addr().ok())
    }
}

/// Serves until `shutdown`, then ends the streams and removes the socket file.
///
/// # Errors
/// The server itself fails.
pub async fn serve(
    listen: Listen,
    hub: HubHandle,
    served: Arc<Served>,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (accepted, incoming) = mpsc::channel::<io::Result<Accepted>>(64);
    let room = served.connections.clone();
    let tasks = TaskTracker::new();
    let unix_path = listen.unix.as_ref().map(|(_, path)| path.clone());
    if let Some((listener, tls)) = listen.tcp {
        tasks.spawn(accept_tcp(
            listener,
            tls,
            accepted.clone(),
            room.clone(),
            shutdown.clone(),
        ));
    }
    if let Some((listener, _)) = listen.unix {
        tasks.spawn(accept_unix(
            listener,
            accepted.clone(),
            room,
            shutdown.clone(),
        ));
    }
    drop(accepted);
    let service = super::service(hub, served, tasks.clone(), shutdown.clone());
    let server = Server::builder().add_service(service);
    let serving = server.serve_with_incoming_shutdown(
        ReceiverStream::new(incoming),
        shutdown.clone().cancelled_owned(),
    );
    let ended = async {
        shutdown.cancelled().await;
        sleep(SHUTDOWN_TIME).await;
    };
    let result = tokio::select! {
        result = serving => result,
        () = ended => Ok(()),
    };
    shutdown.cancel();
    tasks.close();
    let _ = timeout(SHUTDOWN_TIME, tasks.wait()).await; // Whoever is later loses nothing.
    if let Some(path) = unix_path {
        let _ = fs::remove_file(path); // A next start replaces it.
    }
    result
}

async fn accept_tcp(
    listener: TcpListener,
    tls: Arc<Tls>,
    accepted: mpsc::Sender<io::Result<Accepted>>,
    room: Arc<Semaphore>,
    shutdown: CancellationToken,
) {
    let handshakes = TaskTracker::new();
    let accept = async {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, from)) => {
                    let (tls, accepted) = (tls.clone(), accepted.clone());
                    handshakes.spawn(async move {
                        match timeout(HANDSHAKE_TIME, shake_hands(stream, from, &tls, permit)).await
                        {
                            Ok(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
                            Ok(Err(words)) => {
                                tracing::warn!(%from, words, "a connection is turned down")
                            }
                            Err(_) => {
                                tracing::debug!(%from, "a connection did not speak TLS in time")
                            }
                        }
                    });
                }
                Err(error) => pause(&error).await,
            }
        }
    };
    shutdown.run_until_cancelled(accept).await;
}

async fn shake_hands(
    stream: TcpStream,
    from: SocketAddr,
    tls: &Tls,
    permit: OwnedSemaphorePermit,
) -> Result<Accepted, String> {
    let _ = stream.set_nodelay(true); // Slower without, and no worse.
    let configs = tls.configs().map_err(|error| error.to_string())?;
    let stream = TlsAcceptor::from(configs.server)
        .accept(stream)
        .await
        .map_err(|error| server_words(&error))?;
    let shown = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let certificate = shown
        .and_then(Certificate::parse)
        .ok_or("its certificate cannot be parsed")?;
    let visitor = Visitor::Certified {
        names: certificate.names.into(),
        from,
    };
    Ok(Accepted {
        io: AcceptedIo::Tls(Box::new(stream)),
        visitor,
        _permit: permit,
    })
}

async fn accept_unix(
    listener: UnixListener,
    accepted: mpsc::Sender<io::Result<Accepted>>,
    room: Arc<Semaphore>,
    shutdown: CancellationToken,
) {
    let accept = async {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let stream = Accepted {
                        io: AcceptedIo::Unix(stream),
                        visitor: Visitor::Host,
                        _permit: permit,
                    };
                    if accepted.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                Err(error) => pause(&error).await,
            }
        }
    };
    shutdown.run_until_cancelled(accept).await;
}

/// Out of descriptors, mostly: give the process a moment to close some.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "accept failed");
    sleep(Duration::from_millis(50)).await;
}

/// A connection whose far end is known.
struct Accepted {
    io: AcceptedIo,
    visitor: Visitor,
    _permit: OwnedSemaphorePermit,
}

enum AcceptedIo {
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

impl Connected for Accepted {
    type ConnectInfo = Visitor;
    fn connect_info(&self) -> Visitor {
        self.visitor.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.io {
            AcceptedIo::Tls(io) => Pin::new(io).poll_read(cx, buf),
            AcceptedIo::Unix(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            AcceptedIo::Tls(io) => Pin::new(io).poll_write(cx, buf),
            AcceptedIo::Unix(io) => Pin::new(io).poll_write(cx, buf),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            AcceptedIo::Tls(io) => Pin::new(io).poll_flush(cx),
            AcceptedIo::Unix(io) => Pin::new(io).poll_flush(cx),
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            AcceptedIo::Tls(io) => Pin::new(io).poll_shutdown(cx),
            AcceptedIo::Unix(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
