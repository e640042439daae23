//! The task that owns a mesh server's state: everybody else sends it commands, and reads views.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use isthmus_core::mesh::{
    Cluster, ConsumerHello, Epoch, Fault, Guard, Hub, HubSettings, SavedHub, Sequenced, Terms,
    Trouble, TroubleSource, View,
};
use isthmus_core::model::{Batch, ClusterId, ClusterName};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::server::Fill;
use crate::statefile::{self, Loaded, Saver, SetAside, StateError};

/// Commands that wait. Whoever sends more waits too.
const QUEUE: usize = 256;
/// Views are made at least so often.
const TICK: Duration = Duration::from_millis(250);
/// How old the times of last words in the state file may be.
const SAVE_AGE: Duration = Duration::from_secs(30);

/// Of the state file.
pub const KIND: &str = "mesh";

#[derive(Debug)]
enum Command {
    Publish(Batch),
    Links {
        wanted: BTreeMap<ClusterName, Terms>,
        complete: bool,
    },
    Troubles(TroubleSource, Vec<Trouble>),
    Dial {
        name: ClusterName,
        endpoint: String,
    },
    Open {
        name: ClusterName,
        hello: oneshot::Sender<Option<ConsumerHello>>,
    },
    Receive {
        name: ClusterName,
        said: Sequenced,
        verdict: oneshot::Sender<Result<Option<ClusterId>, Fault>>,
    },
    Close {
        name: ClusterName,
        error: String,
        refused: bool,
    },
    Admit {
        hello: ConsumerHello,
        verdict: oneshot::Sender<Result<(), Fault>>,
    },
    Leave(ConsumerHello),
}

/// Who watches, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audience {
    pub agents: usize,
    pub mesh_servers: usize,
    /// Our own source's first list is complete.
    pub complete: bool,
}

/// A way to the hub. Cheap to clone; the hub ends when its shutdown token is cancelled.
#[derive(Clone, Debug)]
pub struct HubHandle {
    own: Cluster,
    commands: mpsc::Sender<Command>,
    views: watch::Receiver<View>,
    audience: watch::Receiver<Audience>,
}

#[derive(Clone, Debug)]
pub struct HubConfig {
    pub own: Cluster,
    pub node: String,
    pub heartbeat: Duration,
    /// `--quarantine-share`, `--quarantine-time`.
    pub guard: Guard,
    /// `--endpoint-cidrs`.
    pub cidrs: Vec<IpNet>,
    pub state_dir: PathBuf,
}

/// Reads the state file and starts. The task ends after `shutdown`, with the last state written.
///
/// # Errors
/// The state directory cannot be used.
pub fn spawn(
    config: HubConfig,
    shutdown: CancellationToken,
) -> Result<(HubHandle, JoinHandle<()>), StateError> {
    let path = config.state_dir.join("mesh.state");
    let fresh = || SavedHub::empty(Epoch(rand::random_range(1..=u64::MAX)));
    let mut set_aside = None;
    let saved = match statefile::load::<SavedHub>(&path, KIND)? {
        Loaded::Good(saved) => saved,
        Loaded::Missing => fresh(),
        Loaded::Bad(bad) => {
            tracing::error!(problem = bad.problem, aside = %bad.aside.display(), "state file set aside; peers list their rows anew");
            set_aside = Some(bad);
            fresh()
        }
    };
    // An epoch that could not be kept would change with every start: better no start.
    statefile::store(&path, KIND, &saved)?;
    let now = Instant::now();
    let settings = HubSettings {
        own: config.own.clone(),
        heartbeat: config.heartbeat,
        guard: config.guard,
        cidrs: config.cidrs,
        seed: rand::random(),
    };
    let mut hub = Hub::new(settings, saved, now, SystemTime::now());
    let (commands, queue) = mpsc::channel(QUEUE);
    let (view_sender, views) = watch::channel(hub.view(now));
    let (audience_sender, audience) = watch::channel(Audience::default());
    let handle = HubHandle {
        own: config.own,
        commands,
        views,
        audience,
    };
    let task = Task {
        hub,
        node: config.node,
        queue,
        views: view_sender,
        audience: audience_sender,
        saver: Saver::spawn(path, KIND),
        set_aside,
    };
    Ok((handle, tokio::spawn(task.run(shutdown))))
}

struct Task {
    hub: Hub,
    node: String,
    queue: mpsc::Receiver<Command>,
    views: watch::Sender<View>,
    audience: watch::Sender<Audience>,
    saver: Saver<SavedHub>,
    set_aside: Option<SetAside>,
}

impl Task {
    async fn run(mut self, shutdown: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut saved = Instant::now();
        let mut unsaved = self.saver.failure();
        self.look_at_state(saved);
        loop {
            let ticked = tokio::select! {
                () = shutdown.cancelled() => break,
                command = self.queue.recv() => match command {
                    Some(command) => {
                        self.obey(command);
                        // One view for all that came at once.
                        for _ in 0..QUEUE {
                            let Ok(command) = self.queue.try_recv() else { break };
                            self.obey(command);
                        }
                        false
                    }
                    None => break,
                },
                Ok(()) = unsaved.changed() => {
                    self.look_at_state(Instant::now());
                    false
                }
                _ = tick.tick() => true,
            };
            let now = Instant::now();
            if ticked {
                self.hub.tick(now);
            }
            for notice in self.hub.take_notices() {
                tracing::warn!("{notice}");
            }
            let news = self.hub.has_news();
            if news || ticked {
                self.views.send_replace(self.hub.view(now));
                let audience = Audience {
                    agents: self.hub.agents(),
                    mesh_servers: self.hub.watching(),
                    complete: self.hub.is_complete(),
                };
                self.audience
                    .send_if_modified(|old| std::mem::replace(old, audience) != audience);
            }
            if now - saved >= SAVE_AGE {
                self.look_at_state(now);
            }
            if news || now - saved >= SAVE_AGE {
                saved = now;
                self.saver.put(self.hub.save(now, SystemTime::now()));
            }
        }
        self.saver
            .put(self.hub.save(Instant::now(), SystemTime::now()));
        self.saver.finish().await;
    }

    /// Is the state file that was set aside still there, and is the one in use written?
    fn look_at_state(&mut self, now: Instant) {
        let meanwhile = "Peers list their rows anew, and this cluster has another epoch.";
        let set_aside = self.set_aside.as_ref();
        let set_aside = set_aside.and_then(|bad| bad.trouble(meanwhile));
        if set_aside.is_none() {
            self.set_aside = None;
        }
        let unsaved = self.saver.trouble(
            "What it holds is older than what is known: after a restart, rows and history since then are asked for again.",
        );
        let found = set_aside.into_iter().chain(unsaved).collect();
        self.hub.set_troubles(TroubleSource::State, found, now);
    }

    fn obey(&mut self, command: Command) {
        let (hub, now) = (&mut self.hub, Instant::now());
        // Whoever asked and did not wait for the answer is gone, and says so by itself.
        match command {
            Command::Publish(batch) => hub.publish(&batch, now),
            Command::Links { wanted, complete } => hub.set_links(&wanted, complete, now),
            Command::Troubles(source, found) => hub.set_troubles(source, found, now),
            Command::Dial { name, endpoint } => hub.dial(&name, &endpoint),
            Command::Open { name, hello } => drop(hello.send(hub.open(&name, &self.node))),
            Command::Receive {
                name,
                said,
                verdict,
            } => drop(verdict.send(hub.receive(&name, said, now))),
            Command::Close {
                name,
                error,
                refused,
            } => hub.close(&name, error, refused, now),
            Command::Admit { hello, verdict } => drop(verdict.send(hub.admit(&hello))),
            Command::Leave(hello) => hub.leave(&hello),
        }
    }
}

/// Every call returns at once or as soon as the hub has room; after the hub's end it does nothing.
impl HubHandle {
    #[must_use]
    pub fn own(&self) -> &Cluster {
        &self.own
    }

    #[must_use]
    pub fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    #[must_use]
    pub fn audience(&self) -> watch::Receiver<Audience> {
        self.audience.clone()
    }

    /// Commands that wait.
    #[must_use]
    pub fn queue(&self) -> Fill {
        let capacity = self.commands.max_capacity();
        let used = capacity - self.commands.capacity();
        Fill { used, capacity }
    }

    async fn send(&self, command: Command) {
        let _ = self.commands.send(command).await; // After the end there is nothing to say.
    }

    pub async fn publish(&self, batch: Batch) {
        self.send(Command::Publish(batch)).await;
    }

    pub async fn set_links(&self, wanted: BTreeMap<ClusterName, Terms>, complete: bool) {
        self.send(Command::Links { wanted, complete }).await;
    }

    /// What is wrong on our side, as `source` sees it now.
    pub async fn set_troubles(&self, source: TroubleSource, found: Vec<Trouble>) {
        self.send(Command::Troubles(source, found)).await;
    }

    pub async fn dial(&self, name: ClusterName, endpoint: String) {
        self.send(Command::Dial { name, endpoint }).await;
    }

    pub async fn open(&self, name: ClusterName) -> Option<ConsumerHello> {
        let (hello, answer) = oneshot::channel();
        self.send(Command::Open { name, hello }).await;
        answer.await.ok().flatten()
    }

    /// `Some`: the peer is to be asked for a list of this cluster.
    ///
    /// # Errors
    /// The stream is to be closed.
    pub async fn receive(
        &self,
        name: ClusterName,
        said: Sequenced,
    ) -> Result<Option<ClusterId>, Fault> {
        let (verdict, answer) = oneshot::channel();
        self.send(Command::Receive {
            name,
            said,
            verdict,
        })
        .await;
        answer.await.unwrap_or(Err(Fault::Unlinked))
    }

    pub async fn close(&self, name: ClusterName, error: String, refused: bool) {
        self.send(Command::Close {
            name,
            error,
            refused,
        })
        .await;
    }

    /// Who is admitted has to [`Self::leave`]: do both in a task that nobody gives up between them.
    ///
    /// # Errors
    /// The consumer may not watch.
    pub async fn admit(&self, hello: ConsumerHello) -> Result<(), Fault> {
        let (verdict, answer) = oneshot::channel();
        self.send(Command::Admit { hello, verdict }).await;
        answer.await.unwrap_or(Err(Fault::Unlinked))
    }

    pub async fn leave(&self, hello: ConsumerHello) {
        self.send(Command::Leave(hello)).await;
    }
}
