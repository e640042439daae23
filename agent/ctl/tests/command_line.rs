//! The binary itself, against an agent that says what a test wants: exit codes, formats, and what goes where.
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use isthmus_proto::node::v1::node_server::{Node, NodeServer};
use isthmus_proto::node::v1::{
    DumpLbRequest, DumpLbResponse, Feed, FeedState, Frontend, GetClusterMeshRequest,
    GetClusterMeshResponse, GetStatusRequest, GetStatusResponse, LbFrontend, ListServicesRequest,
    ListServicesResponse, MonitorEvent, MonitorKind, MonitorRequest, NodeInfo, Peer, PeerState,
    ServiceBackend,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// A node of east, linked to west as the test says.
#[derive(Debug)]
struct FakeAgent(PeerState);

fn node() -> NodeInfo {
    NodeInfo {
        version: "0.1.0".to_owned(),
        cluster: "east".to_owned(),
        cluster_id: 1,
        node: "east-1".to_owned(),
        ..NodeInfo::default()
    }
}

#[tonic::async_trait]
impl Node for FakeAgent {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        Ok(Response::new(GetStatusResponse {
            node: Some(node()),
            ..GetStatusResponse::default()
        }))
    }
    async fn get_cluster_mesh(
        &self,
        _: Request<GetClusterMeshRequest>,
    ) -> Result<Response<GetClusterMeshResponse>, Status> {
        let west = Peer {
            name: "west".to_owned(),
            state: self.0.into(),
            hears_us: Some(true),
            complete: true,
            endpoint: "10.2.0.2:4260".to_owned(),
            ..Peer::default()
        };
        Ok(Response::new(GetClusterMeshResponse {
            node: Some(node()),
            feed: Some(Feed {
                server: "10.1.0.2:4260".to_owned(),
                state: FeedState::Connected.into(),
                listed: true,
                ..Feed::default()
            }),
            peers: vec![west],
            ..GetClusterMeshResponse::default()
        }))
    }
    async fn list_services(
        &self,
        _: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let frontend = Frontend {
            service: "production/backend".to_owned(),
            address: "10.96.71.4".to_owned(),
            backends: vec![ServiceBackend::default(); 3],
            ..Frontend::default()
        };
        Ok(Response::new(ListServicesResponse {
            node: Some(node()),
            frontends: vec![frontend],
        }))
    }
    async fn dump_lb(&self, _: Request<DumpLbRequest>) -> Result<Response<DumpLbResponse>, Status> {
        Ok(Response::new(DumpLbResponse {
            node: Some(node()),
            frontends: vec![LbFrontend::default()],
            ..DumpLbResponse::default()
        }))
    }
    type MonitorStream = Events;
    /// One event of what was asked for; then nothing more, or, for cluster `west`, the agent's end.
    async fn monitor(&self, asked: Request<MonitorRequest>) -> Result<Response<Events>, Status> {
        let asked = asked.into_inner();
        let event = MonitorEvent {
            kind: asked
                .kinds
                .first()
                .copied()
                .unwrap_or(MonitorKind::Returned.into()),
            service: asked.service,
            ..MonitorEvent::default()
        };
        let once = tokio_stream::once(Ok(event));
        let events: Events = if asked.cluster == "west" {
            Box::pin(once)
        } else {
            Box::pin(once.chain(tokio_stream::pending()))
        };
        Ok(Response::new(events))
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<MonitorEvent, Status>> + Send>>;

struct World {
    directory: tempfile::TempDir,
}

impl World {
    /// An agent that answers as long as the test's runtime lives.
    fn with_west(state: PeerState) -> Self {
        let world = Self::without_agent();
        let listener = UnixListener::bind(world.socket()).unwrap();
        let server = Server::builder().add_service(NodeServer::new(FakeAgent(state)));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        world
    }
    fn without_agent() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory }
    }
    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }
    fn path(&self) -> &Path {
        self.directory.path()
    }
    async fn run(&self, args: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentctl"));
        command.args(args).env("ISTHMUS_SOCKET", self.socket());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        Answer(output.await.unwrap())
    }
}

struct Answer(Output);

impl Answer {
    fn code(&self) -> Option<i32> {
        self.0.status.code()
    }
    fn out(&self) -> &str {
        std::str::from_utf8(&self.0.stdout).unwrap()
    }
    fn err(&self) -> &str {
        std::str::from_utf8(&self.0.stderr).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_is_0_and_every_row_has_its_full_name() {
    let world = World::with_west(PeerState::Connected);
    for args in [
        &["status"][..],
        &["version"],
        &["clustermesh", "status"],
        &["clustermesh", "status", "--wait=10s"],
        &["service", "list"],
        &["bpf", "lb", "list"],
    ] {
        let answer = world.run(args).await;
        assert_eq!(
            answer.code(),
            Some(0),
            "{args:?}: {}{}",
            answer.out(),
            answer.err()
        );
        assert!(!answer.out().contains('\u{1b}'), "no terminal, no colours");
    }
    let services = world.run(&["service", "list"]).await;
    let rows = services
        .out()
        .lines()
        .filter(|line| line.starts_with("production/backend  "));
    assert_eq!(rows.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_is_1_in_both_views_and_a_wait_for_its_end_too() {
    let world = World::with_west(PeerState::Stale);
    let mesh = world.run(&["clustermesh", "status"]).await;
    assert_eq!(mesh.code(), Some(1));
    assert!(
        mesh.out().ends_with("1 of 1 peer needs attention\n"),
        "{}",
        mesh.out()
    );
    assert_eq!(mesh.err(), "");
    assert_eq!(world.run(&["status"]).await.code(), Some(1));
    let waited = world.run(&["clustermesh", "status", "--wait=200ms"]).await;
    assert_eq!(waited.code(), Some(1));
    assert!(waited.out().contains("west"));
    let said = "Error: after 200ms still waiting for west to be connected";
    assert!(waited.err().starts_with(said), "{}", waited.err());
    // A service list is no judgement.
    assert_eq!(world.run(&["service", "list"]).await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_agent_is_1_and_wrong_usage_2() {
    let world = World::without_agent();
    for args in [
        &["status"][..],
        &["version"],
        &["service", "list"],
        &["bpf", "lb", "list"],
    ] {
        let answer = world.run(args).await;
        assert_eq!(answer.code(), Some(1), "{args:?}");
        assert!(
            answer.err().starts_with("Error: no agent at /"),
            "{}",
            answer.err()
        );
    }
    assert_eq!(world.run(&["version", "--client"]).await.code(), Some(0));
    for args in [
        &["frobnicate"][..],
        &["status", "-o", "xml"],
        &["clustermesh", "connect", "West", "--endpoint", "a:1"],
        &["clustermesh", "connect", "west"],
        &[
            "clustermesh",
            "connect",
            "west",
            "--endpoint",
            "a:1",
            "--id",
            "512",
        ],
        &["clustermesh", "status", "--wait=soon"],
    ] {
        assert_eq!(world.run(args).await.code(), Some(2), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_and_yaml_say_the_same() {
    let world = World::with_west(PeerState::Stale);
    for (args, kind) in [
        (&["status"][..], "NodeStatus"),
        (&["version"], "Version"),
        (&["clustermesh", "status"], "ClusterMeshStatus"),
        (&["service", "list"], "ServiceList"),
        (&["bpf", "lb", "list"], "LoadBalancerMaps"),
    ] {
        let json = world.run(&[args, &["-o", "json"]].concat()).await;
        let yaml = world.run(&[args, &["-o", "yaml"]].concat()).await;
        let json: serde_json::Value = serde_json::from_str(json.out()).unwrap();
        let yaml: serde_json::Value = serde_saphyr::from_str(yaml.out()).unwrap();
        assert_eq!(json["apiVersion"], "isthmus.dev/v1");
        assert_eq!(json["kind"], kind);
        assert_eq!(
            json["node"]["name"]
                .as_str()
                .or(json["agent"]["name"].as_str()),
            Some("east-1")
        );
        assert_eq!(json, yaml);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_written_waited_for_and_removed() {
    let world = World::with_west(PeerState::Connected);
    let (tls, links) = (world.path().join("tls"), world.path().join("links"));
    let certs = [
        "clustermesh",
        "certs",
        "--cluster",
        "east",
        "--out",
        tls.to_str().unwrap(),
    ];
    assert_eq!(world.run(&certs).await.code(), Some(0));
    let place = ["--links", links.to_str().unwrap()];
    let connect = [
        "clustermesh",
        "connect",
        "west",
        "--endpoint",
        "10.2.0.2:4260",
        "--wait=10s",
    ];
    let answer = world.run(&[&connect[..], &place[..]].concat()).await;
    assert_eq!(answer.code(), Some(0), "{}", answer.err());
    let other = "on west:\n  agentctl clustermesh connect east --id 1 --endpoint 10.1.0.2:4260\n";
    assert!(
        answer.out().contains("west is connected") && answer.out().ends_with(other),
        "{}",
        answer.out()
    );
    assert!(links.join("west.yaml").exists());

    // Nobody answers as north: the link stays, and the exit code says so.
    let connect = [
        "clustermesh",
        "connect",
        "north",
        "--endpoint",
        "10.3.0.2:4260",
        "--wait=200ms",
    ];
    let answer = world.run(&[&connect[..], &place[..]].concat()).await;
    assert_eq!(answer.code(), Some(1));
    assert!(
        answer.out().contains("north is not connected after"),
        "{}",
        answer.out()
    );
    assert!(
        answer
            .out()
            .contains("the mesh server does not know the link"),
        "{}",
        answer.out()
    );
    assert!(links.join("north.yaml").exists());

    let disconnect = [&["clustermesh", "disconnect", "west"][..], &place[..]].concat();
    assert_eq!(world.run(&disconnect).await.code(), Some(0));
    assert!(!links.join("west.yaml").exists());
    assert_eq!(world.run(&disconnect).await.code(), Some(1));
}

/// A monitor that runs, and what it prints.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl World {
    fn monitor(&self, args: &[&str]) -> Running {
        let mut child = Command::new(env!("CARGO_BIN_EXE_agentctl"))
            .arg("monitor")
            .args(args)
            .env("ISTHMUS_SOCKET", self.socket())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Running { child, out }
    }
}

impl Running {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).unwrap();
        line
    }
    fn end(self) -> Answer {
        Answer(self.child.wait_with_output().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_prints_events_as_they_come_and_ends_with_ctrl_c_as_0() {
    let world = World::with_west(PeerState::Connected);
    let filters = [
        "--service",
        "production/backend",
        "--type",
        "trial,ejection",
    ];
    let mut json = world.monitor(&[&filters[..], &["-o", "json"]].concat());
    let event: serde_json::Value = serde_json::from_str(&json.line()).unwrap();
    assert_eq!(event["kind"], "MonitorEvent");
    assert_eq!(event["event"], "trial-began");
    assert_eq!(event["service"], "production/backend");
    let process = i32::try_from(json.child.id()).unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(process),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    let answer = json.end();
    assert_eq!(answer.code(), Some(0), "{}", answer.err());
    assert_eq!(answer.err(), "Monitoring; Ctrl-C ends it.\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_says_that_the_agent_has_ended_and_exits_1() {
    let world = World::with_west(PeerState::Connected);
    let mut plain = world.monitor(&["--cluster", "west"]);
    assert!(plain.line().ends_with("takes connections again\n"));
    let answer = plain.end();
    assert_eq!(answer.code(), Some(1));
    assert!(
        answer
            .err()
            .ends_with("agent.sock has ended; nothing more is seen\n"),
        "{}",
        answer.err()
    );
    for args in [&["--service", "backend"][..], &["--type", "weather"]] {
        assert_eq!(world.monitor(args).end().code(), Some(2), "{args:?}");
    }
}
