//! The tasks that follow links: one each, for as long as the directory has it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_core::mesh::{Trouble, TroubleSource};
use isthmus_core::model::{ClusterName, Problem};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Links, Wanted};
use crate::hub::HubHandle;
use crate::link::{self, LinkSpec};
use crate::parts::panic_words;

const LOOK: Duration = Duration::from_millis(500);

/// Keeps a task for each link, as the directory says, until `shutdown`. What is wrong with the files is told to the hub.
#[must_use]
pub fn spawn(links: Links, hub: HubHandle, shutdown: CancellationToken) -> JoinHandle<()> {
    let keeper = Keeper {
        hub,
        shutdown,
        directory: links.directory.clone(),
        told: Vec::new(),
        wanted: BTreeMap::new(),
        running: BTreeMap::new(),
        tasks: JoinSet::new(),
    };
    tokio::spawn(keeper.run(links))
}

/// A file's problem, for those who do not see this host's log.
fn trouble(problem: &Problem, directory: &Path) -> Trouble {
    let Problem {
        place,
        field,
        message,
        ..
    } = problem;
    let at = if field.is_empty() {
        String::new()
    } else {
        format!("{field}: ")
    };
    let of_all = Path::new(place) == directory;
    Trouble {
        about: if of_all {
            "links".to_owned()
        } else {
            format!("link {place}")
        },
        cause: format!("{at}{message}."),
        way_out: if of_all {
            "Mend that on the mesh server's host: it looks again by itself.".to_owned()
        } else {
            format!(
                "Correct it in {}, on the mesh server's host: it is read again when it changes.",
                directory.display()
            )
        },
    }
}

/// A link that is being followed.
#[derive(Debug)]
struct Running {
    spec: Arc<LinkSpec>,
    stop: CancellationToken,
    task: Id,
}

struct Keeper {
    hub: HubHandle,
    shutdown: CancellationToken,
    directory: PathBuf,
    /// Problems that the log has.
    told: Vec<Problem>,
    wanted: BTreeMap<ClusterName, Arc<LinkSpec>>,
    running: BTreeMap<ClusterName, Running>,
    tasks: JoinSet<()>,
}

impl Keeper {
    async fn run(mut self, mut links: Links) {
        let mut rounds = interval(LOOK);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.note_end(ended).await;
                    continue;
                }
                _ = rounds.tick() => {}
            }
            // A directory that hangs does not hold up the end.
            let look = tokio::task::spawn_blocking(move || (links.look(), links));
            let Some(looked) = self.shutdown.run_until_cancelled(look).await else {
                break;
            };
            let (wanted, returned) = match looked {
                Ok(looked) => looked,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The runtime ends.
                Err(_) => return,
            };
            links = returned;
            if let Some(wanted) = wanted {
                self.want(wanted).await;
            }
            self.start_missing();
        }
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.note_end(ended).await;
        }
    }

    /// Takes over what the directory says.
    async fn want(&mut self, wanted: Wanted) {
        let directory = self.directory.display();
        if wanted.absent {
            tracing::info!(%directory, "there is no directory of links yet; it is waited for");
        }
        let news = wanted.problems.iter();
        for problem in news.filter(|problem| !self.told.contains(problem)) {
            tracing::error!("link {problem}");
        }
        let found = wanted.problems.iter();
        let found = found.map(|problem| trouble(problem, &self.directory));
        self.hub
            .set_troubles(TroubleSource::Links, found.collect())
            .await;
        self.told = wanted.problems;
        let mut led_elsewhere = Vec::new();
        self.running.retain(|name, running| {
            // A link that only allows more or less goes on; the hub holds its peer to that.
            let now = wanted.links.get(name);
            let stays = now.is_some_and(|now| now.leads_as(&running.spec));
            if !stays {
                running.stop.cancel();
                led_elsewhere.extend(now.map(|now| now.name.clone()));
            }
            stays
        });
        // Its stream is over: nobody should take it for one of the new way.
        for name in led_elsewhere {
            let words = "its link's file changed: it is connected anew".to_owned();
            self.hub.close(name, words, false).await;
        }
        let links = wanted.links.iter();
        let terms = links.map(|(name, spec)| (name.clone(), spec.terms.clone()));
        self.hub.set_links(terms.collect(), wanted.complete).await;
        self.wanted = wanted.links;
    }

    fn start_missing(&mut self) {
        for (name, spec) in &self.wanted {
            self.running.entry(name.clone()).or_insert_with(|| {
                let stop = self.shutdown.child_token();
                let work = link::run(spec.clone(), self.hub.clone(), stop.clone());
                let task = self.tasks.spawn(work).id();
                let spec = spec.clone();
                Running { spec, stop, task }
            });
        }
    }

    /// A link's task ends when it is told to. One that panics takes no other link with it: the peer shows the error, and
    /// the link starts anew with the next look.
    async fn note_end(&mut self, ended: Result<(Id, ()), JoinError>) {
        let Err(error) = ended else { return };
        let task = error.id();
        let words = format!("the link panicked: {}; it starts anew", panic_words(error));
        let found = self
            .running
            .iter()
            .find(|(_, running)| running.task == task);
        let Some(name) = found.map(|(name, _)| name.clone()) else {
            return;
        };
        tracing::error!(peer = %name, "{words}");
        self.running.remove(&name);
        self.hub.close(name, words, true).await;
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test's panic is its report, and a task's its subject"
    )]
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn a_link_that_panics_starts_anew() {
        use isthmus_core::mesh::{Cluster, Guard};

        let directory = tempfile::tempdir().unwrap();
        let text = "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: ClusterLink\nmetadata: {name: west}\n\
                    spec: {endpoints: [\"127.0.0.1:9\"], tls: {ca: a, cert: b, key: c}}\n";
        fs::write(directory.path().join("west.yaml"), text).unwrap();
        let own: ClusterName = "east".parse().unwrap();
        let config = crate::hub::HubConfig {
            own: Cluster {
                name: own.clone(),
                id: 1.try_into().unwrap(),
            },
            node: String::new(),
            heartbeat: Duration::from_secs(1),
            guard: Guard {
                percent: 50,
                grace: Duration::from_secs(1),
            },
            cidrs: Vec::new(),
            state_dir: directory.path().join("state"),
        };
        let stop = CancellationToken::new();
        let (hub, hub_task) = crate::hub::spawn(config, stop.clone()).unwrap();
        let mut keeper = Keeper {
            hub: hub.clone(),
            shutdown: stop.clone(),
            directory: directory.path().to_owned(),
            told: Vec::new(),
            wanted: BTreeMap::new(),
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        let mut links = Links::new(directory.path().to_owned(), own, None);
        keeper.want(links.look().unwrap()).await;
        let task = keeper.tasks.spawn(async { panic!("on purpose") }).id();
        let (name, spec) = keeper.wanted.first_key_value().unwrap();
        let running = Running {
            spec: spec.clone(),
            stop: stop.child_token(),
            task,
        };
        keeper.running.insert(name.clone(), running);
        let ended = keeper.tasks.join_next_with_id().await.unwrap();
        keeper.note_end(ended).await;
        assert!(keeper.running.is_empty());
        let mut views = hub.views();
        let told = views.wait_for(|view| {
            let peer = view.peers.first().and_then(|peer| peer.last_error.as_ref());
            peer.is_some_and(|(words, _)| words.contains("panicked: on purpose"))
        });
        let told = tokio::time::timeout(Duration::from_secs(20), told).await;
        assert!(told.is_ok_and(|told| told.is_ok()));
        keeper.start_missing();
        assert_ne!(keeper.running.values().next().unwrap().task, task);
        stop.cancel();
        while keeper.tasks.join_next().await.is_some() {}
        hub_task.await.unwrap();
    }
}
