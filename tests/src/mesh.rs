//! The project's own processes in a lab: agents on nodes, mesh servers in clusters, links between them, and `agentctl`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host::run;
use crate::lab::{Cluster, Lab, Node};
use crate::layout::state_dir;
use crate::process::Process;
use crate::wait::wait_for;

/// How long an agent or a mesh server may take until it says that it is ready: a debug build that reads thousands of
/// services, on a machine that has others to run.
const READY: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(10);
const AGENT_HTTP: &str = "127.0.0.1:9970";
const MESH_HTTP: &str = "127.0.0.1:9971";

impl Lab {
    /// Makes certificates, starts all mesh servers and agents, links the clusters as the lab file says, and waits until
    /// every agent is ready. Clusters that nothing links have no mesh server.
    pub fn start(&self) -> Result<Duration> {
        self.start_with(&[], &[])
    }
    /// The same, with flags for every agent and every mesh server.
    pub fn start_with(&self, agent_flags: &[&str], mesh_flags: &[&str]) -> Result<Duration> {
        let start = Instant::now();
        for cluster in self.clusters().filter(Cluster::is_linked) {
            cluster.make_certificates()?;
            cluster.spawn_mesh(mesh_flags)?;
        }
        for node in self.nodes() {
            node.spawn_agent(agent_flags)?;
        }
        for (a, b) in self.links() {
            let (a, b) = (self.cluster(a)?, self.cluster(b)?);
            a.connect(&b)?;
            b.connect(&a)?;
        }
        for cluster in self.clusters().filter(Cluster::is_linked) {
            cluster.wait_mesh_ready()?;
        }
        for node in self.nodes() {
            node.wait_agent_ready()?;
        }
        Ok(start.elapsed())
    }
}

impl Lab {
    /// Directory of the authority that all clusters trust: `ca.crt`, `ca.key`.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        state_dir(&self.name).join("ca")
    }
}

impl Cluster<'_> {
    /// True if the lab file links it to any other.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.lab
            .links()
            .iter()
            .any(|(a, b)| a == self.name() || b == self.name())
    }
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.plan.dir().join("certs")
    }
    #[must_use]
    pub fn links_dir(&self) -> PathBuf {
        self.plan.dir().join("links")
    }
    /// Certificates of the lab's one authority, as people without a PKI would make them.
    pub fn make_certificates(&self) -> Result<()> {
        self.make_certificates_of(&self.lab.authority())
    }
    /// The same of another authority, which is made if it is not there.
    pub fn make_certificates_of(&self, authority: &Path) -> Result<()> {
        let mut certs = Command::new(self.lab.programs.find("agentctl")?);
        certs.args(["clustermesh", "certs", "--cluster", self.name()]);
        certs
            .arg("--out")
            .arg(self.certificates())
            .arg("--ca")
            .arg(authority);
        run(&mut certs).map(drop)
    }
    /// Starts the mesh server and waits until it is ready.
    pub fn start_mesh(&self, flags: &[&str]) -> Result<Duration> {
        self.spawn_mesh(flags)?;
        self.wait_mesh_ready()
    }
    /// `kill -9`.
    pub fn kill_mesh(&self) -> Result<()> {
        self.lab.kill(&self.mesh())
    }
    /// Writes the link from this cluster to `other`.
    pub fn connect(&self, other: &Cluster<'_>) -> Result<()> {
        let mut connect = self.connect_command(other)?;
        run(&mut connect).map(drop)
    }
    /// The command that does it, for scenarios that change it. It is a direct call, from the host.
    pub fn connect_command(&self, other: &Cluster<'_>) -> Result<Command> {
        let mut connect = Command::new(self.lab.programs.find("agentctl")?);
        connect.args([
            "clustermesh",
            "connect",
            other.name(),
            "--endpoint",
            &other.plan.mesh_endpoint(),
        ]);
        connect.arg("--links").arg(self.links_dir());
        connect
            .arg("--socket")
            .arg(self.first_node().agent_socket());
        connect.args(self.tls_flags("mesh"));
        Ok(connect)
    }
    /// Removes the link from this cluster to `other`.
    pub fn disconnect(&self, other: &str) -> Result<()> {
        let mut disconnect = Command::new(self.lab.programs.find("agentctl")?);
        disconnect
            .args(["clustermesh", "disconnect", other, "--links"])
            .arg(self.links_dir());
        disconnect
            .arg("--socket")
            .arg(self.first_node().agent_socket());
        run(&mut disconnect).map(drop)
    }
    pub fn wait_mesh_ready(&self) -> Result<Duration> {
        self.first_node().wait_ready(&self.mesh(), MESH_HTTP)
    }
    /// Starts the mesh server and does not wait.
    pub fn spawn_mesh(&self, flags: &[&str]) -> Result<()> {
        let program = self.lab.programs.find("isthmus-mesh")?;
        let mut mesh = self
            .first_node()
            .place("mesh")
            .command(&self.lab.programs, &program)?;
        mesh.args([
            "--cluster-name",
            self.name(),
            "--cluster-id",
            &self.plan.id.to_string(),
        ]);
        mesh.arg("--source")
            .arg(format!("dir:{}", self.plan.manifests().display()));
        mesh.arg("--state-dir")
            .arg(self.plan.dir().join("mesh-state"));
        mesh.args(["--listen", "[::]:4260", "--http", MESH_HTTP]);
        mesh.arg("--links").arg(self.links_dir());
        mesh.args(self.tls_flags("mesh")).args(flags);
        self.lab.spawn(&self.mesh(), mesh)
    }
    /// `who` is `mesh` or `agent`: whose certificate.
    fn tls_flags(&self, who: &str) -> [String; 6] {
        let file = |name: &str| self.certificates().join(name).display().to_string();
        [
            "--tls-ca",
            "ca.crt",
            "--tls-cert",
            &format!("{who}.crt"),
            "--tls-key",
            &format!("{who}.key"),
        ]
        .map(|part| {
            if part.starts_with("--") {
                part.to_owned()
            } else {
                file(part)
            }
        })
    }
    fn mesh(&self) -> String {
        format!("mesh {}", self.name())
    }
}

/// The node's agent.
impl Node<'_> {
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.plan.dir().join("agent.sock")
    }
    /// Starts the agent and waits until it is ready.
    pub fn start_agent(&self, flags: &[&str]) -> Result<Duration> {
        self.spawn_agent(flags)?;
        self.wait_agent_ready()
    }
    /// Starts the agent and does not wait.
    pub fn spawn_agent(&self, flags: &[&str]) -> Result<()> {
        let cluster = self.cluster();
        let program = self.lab.programs.find("isthmus-agent")?;
        let mut agent = self
            .place("agent")
            .background(&self.lab.programs, &program)?;
        agent.args([
            "--cluster-name",
            cluster.name(),
            "--cluster-id",
            &cluster.plan.id.to_string(),
        ]);
        agent.args(["--node-name", self.name(), "--http", AGENT_HTTP]);
        agent
            .arg("--source")
            .arg(format!("dir:{}", cluster.plan.manifests().display()));
        agent.arg("--cgroup").arg(self.cgroup());
        agent.arg("--bpffs").arg(self.plan.pins());
        agent
            .arg("--state-dir")
            .arg(self.plan.dir().join("agent-state"));
        agent.arg("--socket").arg(self.agent_socket());
        if cluster.is_linked() {
            agent
                .args(["--mesh", &cluster.plan.mesh_endpoint()])
                .args(cluster.tls_flags("agent"));
        }
        agent.args(flags);
        self.lab.spawn(&self.agent(), agent)
    }
    /// `kill -9`.
    pub fn kill_agent(&self) -> Result<()> {
        self.lab.kill(&self.agent())
    }
    /// SIGTERM, and waits for its end.
    pub fn stop_agent(&self) -> Result<()> {
        self.lab
            .with_process(&self.agent(), |agent| agent.terminate(STOP))
    }
    pub fn agent_pid(&self) -> Result<u32> {
        self.lab
            .with_process(&self.agent(), |agent| Ok(agent.pid()))
    }
    pub fn wait_agent_ready(&self) -> Result<Duration> {
        self.wait_ready(&self.agent(), AGENT_HTTP)
    }
    /// Detaches the node's programs and removes what they left, as a person would.
    pub fn cleanup(&self) -> Result<String> {
        let program = self.lab.programs.find("isthmus-agent")?;
        let mut cleanup = self.place("shell").command(&self.lab.programs, &program)?;
        run(cleanup
            .arg("cleanup")
            .arg("--bpffs")
            .arg(self.plan.pins())
            .arg("--cgroup")
            .arg(self.cgroup()))
    }
    /// `agentctl` against this node's agent, whatever its exit code.
    pub fn agentctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(self.lab.programs.find("agentctl")?);
        command
            .args(arguments)
            .arg("--no-color")
            .arg("--socket")
            .arg(self.agent_socket());
        command.output().context("cannot run agentctl")
    }
    /// What the agent serves, cut to what is read; nothing if there is no agent.
    pub(crate) fn last_words(&self) -> String {
        const LINES: usize = 40;
        let said = self.agentctl(&["service", "list", "-o", "wide"]);
        let Some(said) = said.ok().filter(|said| said.status.success()) else {
            return String::new();
        };
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let shown: Vec<&str> = said.lines().take(LINES).collect();
        format!("{}: service list:\n  {}\n", self.name(), shown.join("\n  "))
    }
    /// The same as JSON. Exit codes 0 and 1 both have an answer.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.agentctl(&[arguments, &["-o", "json"]].concat())?;
        let said = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&said).with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            format!(
                "agentctl {} on {}: {}{said}",
                arguments.join(" "),
                self.name(),
                error.trim()
            )
        })
    }
    /// A page of the agent's HTTP server: status and body.
    pub fn agent_http(&self, path: &str) -> Result<(u16, String)> {
        self.netns().run(|| get(AGENT_HTTP, path))?
    }
    fn agent(&self) -> String {
        format!("agent {}", self.name())
    }
    fn wait_ready(&self, process: &str, http: &str) -> Result<Duration> {
        let netns = self.netns();
        let (took, alive) = wait_for(&format!("{process} is ready"), READY, || {
            if let Err(dead) = self.lab.with_process(process, Process::expect_alive) {
                return Ok(Some(Err(dead)));
            }
            match netns.run(|| get(http, "/readyz"))?? {
                (200, _) => Ok(Some(Ok(()))),
                (status, body) => bail!("/readyz says {status}: {}", body.trim()),
            }
        })?;
        alive?;
        Ok(took)
    }
}

/// One HTTP request of the kind that probes make.
pub(crate) fn get(address: &str, path: &str) -> Result<(u16, String)> {
    let mut stream =
        TcpStream::connect(address).with_context(|| format!("no answer at {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((
        status.with_context(|| format!("no HTTP status in {head:?}"))?,
        body.to_owned(),
    ))
}
