//! The directory of links: one `ClusterLink` a file. It is looked at twice a second, which sees renames, symlink swaps,
//! bind mounts and remote file systems alike; a file is read only if it changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_core::mesh::{Trouble, TroubleSource};
use isthmus_core::model::{ClusterId, ClusterName, Problem, ProblemKind};
use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::TlsPaths;
use crate::hub::HubHandle;
use crate::link::{self, LinkSpec};
use crate::parts::panic_words;

mod file;

use file::{at, broken, read};

const LOOK: Duration = Duration::from_millis(500);
/// Ids end at 511.
const LINKS_MAX: usize = 511;

/// What tells that a file changed.
type Stamp = (SystemTime, u64, u64);

#[derive(Debug, Default)]
struct Entry {
    stamp: Option<Stamp>,
    /// As it was last good.
    good: Option<Arc<LinkSpec>>,
    problem: Option<Problem>,
}

/// The directory as last seen.
#[derive(Debug)]
pub struct Links {
    directory: PathBuf,
    own: ClusterName,
    tls: Option<TlsPaths>,
    entries: BTreeMap<PathBuf, Entry>,
    /// Of the whole directory.
    problem: Option<Problem>,
    looked: bool,
    /// It was told that there is no directory yet.
    absent: bool,
}

/// What [`Links::look`] makes of all files.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Wanted {
    pub links: BTreeMap<ClusterName, Arc<LinkSpec>>,
    pub problems: Vec<Problem>,
    /// Every file was understood: a cluster without a link is not linked.
    pub complete: bool,
    /// There is no directory yet; the first link makes it.
    pub absent: bool,
}

impl Links {
    /// `tls` is what links without their own use.
    #[must_use]
    pub fn new(directory: PathBuf, own: ClusterName, tls: Option<TlsPaths>) -> Self {
        Self {
            directory,
            own,
            tls,
            entries: BTreeMap::new(),
            problem: None,
            looked: false,
            absent: false,
        }
    }

    /// Looks at the directory. `None` if nothing changed.
    pub fn look(&mut self) -> Option<Wanted> {
        let found = match list(&self.directory) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.looked => {
                let first = !std::mem::replace(&mut self.absent, true);
                return first.then(|| Wanted {
                    absent: true,
                    ..self.wanted(false)
                });
            }
            Err(error) => {
                // A directory that vanished unlinks nobody.
                let message = format!("cannot be read: {error}; the links known so far stay");
                let problem = Some(Problem {
                    place: self.directory.display().to_string(),
                    ..broken(message)
                });
                if self.problem == problem {
                    return None;
                }
                self.problem = problem;
                return Some(self.wanted(false));
            }
        };
        let mut changed =
            self.problem.take().is_some() || !std::mem::replace(&mut self.looked, true);
        let before = self.entries.len();
        self.entries.retain(|path, _| found.contains_key(path));
        changed |= before != self.entries.len();
        for (path, stamp) in found {
            let entry = self.entries.entry(path.clone()).or_default();
            if entry.stamp == Some(stamp) {
                continue;
            }
            changed = true;
            entry.stamp = Some(stamp);
            match read(&path, &self.own, self.tls.as_ref()) {
                Ok(spec) => (entry.good, entry.problem) = (Some(Arc::new(spec)), None),
                Err(mut problem) => {
                    if entry.good.is_some() {
                        problem.message.push_str("; the last good version stays");
                    }
                    entry.problem = Some(problem);
                }
            }
        }
        changed.then(|| self.wanted(true))
    }

    fn wanted(&self, readable: bool) -> Wanted {
        let mut wanted = Wanted {
            complete: readable,
            ..Wanted::default()
        };
        wanted.problems.extend(self.problem.clone());
        for entry in self.entries.values() {
            wanted.problems.extend(entry.problem.clone());
            let Some(spec) = &entry.good else {
                wanted.complete = false;
                continue;
            };
            if wanted.links.len() == LINKS_MAX {
                wanted.problems.push(at(
                    &spec.file,
                    0,
                    "",
                    format!("is one link too many: {LINKS_MAX} are held"),
                ));
                continue;
            }
            if let Some(first) = wanted.links.get(&spec.name) {
                let message = format!(
                    "links \"{}\", as {} does; that one holds",
                    spec.name,
                    first.file.display()
                );
                wanted.problems.push(Problem {
                    kind: ProblemKind::Conflict,
                    ..at(&spec.file, 0, "metadata.name", message)
                });
                continue;
            }
            if let Some(other) = wanted
                .links
                .values()
                .find(|other| spec.terms.id.is_some() && other.terms.id == spec.terms.id)
            {
                let id = spec.terms.id.map_or(0, ClusterId::get);
                let message = format!(
                    "cluster id {id} is taken: \"{}\" and \"{}\" both use it; give one another id in its --cluster-id, \
                     then restart it",
                    other.name, spec.name
                );
                wanted.problems.push(Problem {
                    kind: ProblemKind::Conflict,
                    ..at(&spec.file, 0, "spec.id", message)
                });
                continue;
            }
            wanted.links.insert(spec.name.clone(), spec.clone());
        }
        wanted
    }
}

fn list(directory: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if !yaml || name.starts_with(['.', '#']) {
            continue;
        }
        // Through symlinks. A file that went since is not there.
        if let Ok(metadata) = fs::metadata(&path)
            && metadata.is_file()
        {
            found.insert(path, (metadata.modified()?, metadata.len(), metadata.ino()));
        }
    }
    Ok(found)
}

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
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => {
                    self.note_end(ended).await;
                    continue;
                }
                _ = look.tick() => {}
            }
            let looked = tokio::task::spawn_blocking(move || (links.look(), links)).await;
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
        self.running.retain(|name, running| {
            // A link that only allows more or less goes on; the hub holds its peer to that.
            let now = wanted.links.get(name);
            let stays = now.is_some_and(|now| now.leads_as(&running.spec));
            if !stays {
                running.stop.cancel();
            }
            stays
        });
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
    use isthmus_core::mesh::Terms;

    use super::*;

    fn link(name: &str, rest: &str) -> String {
        format!(
            "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: ClusterLink\nmetadata: {{name: {name}}}\nspec:\n  {rest}\n  \
             tls: {{ca: ca.crt, cert: client.crt, key: client.key}}\n"
        )
    }

    #[test]
    fn files_are_followed_and_what_is_broken_leaves_the_last_good() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("west.yaml");
        let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), None);
        assert_eq!(
            links.look().unwrap(),
            Wanted {
                complete: true,
                ..Wanted::default()
            }
        );
        assert_eq!(links.look(), None);
        fs::write(
            &path,
            link("west", "id: 2\n  endpoints: [\"mesh.west.example:4260\"]"),
        )
        .unwrap();
        let wanted = links.look().unwrap();
        let spec = &wanted.links[&"west".parse().unwrap()];
        assert_eq!(spec.tls.ca, directory.path().join("ca.crt"));
        assert_eq!(
            (
                spec.terms.id.map(ClusterId::get),
                spec.endpoints[0].to_string()
            ),
            (Some(2), "mesh.west.example:4260".to_owned())
        );
        assert_eq!(
            (spec.terms.cidrs.as_ref(), spec.terms.rows_max),
            (None, Terms::ROWS_MAX)
        );
        assert_eq!(wanted.problems, []);

        fs::write(
            &path,
            link("west", "id: 2\n  endpoints: [\"mesh.west.example:426000\"]"),
        )
        .unwrap();
        let broken = links.look().unwrap();
        assert_eq!(broken.links, wanted.links);
        let problem = broken.problems[0].to_string();
        assert!(
            problem
                .starts_with("west.yaml:6: spec.endpoints[0]: \"mesh.west.example:426000\" is no"),
            "{problem}"
        );
        assert!(
            problem.ends_with("the last good version stays"),
            "{problem}"
        );

        fs::remove_file(&path).unwrap();
        let wanted = links.look().unwrap();
        assert!(wanted.links.is_empty() && wanted.complete);

        drop(directory);
        let wanted = links.look().unwrap();
        assert!(!wanted.complete);
        assert_eq!(links.look(), None);
    }

    #[test]
    fn a_link_says_what_it_allows() {
        let directory = tempfile::tempdir().unwrap();
        let rest = "endpoints: [\"a:1\"]\n  cidrs: [10.12.0.0/16, \"fd00:12::/48\"]\n  limits: {rows: 10, bytes: 4096}";
        fs::write(directory.path().join("west.yaml"), link("west", rest)).unwrap();
        let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), None);
        let wanted = links.look().unwrap();
        let terms = wanted.links[&"west".parse().unwrap()].terms.clone();
        let cidrs = ["10.12.0.0/16", "fd00:12::/48"].map(|cidr| cidr.parse().unwrap());
        let allowed = Terms {
            id: None,
            cidrs: Some(cidrs.to_vec()),
            rows_max: 10,
            bytes_max: 4096,
        };
        assert_eq!(terms, allowed);
    }

    #[test]
    fn contradictions_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let put = |file: &str, text: String| fs::write(directory.path().join(file), text).unwrap();
        put("a.yaml", link("west", "id: 2\n  endpoints: [\"a:1\"]"));
        put("b.yaml", link("west", "endpoints: [\"b:1\"]"));
        put("c.yaml", link("lab2", "id: 2\n  endpoints: [\"c:1\"]"));
        put("d.yaml", link("east", "endpoints: [\"d:1\"]"));
        put("e.yaml", link("north", "endpoints: []"));
        put("f.yaml", link("north", "endpoint: x"));
        put("g.yaml", link("north", "id: 512\n  endpoints: [\"g:1\"]"));
        let ranged = |rest: &str| format!("endpoints: [\"h:1\"]\n  {rest}");
        put(
            "h.yaml",
            link("south", &ranged("cidrs: [10.12.0.0/16, fd00::1/64]")),
        );
        put("i.yaml", link("south", &ranged("limits: {rows: many}")));
        put(".h.yaml", "nonsense".to_owned());
        let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), None);
        let wanted = links.look().unwrap();
        assert_eq!(wanted.links.len(), 1);
        assert!(!wanted.complete);
        let said: Vec<String> = wanted.problems.iter().map(Problem::to_string).collect();
        assert_eq!(said.len(), 8, "{said:#?}");
        for words in [
            "b.yaml: metadata.name: links \"west\", as ",
            "c.yaml: spec.id: cluster id 2 is taken: \"west\" and \"lab2\" both use it",
            "d.yaml:3: metadata.name: \"east\" is this cluster itself",
            "e.yaml:5: spec.endpoints: is empty",
            "f.yaml:5: ",
            "g.yaml:5: spec.id: 512 is not 1..511",
            "h.yaml:6: spec.cidrs[1]: fd00::1/64 has bits set behind its prefix; did you mean fd00::/64?",
            "i.yaml:6: ",
        ] {
            assert!(
                said.iter().any(|problem| problem.starts_with(words)),
                "{words} in {said:#?}"
            );
        }
    }

    #[tokio::test]
    async fn a_link_that_panics_starts_anew() {
        use isthmus_core::mesh::{Cluster, Guard};

        let directory = tempfile::tempdir().unwrap();
        let text = link("west", "endpoints: [\"127.0.0.1:9\"]");
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
