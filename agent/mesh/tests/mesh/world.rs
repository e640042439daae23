//! Clusters on loopback. Times are half of the defaults: shorter ones make a busy machine look like a silent peer.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use isthmus_core::mesh::{
    Cluster, FeedEvent, Guard, LinkState, PeerStatus, PeerView, Position, Rows,
};
use isthmus_core::model::{
    Affinity, Batch, Condition, EndpointPort, EndpointRow, ObjectName, PortRow, Protocol,
    RowChange, ServiceRow, ServiceRules,
};
use isthmus_mesh::certs;
use isthmus_mesh::config::TlsPaths;
use isthmus_mesh::feed::{self, FeedConfig, MeshStatus};
use isthmus_mesh::hub::{self, HubConfig, HubHandle};
use isthmus_mesh::links::{self, Links};
use isthmus_mesh::server::{self, Listen, Served};
use isthmus_mesh::tls::Tls;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);
pub(crate) const GUARD: Guard = Guard {
    percent: 50,
    grace: Duration::from_secs(10),
};
pub(crate) const STALE: Duration = Duration::from_secs(2);
pub(crate) const MESH_NAME: &str = "mesh";
/// For conditions that hold sooner or later. Long, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn cluster(name: &str, id: u16) -> Cluster {
    Cluster {
        name: name.parse().unwrap(),
        id: id.try_into().unwrap(),
    }
}

pub(crate) fn service(name: &str) -> RowChange {
    RowChange::Service(Arc::new(ServiceRow {
        name: ObjectName::new("production", name),
        addresses: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![PortRow {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        global: true,
        shared: true,
        affinity: Affinity::Local,
        rules: ServiceRules::default(),
    }))
}

pub(crate) fn endpoint(service: &str, number: u8) -> RowChange {
    endpoint_at(service, 0x0a00_0000 + u32::from(number))
}

pub(crate) fn endpoint_at(service: &str, address: u32) -> RowChange {
    RowChange::Endpoint(Arc::new(EndpointRow {
        service: ObjectName::new("production", service),
        address: Ipv4Addr::from_bits(address).into(),
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        condition: Condition::Ready,
        reason: "".into(),
        node: "".into(),
        zone: "".into(),
    }))
}

pub(crate) fn rows(endpoints: u8) -> Vec<RowChange> {
    let mut rows = vec![service("backend")];
    rows.extend((1..=endpoints).map(|n| endpoint("backend", n)));
    rows
}

pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) ca: PathBuf,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let ca = directory.path().join("ca");
        Self { directory, ca }
    }

    pub(crate) async fn mesh(&self, name: &str, id: u16) -> Mesh {
        self.mesh_at(name, id, name, &[]).await
    }

    /// A mesh server with files of its own, in `home`, that announces `cidrs`.
    pub(crate) async fn mesh_at(&self, name: &str, id: u16, home: &str, cidrs: &[&str]) -> Mesh {
        let cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let home = self.directory.path().join(home);
        let certs = home.join("certs");
        certs::issue(&name.parse().unwrap(), &certs, Some(&self.ca)).unwrap();
        Mesh::start(
            cluster(name, id),
            home,
            certs,
            cidrs,
            SocketAddr::from(([127, 0, 0, 1], 0)),
        )
        .await
    }

    pub(crate) fn agent_config(&self, mesh: &Mesh, name: &str, id: u16) -> FeedConfig {
        FeedConfig {
            server: mesh.address.to_string().parse().unwrap(),
            tls: Some(TlsPaths {
                ca: mesh.certs.join("ca.crt"),
                cert: mesh.certs.join("agent.crt"),
                key: mesh.certs.join("agent.key"),
            }),
            cluster: cluster(name, id),
            node: format!("{name}-1"),
            stale_after: STALE,
            ttl: Duration::from_secs(300),
            state_dir: mesh.home.join("agent"),
        }
    }

    pub(crate) async fn agent(&self, mesh: &Mesh, name: &str, id: u16) -> Agent {
        Agent::new(self.agent_config(mesh, name, id))
    }
}

pub(crate) fn paths(certs: &Path, who: &str) -> TlsPaths {
    let file = |end: &str| certs.join(format!("{who}.{end}"));
    TlsPaths {
        ca: certs.join("ca.crt"),
        cert: file("crt"),
        key: file("key"),
    }
}

/// A task that writes in the world's directory: it ends first, or it would make that again.
struct Task {
    handle: JoinHandle<()>,
    stop: CancellationToken,
}

impl Task {
    async fn end(&mut self) {
        self.stop.cancel();
        (&mut self.handle).await.unwrap();
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop.cancel();
        let deadline = Instant::now() + DEADLINE;
        while !self.handle.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A mesh server, in this process.
pub(crate) struct Mesh {
    own: Cluster,
    pub(crate) home: PathBuf,
    pub(crate) certs: PathBuf,
    cidrs: Vec<IpNet>,
    pub(crate) links: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) hub: HubHandle,
    pub(crate) served: Arc<Served>,
    serving: Task,
    keeper: Task,
    /// After those that tell it something.
    hub_task: Task,
}

impl Mesh {
    async fn start(
        own: Cluster,
        home: PathBuf,
        certs: PathBuf,
        cidrs: Vec<IpNet>,
        address: SocketAddr,
    ) -> Self {
        let (links, socket) = (home.join("links"), home.join("mesh.sock"));
        fs::create_dir_all(&links).unwrap();
        let (stop, hub_stop) = (CancellationToken::new(), CancellationToken::new());
        let tls = paths(&certs, "mesh");
        let listen = Listen::default()
            .tcp(address, Arc::new(Tls::new(tls.clone())))
            .await
            .unwrap();
        let listen = listen.unix(&socket).unwrap();
        let address = listen.address().unwrap();
        let config = HubConfig {
            own: own.clone(),
            node: "test".to_owned(),
            heartbeat: HEARTBEAT,
            guard: GUARD,
            cidrs: cidrs.clone(),
            state_dir: home.join("state"),
        };
        let (hub, hub_task) = hub::spawn(config, hub_stop.clone()).unwrap();
        let directory = Links::new(links.clone(), own.name.clone(), Some(tls));
        let keeper = links::spawn(directory, hub.clone(), stop.clone());
        let served = Arc::new(Served::default());
        let serving = server::serve(listen, hub.clone(), served.clone(), stop.child_token());
        let serving = tokio::spawn(async move { serving.await.unwrap() });
        let task = |handle, stop: &CancellationToken| Task {
            handle,
            stop: stop.clone(),
        };
        Self {
            own,
            home,
            certs,
            cidrs,
            links,
            socket,
            address,
            hub,
            served,
            serving: task(serving, &stop),
            keeper: task(keeper, &stop),
            hub_task: task(hub_task, &hub_stop),
        }
    }

    pub(crate) async fn publish(&self, changes: Vec<RowChange>) {
        self.hub
            .publish(Batch {
                changes,
                complete: true,
            })
            .await;
    }

    pub(crate) fn link(&self, name: &str, address: SocketAddr, id: Option<u16>) {
        let id = id.map(|id| format!("id: {id}\n  ")).unwrap_or_default();
        self.write_link(name, format!("{id}endpoints: [\"{address}\"]"));
    }

    /// With more in its spec.
    pub(crate) fn link_terms(&self, name: &str, address: SocketAddr, terms: &str) {
        self.write_link(name, format!("endpoints: [\"{address}\"]\n  {terms}"));
    }

    /// With several endpoints, tried in turn.
    pub(crate) fn link_all(&self, name: &str, addresses: &[SocketAddr]) {
        let quoted: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
        self.write_link(name, format!("endpoints: [{}]", quoted.join(", ")));
    }

    pub(crate) fn link_with(&self, name: &str, address: SocketAddr, ca: &Path, certs: &Path) {
        let (ca, cert, key) = (ca.display(), certs.join("mesh.crt"), certs.join("mesh.key"));
        let tls = format!(
            "tls: {{ca: {ca}, cert: {}, key: {}}}",
            cert.display(),
            key.display()
        );
        self.write_link(name, format!("endpoints: [\"{address}\"]\n  {tls}"));
    }

    fn write_link(&self, name: &str, spec: String) {
        let head = "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: ClusterLink";
        let beside = self.links.join(format!(".{name}"));
        fs::write(
            &beside,
            format!("{head}\nmetadata: {{name: {name}}}\nspec:\n  {spec}\n"),
        )
        .unwrap();
        fs::rename(beside, self.links.join(format!("{name}.yaml"))).unwrap();
    }

    fn peer(&self, name: &str) -> Option<PeerView> {
        let view = self.hub.views().borrow().clone();
        view.peers
            .iter()
            .find(|peer| peer.name.as_str() == name)
            .cloned()
    }

    /// Of what it tells its peers.
    pub(crate) fn position(&self) -> Option<Position> {
        self.hub.views().borrow().own.ledger.rows().position()
    }

    /// Of what it holds of a peer.
    pub(crate) fn position_of(&self, name: &str) -> Option<Position> {
        let view = self.hub.views().borrow().clone();
        let mut clusters = view.clusters.values();
        let cluster = clusters.find(|cluster| cluster.cluster.name.as_str() == name)?;
        cluster.ledger.rows().position()
    }

    pub(crate) fn is_connected(&self, name: &str) -> bool {
        self.peer(name)
            .is_some_and(|peer| peer.state == LinkState::Connected)
    }

    pub(crate) fn error(&self, name: &str) -> String {
        self.peer(name)
            .and_then(|peer| peer.last_error)
            .map(|(words, _)| words)
            .unwrap_or_default()
    }

    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut views = self.hub.views();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while !holds(self) {
            let changed = tokio::time::timeout_at(deadline, views.changed()).await;
            assert!(
                changed.is_ok(),
                "{what} did not happen in {DEADLINE:?}: {:?}",
                views.borrow().peers
            );
        }
    }

    pub(crate) async fn until_connected(&self, name: &str) {
        self.until(&format!("{name} is connected"), |mesh| {
            mesh.is_connected(name)
        })
        .await;
    }

    /// Until the link is refused; why.
    pub(crate) async fn until_refused(&self, name: &str) -> String {
        let refused = |mesh: &Self| {
            mesh.peer(name)
                .is_some_and(|peer| peer.state == LinkState::Refused)
        };
        self.until(&format!("{name} is refused"), refused).await;
        self.error(name)
    }

    pub(crate) async fn stop(mut self) {
        for task in [&mut self.serving, &mut self.keeper, &mut self.hub_task] {
            task.end().await;
        }
    }

    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|| {}).await
    }

    /// With something that happens while it is down.
    pub(crate) async fn restart_after(self, meanwhile: impl FnOnce()) -> Self {
        let (own, home, certs, cidrs, address) = (
            self.own.clone(),
            self.home.clone(),
            self.certs.clone(),
            self.cidrs.clone(),
            self.address,
        );
        self.stop().await;
        meanwhile();
        Self::start(own, home, certs, cidrs, address).await
    }
}

/// A feed, and a store that does what it says.
pub(crate) struct Agent {
    receiver: mpsc::Receiver<FeedEvent>,
    statuses: watch::Receiver<Arc<MeshStatus>>,
    task: Task,
    held: BTreeMap<String, (Rows, bool, bool)>,
    pub(crate) events: Vec<FeedEvent>,
    /// Changes of rows that the feed told.
    pub(crate) rows_told: usize,
}

impl Agent {
    pub(crate) fn new(config: FeedConfig) -> Self {
        let stop = CancellationToken::new();
        let running = feed::spawn(config, stop.clone());
        Self {
            receiver: running.events,
            statuses: running.status,
            task: Task {
                handle: running.task,
                stop,
            },
            held: BTreeMap::new(),
            events: Vec::new(),
            rows_told: 0,
        }
    }

    pub(crate) fn status(&self) -> MeshStatus {
        self.statuses.borrow().as_ref().clone()
    }

    pub(crate) fn peer(&self, name: &str) -> PeerStatus {
        let peers = self.status().feed.peers;
        peers
            .into_iter()
            .find(|peer| peer.name.as_str() == name)
            .expect("a linked peer")
    }

    /// Services and endpoints.
    pub(crate) fn held(&self, name: &str) -> Option<(usize, usize)> {
        self.held
            .get(name)
            .map(|(rows, ..)| (rows.services(), rows.endpoints()))
    }

    pub(crate) fn stale(&self, name: &str) -> bool {
        self.held.get(name).is_some_and(|(_, stale, _)| *stale)
    }

    pub(crate) fn complete(&self, name: &str) -> bool {
        self.held.get(name).is_some_and(|(.., complete)| *complete)
    }

    fn apply(&mut self, event: FeedEvent) {
        match &event {
            FeedEvent::Peer { cluster, stale, .. } => {
                self.held.entry(cluster.name.to_string()).or_default().1 = *stale;
            }
            FeedEvent::Rows { cluster, batch } => {
                let (rows, _, complete) = self
                    .held
                    .get_mut(cluster.name.as_str())
                    .expect("a peer comes before its rows");
                for change in &batch.changes {
                    rows.apply(change);
                }
                self.rows_told += batch.changes.len();
                *complete |= batch.complete;
            }
            FeedEvent::Dropped { cluster, .. } => drop(self.held.remove(cluster.name.as_str())),
            FeedEvent::Linked(_) => {}
        }
        self.events.push(event);
    }

    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "{what} did not happen in {DEADLINE:?}: {:#?}",
                self.status()
            );
            tokio::select! {
                event = self.receiver.recv() => {
                    let event = event.expect("the feed lives");
                    self.apply(event);
                }
                changed = self.statuses.changed() => changed.unwrap(),
                () = tokio::time::sleep(HEARTBEAT) => {}
            }
        }
    }

    /// Until its state is written.
    pub(crate) async fn stop(mut self) {
        self.task.stop.cancel();
        while let Some(event) = self.receiver.recv().await {
            self.apply(event);
        }
        self.task.end().await;
    }

    /// Until its state is written, with nobody left who takes events.
    pub(crate) async fn leave(mut self) {
        drop(self.receiver);
        self.task.end().await;
    }
}
