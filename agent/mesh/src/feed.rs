//! The agent's end of the stream from its own mesh server: what it says goes to the agent's store, what it is goes to
//! `clustermesh status`, and both outlive a restart.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use isthmus_core::mesh::{
    Age, Cluster, Fault, Feed, FeedEvent, FeedSettings, FeedStatus, FromServer, SavedFeed, Trouble,
    TroubleSource, Troubles,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::{MeshEndpoint, TlsPaths};
use crate::dial::{Failure, Stream, connect};
use crate::redial::{Redial, beats};
use crate::statefile::{self, Loaded, Saver, SetAside};
use crate::tls::{Certificate, Tls};

/// Events that wait for the agent.
const QUEUE: usize = 64;
/// Events beyond those; then the stream is not read until the agent has caught up.
const PENDING_MAX: usize = 64;
/// How old the times of last words in the state file may be.
const SAVE_AGE: Duration = Duration::from_secs(30);
/// The status is made anew at least so often.
const STATUS_AGE: Duration = Duration::from_secs(1);

/// The first wait before a connection is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Of the state file.
pub const KIND: &str = "peers";

#[derive(Clone, Debug)]
pub struct FeedConfig {
    /// `--mesh`.
    pub server: MeshEndpoint,
    /// Needed unless `server` is a unix socket.
    pub tls: Option<TlsPaths>,
    /// The agent's own cluster; the mesh server's must be the same.
    pub cluster: Cluster,
    pub node: String,
    /// `--peer-stale-after`.
    pub stale_after: Duration,
    /// `--cluster-ttl`.
    pub ttl: Duration,
    /// Holds `peers.state`.
    pub state_dir: PathBuf,
}

/// What `clustermesh status` shows.
#[derive(Clone, Debug)]
pub struct MeshStatus {
    /// `--mesh`.
    pub server: String,
    pub stale_after: Duration,
    pub ttl: Duration,
    pub feed: FeedStatus,
    /// The agent's own certificate; `None` on a unix socket, and if it cannot be read.
    pub certificate: Option<Certificate>,
    /// What is wrong with this agent's own files: certificates that cannot be read, a state file that was set aside or
    /// cannot be written.
    pub troubles: Arc<Vec<(Trouble, Age)>>,
}

/// A feed that runs.
#[derive(Debug)]
pub struct Running {
    /// Bounded: an agent that is slow slows the stream, and loses nothing.
    pub events: mpsc::Receiver<FeedEvent>,
    pub status: watch::Receiver<Arc<MeshStatus>>,
    /// Ends when the state file is written, after `shutdown` or when nobody takes events any more: only then may the
    /// process end.
    pub task: JoinHandle<()>,
}

/// Reads the state file, says its rows again, connects, and goes on until `shutdown`.
#[must_use]
pub fn spawn(config: FeedConfig, shutdown: CancellationToken) -> Running {
    let path = config.state_dir.join("peers.state");
    let mut set_aside = None;
    let saved = match statefile::load::<SavedFeed>(&path, KIND) {
        Ok(Loaded::Good(saved)) => saved,
        Ok(Loaded::Missing) => SavedFeed::default(),
        Ok(Loaded::Bad(bad)) => {
            tracing::error!(
                problem = bad.problem, aside = %bad.aside.display(),
                "state file set aside; remote backends are not known until the mesh server tells them"
            );
            set_aside = Some(StateFault::SetAside(bad));
            SavedFeed::default()
        }
        Err(error) => {
            tracing::error!(
                %error,
                "remote backends are not known until the mesh server tells them"
            );
            set_aside = Some(StateFault::Unreadable(error.to_string()));
            SavedFeed::default()
        }
    };
    let settings = FeedSettings {
        own: config.cluster.clone(),
        node: config.node.clone(),
        stale_after: config.stale_after,
        ttl: config.ttl,
    };
    let (feed, events) = Feed::new(settings, saved, Instant::now(), SystemTime::now());
    let tls = config
        .tls
        .clone()
        .filter(|_| !matches!(config.server, MeshEndpoint::Unix(_)))
        .map(Tls::new);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut own = Own {
        tls,
        set_aside,
        saver: Saver::spawn(path, KIND),
        troubles: Troubles::default(),
    };
    let now = Instant::now();
    let status = Arc::new(status(&config, &feed, &mut own, now));
    let (statuses, status_receiver) = watch::channel(status);
    let pending = events.into();
    let task = Task {
        config,
        feed,
        own,
        sender,
        pending,
        statuses,
        redial: Redial::new(RETRY),
        shown: now,
        saved: now,
    };
    Running {
        events: receiver,
        status: status_receiver,
        task: tokio::spawn(task.run(shutdown)),
    }
}

/// Why the state file was of no use.
enum StateFault {
    SetAside(SetAside),
    Unreadable(String),
}

impl StateFault {
    fn trouble(&self) -> Option<Trouble> {
        let meanwhile = "Remote backends were not known until the mesh server told them.";
        match self {
            Self::SetAside(bad) => bad.trouble(meanwhile),
            Self::Unreadable(error) => Some(Trouble {
                about: "state file".to_owned(),
                cause: format!("{error} {meanwhile}"),
                way_out: "Mend that, and restart the agent.".to_owned(),
            }),
        }
    }
}

/// What is wrong with the agent's own files.
struct Own {
    tls: Option<Tls>,
    set_aside: Option<StateFault>,
    saver: Saver<SavedFeed>,
    troubles: Troubles,
}

impl Own {
    /// Looks at the files now.
    fn look(&mut self, now: Instant) -> (Option<Certificate>, Arc<Vec<(Trouble, Age)>>) {
        let (certificate, problem) = self.tls.as_ref().map(Tls::status).unwrap_or_default();
        let of_certificate = problem.map(|cause| Trouble {
            about: "certificate".to_owned(),
            cause,
            way_out: "Mend the files of --tls-ca, --tls-cert and --tls-key; they are read again when they change."
                .to_owned(),
        });
        let set_aside = self.set_aside.as_ref().and_then(StateFault::trouble);
        let unsaved = self.saver.trouble(
            "What it holds is older than what is known, and after a restart it would be all that is.",
        );
        let of_state = set_aside.into_iter().chain(unsaved).collect();
        self.troubles.set(TroubleSource::State, of_state, now);
        let of_certificate = of_certificate.into_iter().collect();
        self.troubles
            .set(TroubleSource::Certificate, of_certificate, now);
        (certificate, self.troubles.shown())
    }
}

fn status(config: &FeedConfig, feed: &Feed, own: &mut Own, now: Instant) -> MeshStatus {
    let (certificate, troubles) = own.look(now);
    MeshStatus {
        server: config.server.to_string(),
        stale_after: config.stale_after,
        ttl: config.ttl,
        feed: feed.status(),
        certificate,
        troubles,
    }
}

struct Task {
    config: FeedConfig,
    feed: Feed,
    own: Own,
    sender: mpsc::Sender<FeedEvent>,
    pending: VecDeque<FeedEvent>,
    statuses: watch::Sender<Arc<MeshStatus>>,
    redial: Redial,
    shown: Instant,
    saved: Instant,
}

/// The agent does not take events any more.
struct AgentGone;

impl Task {
    async fn run(mut self, shutdown: CancellationToken) {
        // Shutdown and an agent that is gone end it alike.
        let _ = shutdown.run_until_cancelled(self.live()).await;
        let saver = self.own.saver;
        saver.put(self.feed.save(Instant::now(), SystemTime::now()));
        saver.finish().await;
    }

    /// Connects, again and again.
    async fn live(&mut self) -> AgentGone {
        loop {
            self.feed.dial();
            let failure = match self.attempt().await {
                Ok(failure) => failure,
                Err(gone) => return gone,
            };
            let now = Instant::now();
            let next = self.redial.fail(&failure, now);
            if let Some(again) = next.say {
                tracing::warn!(server = %self.config.server, error = failure.words, again, "the feed is not connected");
            }
            self.feed.close(failure.words, now);
            self.show(now);
            tokio::select! {
                () = sleep(next.wait) => {}
                gone = deliver(&self.sender, &mut self.pending) => return gone,
            }
        }
    }

    /// One connection's life.
    async fn attempt(&mut self) -> Result<Failure, AgentGone> {
        let (feed, config, tls) = (&mut self.feed, &self.config, self.own.tls.as_ref());
        let connected = async {
            let transport = connect(&config.server, tls, &config.cluster.name).await?;
            transport.watch(&feed.open(Instant::now())).await
        };
        let mut stream = tokio::select! {
            stream = connected => match stream {
                Ok(stream) => stream,
                Err(failure) => return Ok(failure),
            },
            gone = deliver(&self.sender, &mut self.pending) => return Err(gone),
        };
        let mut beat = beats(Duration::from_secs(1));
        loop {
            let room = self.pending.len() < PENDING_MAX;
            let deadline = self
                .feed
                .next_deadline()
                .unwrap_or_else(|| Instant::now() + STATUS_AGE);
            tokio::select! {
                // What the server said comes before the clock: if it was us who were stopped, its words wait here. What
                // others wait for comes before both.
                biased;
                gone = deliver(&self.sender, &mut self.pending) => return Err(gone),
                _ = beat.tick() => self.beat(&stream),
                said = stream.next(), if room => match said {
                    Ok(said) => {
                        if let FromServer::Hello(hello) = &said.message {
                            beat = beats(hello.heartbeat);
                            if self.redial.greet(Instant::now()) {
                                tracing::info!(server = %self.config.server, "the feed is connected");
                            }
                        }
                        if let Err(fault) = self.hear(said) {
                            return Ok(fault.into());
                        }
                    }
                    Err(failure) => return Ok(failure),
                },
                () = sleep_until(deadline.into()), if room => {
                    let now = Instant::now();
                    match self.feed.tick(now) {
                        Ok(events) => self.take(events, now),
                        Err(fault) => return Ok(self.explain(fault)),
                    }
                }
            }
        }
    }

    /// Which server was silent, and the way out.
    fn explain(&self, fault: Fault) -> Failure {
        match fault {
            Fault::Silent => Failure::silent(&self.config.server),
            other => other.into(),
        }
    }

    fn hear(&mut self, said: isthmus_core::mesh::Sequenced) -> Result<(), Fault> {
        let now = Instant::now();
        // Rows alone change counts, which can wait.
        let telling = matches!(
            said.message,
            FromServer::Hello(_) | FromServer::Peers { .. } | FromServer::Complete { .. }
        );
        let events = self.feed.receive(said, now)?;
        let standing = events
            .iter()
            .any(|event| !matches!(event, FeedEvent::Rows { .. }));
        if telling || standing || now - self.shown >= STATUS_AGE {
            self.show(now);
        }
        self.take(events, now);
        Ok(())
    }

    /// Lines events up for the agent, and saves what they changed.
    fn take(&mut self, events: Vec<FeedEvent>, now: Instant) {
        if !events.is_empty() || now - self.saved >= SAVE_AGE {
            self.saved = now;
            let saved = self.feed.save(now, SystemTime::now());
            self.own.saver.put(saved);
        }
        self.pending.extend(events);
    }

    fn beat(&mut self, stream: &Stream) {
        stream.beat();
        let now = Instant::now();
        if now - self.shown >= STATUS_AGE {
            self.show(now);
        }
    }

    fn show(&mut self, now: Instant) {
        self.shown = now;
        let status = status(&self.config, &self.feed, &mut self.own, now);
        self.statuses.send_replace(Arc::new(status));
    }
}

/// Hands events to the agent for as long as it is asked to; ends if nobody takes them any more.
async fn deliver(sender: &mpsc::Sender<FeedEvent>, pending: &mut VecDeque<FeedEvent>) -> AgentGone {
    loop {
        if pending.is_empty() {
            sender.closed().await;
            return AgentGone;
        }
        let Ok(permit) = sender.reserve().await else {
            return AgentGone;
        };
        if let Some(event) = pending.pop_front() {
            permit.send(event);
        }
    }
}
