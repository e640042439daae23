//! A pod: a namespace and a cgroup of its own, a server for the services that select it, and its manifest.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::flow::Flow;
use crate::host::run;
use crate::hostile::{Account, Behaviour};
use crate::lab::{Lab, lock};
use crate::layout::PodPlan;
use crate::long::{FlowKind, LongFlow};
use crate::manifests::{PodStatus, pod_object};
use crate::netns::Netns;
use crate::network;
use crate::process::{Place, Process, open_log, tail};
use crate::traffic::{Requests, Traffic};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PodState {
    pub(crate) plan: PodPlan,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Port → service.
    pub(crate) ports: BTreeMap<u16, String>,
}

#[derive(Clone, Debug)]
pub struct Pod<'a> {
    lab: &'a Lab,
    state: PodState,
}

impl<'a> Pod<'a> {
    pub(crate) fn new(lab: &'a Lab, state: PodState) -> Self {
        Self { lab, state }
    }
    /// `east/backend-1`
    #[must_use]
    pub fn name(&self) -> String {
        self.state.plan.full_name()
    }
    #[must_use]
    pub fn plan(&self) -> &PodPlan {
        &self.state.plan
    }
    #[must_use]
    pub fn netns(&self) -> Netns {
        Netns::new(self.state.plan.netns())
    }
    #[must_use]
    pub fn serves(&self) -> bool {
        !self.state.ports.is_empty()
    }
    /// Where its server listens, over IPv4.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let ip = self.state.plan.addresses.v4.into();
        self.state
            .ports
            .keys()
            .map(|&port| SocketAddr::new(ip, port))
            .collect()
    }
    /// A command in the pod's namespace and cgroup: its connects are the pod's.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.place().command(&self.lab.programs, program.as_ref())
    }
    fn place(&self) -> Place {
        let cgroup = self.lab.host.cgroup2.join(self.state.plan.cgroup());
        Place {
            netns: self.netns(),
            cgroup: Cgroup::new(cgroup),
        }
    }
    fn server(&self) -> String {
        format!("server {}", self.name())
    }
}

/// The server's life. None of it touches the manifest.
impl Pod<'_> {
    /// Starts the server, and returns when it listens.
    pub fn start_server(&self) -> Result<()> {
        self.start_slow_server(Duration::ZERO)
    }
    /// The same, of one that answers each connection so long after it has accepted it.
    pub fn start_slow_server(&self, delay: Duration) -> Result<()> {
        let name = self.server();
        let program = self.lab.programs.find("isthmus-lab")?;
        let mut command = self.place().background(&self.lab.programs, &program)?;
        command.arg("serve").arg("--pod").arg(self.name());
        for (port, service) in &self.state.ports {
            command.arg("--port").arg(format!("{port}={service}"));
        }
        command.arg("--delay-ms").arg(delay.as_millis().to_string());
        let log = self.lab.log(&name);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(open_log(&log)?);
        let mut child = command.spawn().context("cannot start a server")?;
        let mut line = String::new();
        BufReader::new(
            child
                .stdout
                .take()
                .context("a server without a standard output")?,
        )
        .read_line(&mut line)?;
        let process = Process::adopt(&name, child, log.clone());
        lock(&self.lab.processes).insert(name.clone(), process);
        ensure!(
            line == "listening\n",
            "{name} does not listen; {}",
            tail(&log, 5)
        );
        Ok(())
    }
    /// `kill -9` of the server: its port refuses from now on.
    pub fn kill_server(&self) -> Result<()> {
        self.lab.kill(&self.server())
    }
    /// Sends a signal to the server, which goes on living.
    pub fn signal_server(&self, signal: Signal) -> Result<()> {
        let processes = lock(&self.lab.processes);
        let name = self.server();
        let server = processes.get(&name);
        let pid = server.with_context(|| format!("no {name}"))?.pid();
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
    }
}

/// What the cluster is told of the pod.
impl Pod<'_> {
    /// The pod's file among the cluster's manifests.
    #[must_use]
    pub fn manifest(&self) -> String {
        format!("pod-{}.yaml", self.state.plan.name)
    }
    /// Writes the pod's manifest.
    pub fn declare(&self, status: PodStatus) -> Result<()> {
        let PodState {
            plan,
            namespace,
            labels,
            ..
        } = &self.state;
        let cluster = self.lab.cluster(&plan.cluster)?;
        cluster.manifests().write_objects(
            &self.manifest(),
            &[pod_object(plan, namespace, labels, status)],
        )
    }
    /// Removes the pod's manifest. Its server lives on.
    pub fn withdraw(&self) -> Result<()> {
        self.lab
            .cluster(&self.state.plan.cluster)?
            .manifests()
            .remove(&self.manifest())
    }
    /// Ends the pod altogether: veth, manifest, processes, cgroup and namespace. The veth goes first and at once, so that
    /// nobody hears how the rest ends: no port refuses, no connection is reset.
    pub fn remove(self) -> Result<()> {
        network::unplug_pod(&self.state.plan)?;
        // A pod that was never declared, or was withdrawn, has no manifest.
        let _ = self.withdraw();
        let cgroup = self.place().cgroup;
        cgroup.kill()?;
        cgroup.remove()?;
        network::remove_pod(&self.state.plan)?;
        lock(&self.lab.processes).remove(&self.server());
        lock(&self.lab.pods).remove(&self.name());
        Ok(())
    }
}

/// What a client in the pod does.
impl Pod<'_> {
    /// Does what `behaviour` says `connects` times, or a few more, to all targets in turn, and tells what came of it.
    pub fn hostile(
        &self,
        behaviour: Behaviour,
        targets: &[SocketAddr],
        connects: u64,
        hold: Duration,
    ) -> Result<Account> {
        let program = self.lab.programs.find("isthmus-lab")?;
        let mut command = self.place().background(&self.lab.programs, &program)?;
        command.arg("hostile");
        for target in targets {
            command.arg("--target").arg(target.to_string());
        }
        command.args(["--behaviour", &behaviour.argument()]);
        command.arg("--connects").arg(connects.to_string());
        command.arg("--hold-ms").arg(hold.as_millis().to_string());
        let said = run(&mut command)?;
        let account: Account = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(account.balances(), "{account:?}");
        Ok(account)
    }
    /// Opens a UDP socket for a long flow; connected or not.
    pub fn flow(&self, target: SocketAddr, connected: bool) -> Result<Flow> {
        let program = self.lab.programs.find("isthmus-lab")?;
        let command = self.place().background(&self.lab.programs, &program)?;
        Flow::start(command, target, connected)
    }
    /// Begins a long flow to a service that [`crate::LongServer`]s serve.
    pub fn long_flow(&self, target: SocketAddr, kind: FlowKind) -> Result<LongFlow> {
        let program = self.lab.programs.find("isthmus-lab")?;
        let command = self.place().background(&self.lab.programs, &program)?;
        LongFlow::start(command, target, kind)
    }
    /// Starts a client; it sends nothing before [`Traffic::rate`].
    pub fn traffic(&self, requests: &Requests) -> Result<Traffic> {
        let program = self.lab.programs.find("isthmus-lab")?;
        let mut command = self.place().background(&self.lab.programs, &program)?;
        requests.arguments(&mut command);
        let name = format!("client {}", self.name());
        Traffic::start(&name, command, self.lab.log(&name))
    }
}
