//! A running lab, and the handles that scenarios hold: clusters, nodes, pods and wires.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroup;
use crate::host::Host;
use crate::layout::{ClusterPlan, NodePlan, PodPlan, state_dir};
use crate::manifests::{Manifests, node_object, ports_selecting};
use crate::netns::Netns;
use crate::network;
use crate::pod::{Pod, PodState};
use crate::process::{Place, Process, Programs, tail};
use crate::spec::{ClusterSpec, LabName, LabSpec, PodSpec};
use crate::state::{Record, Turn, demolish, sweep};
use crate::warden::Warden;
use crate::wire::Wire;

/// How long a run waits for the one before it.
const TURN: Duration = Duration::from_secs(900);

/// A world. Whoever made it owns it: dropping it removes all of it, and so does the owner's death, of whatever kind.
#[derive(Debug)]
pub struct Lab {
    pub(crate) name: LabName,
    pub(crate) host: Host,
    pub(crate) programs: Programs,
    clusters: Vec<ClusterPlan>,
    links: Vec<(String, String)>,
    pub(crate) pods: Mutex<BTreeMap<String, PodState>>,
    /// By what they are and where: `agent east-1`, `mesh east`, `server east/backend-1`.
    pub(crate) processes: Mutex<BTreeMap<String, Process>>,
    owned: Option<Owned>,
}

#[derive(Debug)]
struct Owned {
    warden: Warden,
    _turn: Turn,
}

impl Lab {
    /// Builds the world of a lab file: namespaces, wires, pods, their servers and manifests. No agent or mesh server
    /// runs yet. What killed runs left is removed first.
    pub fn build(name: &str, spec: &LabSpec, programs: Programs) -> Result<Self> {
        let name: LabName = name.parse()?;
        let host = Host::prepare()?;
        let turn = Turn::take(TURN)?;
        sweep(&host, &turn)?;
        if Record::read(&name).is_ok() {
            bail!("there is a lab {name} already: `cargo xtask lab down {name}` removes it");
        }
        std::fs::create_dir_all(state_dir(&name))?;
        let warden = Warden::post(&programs, &name)?;
        let clusters = (1..)
            .zip(&spec.clusters)
            .map(|(n, c)| ClusterPlan::new(&name, n, c))
            .collect();
        let links = spec.links.iter().map(|l| l.between.clone()).collect();
        let lab = Self {
            name,
            host,
            programs,
            clusters,
            links,
            pods: Mutex::default(),
            processes: Mutex::default(),
            owned: Some(Owned {
                warden,
                _turn: turn,
            }),
        };
        // From here on a failure drops the lab, and with it all that was made.
        lab.furnish(spec)?;
        Ok(lab)
    }

    fn furnish(&self, spec: &LabSpec) -> Result<()> {
        network::build(&self.name, &self.clusters)?;
        self.lay_wires(spec)?;
        for (plan, cluster) in self.clusters.iter().zip(&spec.clusters) {
            self.furnish_cluster(plan, cluster)
                .with_context(|| format!("cluster {}", plan.name))?;
        }
        self.record(false)
    }

    /// A wire for every pair: without a link in the file it is cut for good.
    fn lay_wires(&self, spec: &LabSpec) -> Result<()> {
        for (i, a) in self.clusters.iter().enumerate() {
            for b in &self.clusters[i + 1..] {
                let wire = Wire::lay(a, b)?;
                let joins = |(x, y): (&str, &str)| {
                    (x == a.name && y == b.name) || (x == b.name && y == a.name)
                };
                match spec
                    .links
                    .iter()
                    .find(|l| joins((l.between.0.as_str(), l.between.1.as_str())))
                {
                    None => wire.cut()?,
                    Some(link) if link.loss > 0.0 => wire.lose(link.loss)?,
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    fn furnish_cluster(&self, plan: &ClusterPlan, spec: &ClusterSpec) -> Result<()> {
        for node in &plan.nodes {
            for inner in ["agent", "mesh", "shell", "pods"] {
                Cgroup::create(self.host.cgroup2.join(node.cgroup()).join(inner))?;
            }
            std::fs::create_dir_all(node.dir())?;
        }
        std::fs::create_dir_all(plan.manifests())?;
        std::fs::create_dir_all(plan.dir().join("links"))?;
        let manifests = Manifests::new(plan.manifests());
        if let Some(region) = &spec.region {
            let nodes: Vec<_> = plan.nodes.iter().map(|n| node_object(n, region)).collect();
            manifests.write_objects("nodes.yaml", &nodes)?;
        }
        if let Some(from) = &spec.manifests {
            manifests.copy_from(from)?;
        }
        let mut pods = Vec::new();
        for pod in &spec.pods {
            let ports = match (&pod.serves, &spec.manifests) {
                (Some(ports), _) => ports.clone(),
                (None, Some(from)) => ports_selecting(from, &pod.namespace, &pod.labels)?,
                (None, None) => BTreeMap::new(),
            };
            pods.extend(pod.names().map(|name| (name, pod.clone(), ports.clone())));
        }
        self.add_pods(plan, pods)
    }

    /// Makes pods, spread over the nodes in turn, starts their servers and declares them ready.
    fn add_pods(
        &self,
        cluster: &ClusterPlan,
        pods: Vec<(String, PodSpec, BTreeMap<u16, String>)>,
    ) -> Result<()> {
        let mut made = Vec::new();
        for (turn, (name, spec, ports)) in pods.into_iter().enumerate() {
            let node = &cluster.nodes[turn % cluster.nodes.len()];
            let plan = self.plan_pod(cluster, node, &name)?;
            Cgroup::create(self.host.cgroup2.join(plan.cgroup()))?;
            let state = PodState {
                plan,
                namespace: spec.namespace,
                labels: spec.labels,
                ports,
            };
            made.push(state.plan.clone());
            lock(&self.pods).insert(state.plan.full_name(), state);
        }
        network::add_pods(&made)?;
        for plan in &made {
            let pod = self.pod(&plan.full_name())?;
            if pod.serves() {
                pod.start_server()?;
                pod.declare(crate::manifests::PodStatus::Ready)?;
            }
        }
        Ok(())
    }

    /// The lowest number that no pod of the node has.
    fn plan_pod(&self, cluster: &ClusterPlan, node: &NodePlan, name: &str) -> Result<PodPlan> {
        let pods = lock(&self.pods);
        let full = format!("{}/{name}", cluster.name);
        if pods.contains_key(&full) {
            bail!("there is a pod {full} already");
        }
        let taken = |n: u8| {
            pods.values()
                .any(|p| p.plan.node == *node && p.plan.number == n)
        };
        let number = (1..=200)
            .find(|&n| !taken(n))
            .with_context(|| format!("node {} is full", node.name))?;
        Ok(node.pod(&cluster.name, name, number))
    }

    /// Reaches a lab that another process keeps.
    pub fn open(name: &str) -> Result<Self> {
        let name: LabName = name.parse()?;
        let record = Record::read(&name)?;
        let pods = record
            .pods
            .into_iter()
            .map(|p| (p.plan.full_name(), p))
            .collect();
        Ok(Self {
            name,
            host: Host::prepare()?,
            programs: Programs::in_dir(record.programs),
            clusters: record.clusters,
            links: record.links,
            pods: Mutex::new(pods),
            processes: Mutex::default(),
            owned: None,
        })
    }

    /// Lets the lab live on without an owner. `cargo xtask lab down` ends it.
    pub fn keep(mut self) -> Result<()> {
        self.record(true)?;
        match self.owned.take() {
            Some(owned) => owned.warden.dismiss(),
            None => Ok(()),
        }
    }

    /// Removes the lab and says so if that failed; dropping it does the same in silence.
    pub fn down(mut self) -> Result<()> {
        self.leave_nothing()
    }

    fn leave_nothing(&mut self) -> Result<()> {
        let Some(owned) = self.owned.take() else {
            return Ok(());
        };
        demolish(&self.host, &self.name)?;
        lock(&self.processes).clear();
        owned.warden.dismiss()
    }

    fn record(&self, kept: bool) -> Result<()> {
        let record = Record {
            kept,
            clusters: self.clusters.clone(),
            pods: lock(&self.pods).values().cloned().collect(),
            links: self.links.clone(),
            programs: self.programs.dir().to_owned(),
        };
        record.write(&self.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && self.owned.is_some() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), self.last_words().as_bytes());
        }
        // If it fails the warden tries again.
        let _ = self.leave_nothing();
    }
}

/// Looking around.
impl Lab {
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }
    pub fn cluster(&self, name: &str) -> Result<Cluster<'_>> {
        let plan = self.clusters.iter().find(|c| c.name == name);
        let plan = plan.with_context(|| format!("lab {} has no cluster {name}", self.name))?;
        Ok(Cluster { lab: self, plan })
    }
    pub fn clusters(&self) -> impl Iterator<Item = Cluster<'_>> {
        self.clusters.iter().map(|plan| Cluster { lab: self, plan })
    }
    /// By its name, `east-1`.
    pub fn node(&self, name: &str) -> Result<Node<'_>> {
        let found = self
            .clusters()
            .find_map(|c| c.nodes().find(|n| n.plan.name == name));
        found.with_context(|| format!("lab {} has no node {name}", self.name))
    }
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        self.clusters().flat_map(|c| c.nodes().collect::<Vec<_>>())
    }
    /// By its full name, `east/backend-1`, or by its short one where no other cluster has it.
    pub fn pod(&self, name: &str) -> Result<Pod<'_>> {
        let pods = lock(&self.pods);
        let fits = |p: &&PodState| p.plan.full_name() == name || p.plan.name == name;
        let found: Vec<&PodState> = pods.values().filter(fits).collect();
        match found[..] {
            [pod] => Ok(Pod::new(self, pod.clone())),
            [] => bail!("lab {} has no pod {name}", self.name),
            _ => bail!(
                "lab {} has several pods {name}: say CLUSTER/{name}",
                self.name
            ),
        }
    }
    #[must_use]
    pub fn pods(&self) -> Vec<Pod<'_>> {
        lock(&self.pods)
            .values()
            .map(|p| Pod::new(self, p.clone()))
            .collect()
    }
    /// The wire between two clusters.
    pub fn wire(&self, a: &str, b: &str) -> Result<Wire> {
        Ok(Wire::between(self.cluster(a)?.plan, self.cluster(b)?.plan))
    }
    /// Pairs of clusters that the lab file links.
    #[must_use]
    pub fn links(&self) -> &[(String, String)] {
        &self.links
    }
    /// The ends of all logs, and what the agents serve, for the report of a failure.
    #[must_use]
    pub fn last_words(&self) -> String {
        let logs: std::collections::BTreeSet<PathBuf> = lock(&self.processes)
            .values()
            .map(|process| process.log().to_owned())
            .collect();
        let logs = logs.iter().map(|log| tail(log, 25) + "\n");
        logs.chain(self.nodes().map(|node| node.last_words()))
            .collect()
    }
    /// An error with the last words of the first process that ended by itself.
    pub fn expect_all_alive(&self) -> Result<()> {
        lock(&self.processes)
            .values_mut()
            .try_for_each(Process::expect_alive)
    }
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        state_dir(&self.name)
            .join("logs")
            .join(format!("{}.log", name.replace([' ', '/'], "-")))
    }
    /// Starts a process that the lab owns under `name`.
    pub(crate) fn spawn(&self, name: &str, command: Command) -> Result<()> {
        let process = Process::start(name, command, self.log(name))?;
        lock(&self.processes).insert(name.to_owned(), process);
        Ok(())
    }
    /// Does something with a process of the lab.
    pub(crate) fn with_process<T>(
        &self,
        name: &str,
        work: impl FnOnce(&mut Process) -> Result<T>,
    ) -> Result<T> {
        let mut processes = lock(&self.processes);
        work(
            processes
                .get_mut(name)
                .with_context(|| format!("{name} was not started"))?,
        )
    }
    /// `kill -9`.
    pub(crate) fn kill(&self, name: &str) -> Result<()> {
        self.with_process(name, Process::kill)?;
        lock(&self.processes).remove(name);
        Ok(())
    }
}

/// A cluster of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) plan: &'a ClusterPlan,
}

impl<'a> Cluster<'a> {
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.plan.name
    }
    #[must_use]
    pub fn plan(&self) -> &'a ClusterPlan {
        self.plan
    }
    #[must_use]
    pub fn manifests(&self) -> Manifests {
        Manifests::new(self.plan.manifests())
    }
    pub fn nodes(&self) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let lab = self.lab;
        self.plan.nodes.iter().map(move |plan| Node { lab, plan })
    }
    /// The node where the mesh server runs.
    #[must_use]
    pub fn first_node(&self) -> Node<'a> {
        Node {
            lab: self.lab,
            plan: &self.plan.nodes[0],
        }
    }
    /// Adds a pod on the cluster's first node, ready from the start if it serves anything.
    pub fn add_pod(&self, spec: PodSpec) -> Result<()> {
        let ports = spec.serves.clone().unwrap_or_default();
        self.lab
            .add_pods(self.plan, vec![(spec.name.clone(), spec, ports)])
    }
}

/// A node of a lab.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) plan: &'a NodePlan,
}

impl<'a> Node<'a> {
    #[must_use]
    pub fn name(&self) -> &'a str {
        &self.plan.name
    }
    #[must_use]
    pub fn plan(&self) -> &'a NodePlan {
        self.plan
    }
    #[must_use]
    pub fn netns(&self) -> Netns {
        Netns::new(self.plan.netns())
    }
    /// The cgroup of the node and all its pods: what its agent attaches to.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        self.lab.host.cgroup2.join(self.plan.cgroup())
    }
    /// Where a process of the node itself runs; `part` is `agent`, `mesh` or `shell`.
    pub(crate) fn place(&self, part: &str) -> Place {
        Place {
            netns: self.netns(),
            cgroup: Cgroup::new(self.cgroup().join(part)),
        }
    }
    #[must_use]
    pub fn cluster(&self) -> Cluster<'a> {
        Cluster {
            lab: self.lab,
            plan: &self.lab.clusters[usize::from(self.plan.cluster) - 1],
        }
    }
    /// Pids of what runs on the node itself; `part` is `agent`, `mesh` or `shell`.
    #[must_use]
    pub fn pids(&self, part: &str) -> Vec<u32> {
        let procs = std::fs::read_to_string(self.cgroup().join(part).join("cgroup.procs"));
        procs
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }
    /// A command in the node's own namespace and cgroup.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.place("shell")
            .command(&self.lab.programs, program.as_ref())
    }
    /// Packets to service addresses that the node saw untranslated.
    pub fn untranslated(&self) -> Result<u64> {
        network::untranslated(self.plan)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
