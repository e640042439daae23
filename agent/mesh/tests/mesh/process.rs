//! The program itself: what its log and its metrics say.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use isthmus_mesh::certs;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(20);

struct Program {
    home: TempDir,
    http: SocketAddr,
    child: Child,
}

impl Program {
    /// `east`, with a directory of links if `links` has any.
    fn start(links: &[(&str, String)]) -> Self {
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
            .args(["--source", &source]);
        for (flag, file) in [
            ("--tls-ca", "certs/ca.crt"),
            ("--tls-cert", "certs/mesh.crt"),
            ("--tls-key", "certs/mesh.key"),
            ("--links", "links"),
            ("--state-dir", "state"),
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

    /// Ends it; its log.
    fn stop(mut self) -> String {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
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
    let log = program.stop();
    assert!(!log.contains("ERROR") && !log.contains("WARN"), "{log}");
    assert!(log.contains("there is no directory of links yet"), "{log}");
}
