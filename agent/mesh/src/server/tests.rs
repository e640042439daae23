#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::task::Poll;

use bytes::{Buf, Bytes};
use http_body_util::StreamBody;
use hyper::body::Frame;
use isthmus_core::mesh::{Cluster, Guard, VERSION};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::codec::{DecodeBuf, Decoder};

use super::*;
use crate::hub::{self, HubConfig};

const DEADLINE: Duration = Duration::from_secs(60);

fn cluster(name: &str, id: u16) -> Cluster {
    Cluster {
        name: name.parse().unwrap(),
        id: id.try_into().unwrap(),
    }
}

/// And its hub's task, which writes in the state directory at its end.
fn start(state_dir: &Path) -> (Service, JoinHandle<()>) {
    let config = HubConfig {
        own: cluster("east", 1),
        node: "test".to_owned(),
        heartbeat: Duration::from_secs(1),
        guard: Guard {
            percent: 50,
            grace: Duration::from_secs(10),
        },
        cidrs: Vec::new(),
        state_dir: state_dir.to_owned(),
    };
    let shutdown = CancellationToken::new();
    let (hub, task) = hub::spawn(config, shutdown.clone()).unwrap();
    let service = Service {
        hub,
        served: Arc::default(),
        tasks: TaskTracker::new(),
        shutdown,
    };
    (service, task)
}

/// Of a stream's first message, whatever its bytes.
struct Says(Option<WatchRequest>);

impl Decoder for Says {
    type Item = WatchRequest;
    type Error = Status;

    fn decode(&mut self, bytes: &mut DecodeBuf<'_>) -> Result<Option<WatchRequest>, Status> {
        bytes.advance(bytes.remaining());
        Ok(self.0.take())
    }
}

/// A consumer that says hello, and nothing after that.
fn request(hello: &ConsumerHello) -> Request<Streaming<WatchRequest>> {
    let message: Result<_, Status> = Ok(Frame::data(Bytes::from_static(&[0, 0, 0, 0, 1, 0])));
    let body = StreamBody::new(tokio_stream::once(message).chain(tokio_stream::pending()));
    let says = Says(Some(wire::say_consumer_hello(hello)));
    let mut request = Request::new(Streaming::new_request(says, body, None, None));
    request.extensions_mut().insert(Visitor::Certified {
        names: Arc::new([certs::mesh_name(&hello.cluster.name)]),
        from: SocketAddr::from(([127, 0, 0, 1], 1)),
    });
    request
}

#[tokio::test]
async fn who_hangs_up_between_the_verdict_and_the_stream_is_gone() {
    let state = tempfile::tempdir().unwrap();
    let (server, task) = start(state.path());
    let mut audience = server.hub.audience();
    let hello = ConsumerHello {
        cluster: cluster("west", 2),
        role: Role::MeshServer,
        node: "west-1".to_owned(),
        held: Vec::new(),
        stale_after: None,
        versions: vec![VERSION],
    };
    {
        let mut watch = pin!(server.watch(request(&hello)));
        // It asks; the hub admits; and nobody looks at the verdict.
        let asked = poll_fn(|context| Poll::Ready(watch.as_mut().poll(context))).await;
        assert!(asked.is_pending());
        let admitted = audience.wait_for(|audience| audience.mesh_servers == 1);
        timeout(DEADLINE, admitted).await.unwrap().unwrap();
    }
    let gone = audience.wait_for(|audience| audience.mesh_servers == 0);
    timeout(DEADLINE, gone).await.unwrap().unwrap();
    // Another cluster of this name may come.
    let other = ConsumerHello {
        cluster: cluster("west", 3),
        ..hello
    };
    let response = timeout(DEADLINE, server.watch(request(&other))).await;
    assert!(response.unwrap().is_ok());
    server.shutdown.cancel();
    task.await.unwrap();
}
