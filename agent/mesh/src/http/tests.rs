#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A server on loopback, and what ends it.
struct World {
    address: std::net::SocketAddr,
    readiness: Readiness,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl World {
    async fn start() -> Self {
        let mut registry = registry("test", "1.2.3");
        let writes = Counter::<u64>::default();
        registry.register(
            "reconcile_writes",
            "Writes that the kernel took",
            writes.clone(),
        );
        writes.inc_by(7);
        let listener = listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, shutdown) = (Readiness::default(), CancellationToken::new());
        let server = tokio::spawn(serve(
            listener,
            Arc::new(registry),
            readiness.clone(),
            shutdown.clone(),
        ));
        Self {
            address,
            readiness,
            shutdown,
            server,
        }
    }
    async fn say(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }
    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self
            .say(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (
            head.split(' ').nth(1).unwrap().parse().unwrap(),
            body.to_owned(),
        )
    }
}

#[tokio::test]
async fn metrics_are_prefixed_and_end_as_openmetrics_wants() {
    let world = World::start().await;
    let (status, body) = world.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(
        body.contains("isthmus_reconcile_writes_total 7\n"),
        "{body}"
    );
    assert!(
        body.contains(r#"isthmus_build_info{component="test",version="1.2.3"} 1"#),
        "{body}"
    );
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn readyz_lists_what_is_open_and_healthz_does_not_care() {
    let world = World::start().await;
    let list = world.readiness.hold("first list of dir:/m is not complete");
    let mesh = world.readiness.hold("no mesh server yet");
    mesh.because("the mesh server refuses us");
    let wanted =
        "not ready: first list of dir:/m is not complete\nnot ready: the mesh server refuses us\n";
    assert_eq!(world.get("/readyz").await, (503, wanted.to_owned()));
    assert_eq!(world.get("/healthz").await, (200, "ok\n".to_owned()));
    drop((list, mesh));
    assert_eq!(world.get("/readyz").await, (200, "ready\n".to_owned()));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let world = World::start().await;
    assert_eq!(world.get("/").await.0, 404);
    let answer = world
        .say("POST /metrics HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"),
        "{answer}"
    );
    let answer = world
        .say("HEAD /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn shutdown_waits_for_nobody_who_says_nothing() {
    let world = World::start().await;
    let silent = TcpStream::connect(world.address).await.unwrap();
    assert_eq!(world.get("/healthz").await.0, 200);
    world.shutdown.cancel();
    tokio::time::timeout(CONNECTION_TIME / 2, world.server)
        .await
        .unwrap()
        .unwrap();
    drop(silent);
}

#[tokio::test]
async fn a_busy_port_is_an_error_with_a_way_out() {
    let world = World::start().await;
    let error = listen(&world.address.to_string())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("give a free address in --http"), "{error}");
}
