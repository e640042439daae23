//! The program itself: what its log and its metrics say.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use isthmus_core::mesh::{ConsumerHello, Role};
use isthmus_mesh::{certs, dial};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::world::cluster;

const DEADLINE: Duration = Duration::from_secs(60);

struct Program {
    home: TempDir,
    http: SocketAddr,
    child: Child,
}

impl Program {
    /// `east`, with a directory of links if `links` has any.
    fn start(links: &[(&str, String)]) -> Self {
        Self::start_with(links, &[])
    }

    fn start_with(links: &[(&str, String)], flags: &[&str]) -> Self {
        let home = TempDir::new().unwrap();
        let path = |name: &str| home.path().join(name);
        certs::issue(&"east".parse().unwrap(), &path("certs"), None).unwrap();
        fs::create_dir(path("manifests")).unwrap();
        if !links.is_empty() {
            fs::create_dir(path("links")).unwrap();
        }
        for (name, text) in links {
            fs::write(path("links").join(name), text).unwrap();
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let http = free.local_addr().unwrap();
        drop(free);
        let source = format!("dir:{}", path("manifests").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-mesh"));
        command
            .args(["--cluster-name", "east", "--cluster-id", "1"])
            .args(["--listen", "127.0.0.1:0", "--http", &http.to_string()])
            .args(["--source", &source])
            .args(flags);
        for (flag, file) in [
            ("--tls-ca", "certs/ca.crt"),
            ("--tls-cert", "certs/mesh.crt"),
            ("--tls-key", "certs/mesh.key"),
            ("--links", "links"),
            ("--state-dir", "state"),
            ("--listen-unix", "mesh.sock"),
        ] {
            command.arg(flag).arg(path(file));
        }
        let log = File::create(path("log")).unwrap();
        let child = command.env_remove("RUST_LOG").stderr(log).spawn().unwrap();
        Self { home, http, child }
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("log")
    }

    fn metrics(&self) -> String {
        let answer = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.http)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        answer().unwrap_or_default() // It has not begun to listen.
    }

    /// Of one series.
    fn metric(&self, series: &str) -> Option<f64> {
        let metrics = self.metrics();
        let line = metrics.lines().find_map(|line| line.strip_prefix(series))?;
        line.trim().parse().ok()
    }

    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            let log = fs::read_to_string(self.log_file()).unwrap_or_default();
            assert!(began.elapsed() < DEADLINE, "{what} did not happen:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Ends it; its log.
    fn stop(mut self) -> String {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().unwrap().success());
        fs::read_to_string(self.log_file()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill(); // Of a test that failed.
        let _ = self.child.wait();
    }
}

fn link(name: &str, endpoint: &str) -> String {
    format!(
        "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: ClusterLink\nmetadata: {{name: {name}}}\nspec:\n  endpoints: [{endpoint:?}]\n"
    )
}

#[test]
fn a_link_that_goes_on_failing_is_logged_once_and_in_plain_text() {
    let program = Program::start(&[
        ("west.yaml", link("west", "127.0.0.1:1")),
        ("north.yaml", link("north", "nowhere")),
    ]);
    let tries = "isthmus_mesh_peer_tries{peer=\"west\"}";
    program.until("four tries", |program| {
        program.metric(tries).is_some_and(|tries| tries >= 4.0)
    });
    let log = program.stop();
    assert!(!log.contains('\u{1b}'), "terminal colours:\n{log}");
    let failures = log.matches("link is not connected").count();
    assert_eq!(failures, 1, "{log}");
    assert!(log.contains("127.0.0.1:1 refuses TCP"), "{log}");
    assert_eq!(log.matches("north.yaml:5").count(), 1, "{log}");
}

#[test]
fn no_directory_of_links_is_no_error_and_every_bound_is_shown() {
    let program = Program::start(&[]);
    program.until("metrics", |program| {
        program.metric("isthmus_mesh_published_services").is_some()
    });
    let metrics = program.metrics();
    for queue in ["hub-commands", "streams", "connections"] {
        for what in ["length", "capacity"] {
            let series = format!("isthmus_mesh_queue_{what}{{queue=\"{queue}\"}} ");
            assert!(metrics.contains(&series), "{series} in\n{metrics}");
        }
    }
    let history = "isthmus_mesh_history_capacity{cluster=\"east\"} 1024";
    assert!(metrics.contains(history), "{metrics}");
    let words = "there is no directory of links yet";
    program.until("it is said", |program| {
        fs::read_to_string(program.log_file()).is_ok_and(|log| log.contains(words))
    });
    let log = program.stop();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_server_that_was_stopped_keeps_who_went_on_speaking() {
    const BEAT: Duration = Duration::from_millis(500);
    let program = Program::start_with(&[], &["--heartbeat", "500ms"]);
    let socket = program.home.path().join("mesh.sock");
    program.until("the socket", |_| socket.exists());
    let server = format!("unix:{}", socket.display()).parse().unwrap();
    let own = cluster("east", 1);
    let transport = dial::connect(&server, None, &own.name).await.unwrap();
    let hello = ConsumerHello {
        cluster: own,
        role: Role::Agent,
        node: "patient".to_owned(),
        held: vec![],
        stale_after: None,
        versions: vec![1],
    };
    let mut stream = transport.watch(&hello).await.unwrap();
    stream.next().await.unwrap();
    let mut beat = tokio::time::interval(BEAT);
    // For longer than a silence that would end it.
    for _ in 0..2 {
        program.signal(Signal::SIGSTOP);
        for _ in 0..5 {
            beat.tick().await;
            stream.beat();
        }
        program.signal(Signal::SIGCONT);
        for _ in 0..2 {
            beat.tick().await;
            stream.beat();
            stream.next().await.unwrap();
        }
    }
    let log = program.stop();
    assert!(!log.contains("its heartbeat timed out"), "{log}");
}
