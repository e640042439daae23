//! A mesh server that says what it is told to, over TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use isthmus_core::mesh::Cluster;
use isthmus_mesh::certs;
use isthmus_mesh::tls::Tls;
use isthmus_proto::mesh::v1 as proto;
use isthmus_proto::mesh::v1::mesh_server::MeshServer;
use isthmus_proto::mesh::v1::row_change::Change;
use isthmus_proto::mesh::v1::watch_response::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::world::{HEARTBEAT, World, paths};

impl World {
    /// A mesh server of `own` that says this after its hello, and then that it lives.
    pub(crate) async fn liar(&self, own: Cluster, script: Vec<Message>) -> SocketAddr {
        let certs = self.directory.path().join("liar");
        certs::issue(&own.name, &certs, Some(&self.ca)).unwrap();
        let tls = Tls::new(paths(&certs, "mesh"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, incoming) = mpsc::channel::<io::Result<Anybody>>(4);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = tokio_rustls::TlsAcceptor::from(tls.configs().unwrap().server);
                let stream = acceptor.accept(stream).await.map(Anybody);
                if sender.send(stream).await.is_err() {
                    return;
                }
            }
        });
        let service = MeshServer::new(Liar { own, script });
        let served = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(served.serve_with_incoming(ReceiverStream::new(incoming)));
        address
    }
}

/// The whole list of one cluster.
pub(crate) fn list(cluster: &Cluster, rows: Vec<Change>) -> Vec<Message> {
    let cluster_id = id(cluster);
    let changes = rows.into_iter().map(|change| proto::RowChange {
        change: Some(change),
    });
    let start = proto::ClusterStart {
        cluster_id,
        cluster_name: cluster.name.to_string(),
        beginning: proto::Beginning::First.into(),
    };
    let rows = proto::RowBatch {
        cluster_id,
        changes: changes.collect(),
        position: None,
    };
    let complete = proto::ClusterComplete {
        cluster_id,
        position: Some(proto::Position {
            epoch: 1,
            revision: 1,
            digest: 1,
        }),
    };
    vec![
        Message::Start(start),
        Message::Rows(rows),
        Message::Complete(complete),
    ]
}

pub(crate) fn name(name: &str) -> Option<proto::ObjectName> {
    Some(proto::ObjectName {
        namespace: "production".into(),
        name: name.into(),
    })
}

pub(crate) fn service(called: &str) -> Change {
    Change::Service(proto::Service {
        name: name(called),
        ports: vec![],
        global: true,
        shared: true,
    })
}

pub(crate) fn endpoint(service: &str, address: [u8; 4], port: u32) -> Change {
    Change::Endpoint(proto::Endpoint {
        key: Some(proto::EndpointKey {
            service: name(service),
            address: address.to_vec(),
        }),
        ports: vec![proto::EndpointPort {
            name: String::new(),
            protocol: proto::Protocol::Tcp.into(),
            port,
        }],
        condition: proto::Condition::Ready.into(),
        ..proto::Endpoint::default()
    })
}

fn id(cluster: &Cluster) -> u32 {
    cluster.id.get().into()
}

struct Liar {
    own: Cluster,
    script: Vec<Message>,
}

#[tonic::async_trait]
impl proto::mesh_server::Mesh for Liar {
    type WatchStream = ReceiverStream<Result<proto::WatchResponse, Status>>;

    async fn watch(
        &self,
        _: Request<Streaming<proto::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(16);
        let hello = Message::Hello(proto::ServerHello {
            cluster_name: self.own.name.to_string(),
            cluster_id: id(&self.own),
            epoch: 1,
            heartbeat_ms: u32::try_from(HEARTBEAT.as_millis()).unwrap(),
            version: 1,
            ..proto::ServerHello::default()
        });
        let script = self.script.clone();
        tokio::spawn(async move {
            let mut messages = std::iter::once(hello).chain(script);
            for sequence in 1.. {
                let message = messages.next();
                if message.is_none() {
                    tokio::time::sleep(HEARTBEAT).await;
                }
                let message = message.unwrap_or(Message::Heartbeat(proto::Heartbeat::default()));
                if sender
                    .send(Ok(proto::WatchResponse {
                        sequence,
                        message: Some(message),
                    }))
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Anybody(TlsStream<TcpStream>);

impl Connected for Anybody {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Anybody {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Anybody {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
