#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use isthmus_proto::node::v1::node_client::NodeClient;
use isthmus_proto::node::v1::{Frontend, LbRing, NodeInfo};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::*;

struct FakeView;

impl NodeView for FakeView {
    fn status(&self) -> Result<GetStatusResponse, ViewError> {
        let node = NodeInfo {
            cluster: "east".to_owned(),
            ..NodeInfo::default()
        };
        Ok(GetStatusResponse {
            node: Some(node),
            ..GetStatusResponse::default()
        })
    }
    fn cluster_mesh(&self) -> Result<GetClusterMeshResponse, ViewError> {
        Err(ViewError::Starting(
            "the state directory is being read".to_owned(),
        ))
    }
    fn services(&self) -> Result<ListServicesResponse, ViewError> {
        // 10 MB: more than a client takes unless it says so.
        let frontend = Frontend {
            problem: "x".repeat(1000),
            ..Frontend::default()
        };
        Ok(ListServicesResponse {
            frontends: vec![frontend; 10_000],
            ..ListServicesResponse::default()
        })
    }
    fn dump_lb(&self) -> Result<DumpLbResponse, ViewError> {
        let ring = LbRing {
            service: 7,
            word: 9,
            slots: vec![u64::MAX],
        };
        Ok(DumpLbResponse {
            rings: vec![ring],
            ..DumpLbResponse::default()
        })
    }
    fn monitor(self: &Arc<Self>, asked: MonitorRequest) -> ReceiverStream<MonitorEvent> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            // Until the caller leaves.
            for number in 0.. {
                let event = MonitorEvent {
                    service: asked.service.clone(),
                    lost: number,
                    ..MonitorEvent::default()
                };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}

/// The group that this process makes files with, so that the tests need no root.
fn own_group() -> String {
    nix::unistd::getegid().to_string()
}

struct World {
    path: PathBuf,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), ApiError>>,
    _directory: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/isthmus/agent.sock");
        let socket = ApiSocket::bind(&path, &own_group()).unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(socket, Arc::new(FakeView), shutdown.clone()));
        Self {
            path,
            shutdown,
            server,
            _directory: directory,
        }
    }
    async fn client(&self) -> NodeClient<Channel> {
        let uri = format!("unix://{}", self.path.display());
        let channel = Endpoint::try_from(uri).unwrap().connect().await.unwrap();
        NodeClient::new(channel).max_decoding_message_size(64 << 20)
    }
}

#[tokio::test]
async fn every_call_gets_the_view_s_answer() {
    let world = World::start();
    let mut client = world.client().await;
    let status = client.get_status(GetStatusRequest {}).await.unwrap();
    assert_eq!(status.into_inner().node.unwrap().cluster, "east");
    let services = client.list_services(ListServicesRequest {}).await.unwrap();
    assert_eq!(services.into_inner().frontends.len(), 10_000);
    let dump = client.dump_lb(DumpLbRequest {}).await.unwrap().into_inner();
    assert_eq!(dump.rings[0].slots, [u64::MAX]);
    let refused = client.get_cluster_mesh(GetClusterMeshRequest {}).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(refused.message(), "the state directory is being read");
}

#[tokio::test]
async fn a_monitor_gets_what_it_asked_for_in_order_and_does_not_hold_up_a_stop() {
    let world = World::start();
    let mut client = world.client().await;
    let asked = MonitorRequest {
        service: "production/backend".to_owned(),
        ..MonitorRequest::default()
    };
    let mut events = client.monitor(asked).await.unwrap().into_inner();
    for number in 0..100 {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!(
            (event.service.as_str(), event.lost),
            ("production/backend", number)
        );
    }
    world.shutdown.cancel();
    world.server.await.unwrap().unwrap();
    // What is still on its way comes, then the end, as one of the two ways in which a connection ends.
    while let Ok(Some(_)) = events.message().await {}
}

#[tokio::test]
async fn only_owner_and_group_may_open_it_and_a_stop_removes_it() {
    let world = World::start();
    let mode = fs::metadata(&world.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // An idle client does not hold up the stop.
    let _idle = world.client().await;
    world.shutdown.cancel();
    world.server.await.unwrap().unwrap();
    assert!(!world.path.exists());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let world = World::start();
    let taken = ApiSocket::bind(&world.path, &own_group()).unwrap_err();
    assert!(matches!(taken, ApiError::SocketInUse(_)), "{taken}");

    let stale = world.path.with_file_name("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let socket = ApiSocket::bind(&stale, &own_group()).unwrap();
    assert_eq!(socket::inode(&stale).unwrap(), socket.inode);
}

#[tokio::test]
async fn a_file_and_an_unknown_group_are_errors() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("notes");
    fs::write(&file, "keep me").unwrap();
    let error = ApiSocket::bind(&file, &own_group()).unwrap_err();
    assert!(matches!(error, ApiError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "keep me");
    let error = ApiSocket::bind(Path::new("/nowhere"), "no-such-group").unwrap_err();
    assert!(error.to_string().contains("--socket-group"), "{error}");
}
