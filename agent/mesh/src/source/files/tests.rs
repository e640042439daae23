//! Each trap of a directory that others write to, in real directories.
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use isthmus_core::model::RowChange;
use tempfile::TempDir;

use super::*;

/// Whatever is waited for comes sooner, or never.
const DEADLINE: Duration = Duration::from_secs(20);

/// A watched directory below a temporary one, and what was heard of it.
struct Watched {
    /// Holds the watched directory as `manifests`.
    parent: TempDir,
    updates: mpsc::Receiver<SourceUpdate>,
    shutdown: CancellationToken,
    /// Ports by service: what the rows are now.
    services: BTreeMap<String, u16>,
    status: Arc<SourceStatus>,
    /// Names of services that went, ever.
    gone: Vec<String>,
}

impl Watched {
    /// Watches what `prepare` made.
    fn after(prepare: impl FnOnce(&Path)) -> Self {
        let parent = tempfile::tempdir().unwrap();
        prepare(parent.path());
        let shutdown = CancellationToken::new();
        let options = ManifestOptions {
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
        };
        let dir = parent.path().join("manifests");
        let status = Arc::new(SourceStatus::new(format!("dir:{}", dir.display())));
        let updates = watch(dir, options, shutdown.clone());
        Self {
            parent,
            updates,
            shutdown,
            services: BTreeMap::new(),
            status,
            gone: Vec::new(),
        }
    }

    /// A directory that holds `a.yaml` with service `a` on port 1, read.
    async fn with_a() -> Self {
        let mut watched = Self::after(|parent| {
            fs::create_dir(parent.join("manifests")).unwrap();
            fs::write(parent.join("manifests/a.yaml"), service("a", 1)).unwrap();
        });
        watched.until(|watched| watched.status.complete).await;
        assert_eq!(watched.services["a"], 1);
        watched
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    async fn hear(&mut self) -> SourceUpdate {
        let update = tokio::time::timeout(DEADLINE, self.updates.recv())
            .await
            .expect("nothing heard")
            .expect("ended");
        for change in &update.batch.changes {
            match change {
                RowChange::Service(row) => {
                    self.services
                        .insert(row.name.name.to_string(), row.ports[0].port);
                }
                RowChange::ServiceGone(name) => {
                    self.services.remove(&*name.name);
                    self.gone.push(name.name.to_string());
                }
                RowChange::Endpoint(_) | RowChange::EndpointGone(_) => {}
            }
        }
        self.status = update.status.clone();
        update
    }

    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "{:?} {:?}",
                self.services,
                self.status
            );
            self.hear().await;
        }
    }

    /// Until `name` is on `port`.
    async fn until_port(&mut self, name: &str, port: u16) {
        self.until(|watched| watched.services.get(name) == Some(&port))
            .await;
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

#[tokio::test]
async fn a_change_carries_the_moment_of_its_first_sign() {
    async fn rows(watched: &mut Watched) -> SourceUpdate {
        loop {
            let update = watched.hear().await;
            if !update.batch.is_empty() {
                return update;
            }
        }
    }
    let mut watched = Watched::with_a().await;
    let before = Instant::now();
    watched.write("b.yaml", &service("b", 2));
    let update = rows(&mut watched).await;
    assert!(before <= update.seen && update.seen <= Instant::now());
    // A removal waits for company before it is told.
    let before = Instant::now();
    fs::remove_file(watched.path("b.yaml")).unwrap();
    let update = rows(&mut watched).await;
    assert!(before <= update.seen);
    assert!(update.seen.elapsed() >= Duration::from_millis(1));
}

#[tokio::test]
async fn the_first_list_comes_whole_with_its_passport() {
    let mut watched = Watched::after(|parent| {
        fs::create_dir_all(parent.join("manifests/deep/er")).unwrap();
        fs::create_dir_all(parent.join("manifests/.hidden")).unwrap();
        for (name, service_name) in [
            ("a.yaml", "a"),
            ("b.yml", "b"),
            ("deep/er/c.json", "c"),
            ("x.yaml~", "x"),
            (".y.yaml", "x"),
            (".hidden/z.yaml", "x"),
            ("#w.yaml#", "x"),
            ("README.md", "x"),
        ] {
            fs::write(
                parent.join("manifests").join(name),
                service(service_name, 1),
            )
            .unwrap();
        }
        nix::unistd::mkfifo(
            &parent.join("manifests/pipe.yaml"),
            nix::sys::stat::Mode::S_IRWXU,
        )
        .unwrap();
        symlink(".", parent.join("manifests/loop")).unwrap();
        symlink("nowhere", parent.join("manifests/dangling.yaml")).unwrap();
    });
    let update = watched.hear().await;
    assert!(update.batch.complete);
    assert_eq!(watched.services.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let problems: Vec<_> = watched
        .status
        .problems
        .iter()
        .map(|(problem, _)| problem.to_string())
        .collect();
    assert_eq!(
        problems,
        ["pipe.yaml: cannot be read: is no regular file; nothing of the file is used"]
    );
    assert_eq!((watched.status.services, watched.status.files), (3, 4));
    watched.write("a.yaml", &service("a", 2));
    assert!(!watched.hear().await.batch.complete, "one passport");
}

#[tokio::test]
async fn writes_renames_links_and_removals_are_heard_one_by_one() {
    let mut watched = Watched::with_a().await;
    watched.write("a.yaml", &service("a", 2));
    watched.until_port("a", 2).await;

    watched.write(".a.yaml.new", &service("a", 3));
    fs::rename(watched.path(".a.yaml.new"), watched.path("a.yaml")).unwrap();
    watched.until_port("a", 3).await;

    fs::rename(watched.path("a.yaml"), watched.path("b.yaml")).unwrap();
    watched.write("marker.yaml", &service("marker", 1));
    watched.until_port("marker", 1).await;
    watched.write("b.yaml", &service("a", 4));
    watched.until_port("a", 4).await;
    assert_eq!(watched.gone, [""; 0], "a rename loses nothing");

    let elsewhere = watched.parent.path().join("elsewhere.yaml");
    fs::write(&elsewhere, service("c", 1)).unwrap();
    symlink(&elsewhere, watched.path("c.yaml")).unwrap();
    watched.until_port("c", 1).await;
    fs::write(&elsewhere, service("d", 1)).unwrap();
    fs::hard_link(&elsewhere, watched.path("d.yaml")).unwrap();
    watched.until_port("d", 1).await;

    fs::create_dir(watched.path("new")).unwrap();
    watched.write("new/e.yaml", &service("e", 1));
    watched.until_port("e", 1).await;
    watched.write("new/e.yaml", &service("e", 2));
    watched.until_port("e", 2).await;
    fs::rename(watched.path("new"), watched.path("renamed")).unwrap();
    watched.write("renamed/e.yaml", &service("e", 3));
    watched.until_port("e", 3).await;
    fs::remove_dir_all(watched.path("renamed")).unwrap();
    watched
        .until(|watched| !watched.services.contains_key("e"))
        .await;

    fs::remove_file(watched.path("b.yaml")).unwrap();
    watched
        .until(|watched| !watched.services.contains_key("a"))
        .await;
    assert_eq!(watched.status.unreadable, None);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_alone() {
    let mut watched = Watched::with_a().await;
    let mut file = File::create(watched.path("a.yaml")).unwrap();
    let text = service("a", 2);
    let (half, rest) = text.split_at(text.len() / 2);
    file.write_all(half.as_bytes()).unwrap();
    // A scan passes by, and so does another file.
    fs::create_dir(watched.path("sub")).unwrap();
    watched.write("sub/b.yaml", &service("b", 1));
    watched.until_port("b", 1).await;
    assert_eq!(
        (watched.services["a"], watched.status.problems.len()),
        (1, 0)
    );
    file.write_all(rest.as_bytes()).unwrap();
    drop(file);
    watched.until_port("a", 2).await;

    // Cut off in the middle for good: the last good version stays, and mending it is heard.
    watched.write("a.yaml", &text[..text.len() - 5]);
    watched
        .until(|watched| !watched.status.problems.is_empty())
        .await;
    let (problem, since) = watched.status.problems[0].clone();
    let words = problem.to_string();
    assert!(
        words.starts_with("a.yaml:") && words.ends_with("last good version (0s old) stays"),
        "{words}"
    );
    assert_eq!(watched.services["a"], 2);
    // A scan later it is as old as it is.
    watched
        .until(|watched| watched.status.problems[0].0 != problem)
        .await;
    assert_eq!(watched.status.problems[0].1, since);
    watched.write("a.yaml", &service("a", 3));
    watched.until_port("a", 3).await;
    assert!(watched.status.problems.is_empty());
}

#[tokio::test]
async fn an_editor_that_moves_the_file_aside_removes_nothing() {
    let mut watched = Watched::with_a().await;
    fs::rename(watched.path("a.yaml"), watched.path("a.yaml~")).unwrap();
    watched.write("b.yaml", &service("b", 1));
    watched.until_port("b", 1).await;
    assert_eq!(watched.services["a"], 1);
    watched.write("a.yaml", &service("a", 2));
    fs::remove_file(watched.path("a.yaml~")).unwrap();
    watched.until_port("a", 2).await;
    assert_eq!(watched.gone, [""; 0]);
    fs::rename(watched.path("a.yaml"), watched.path("a.yaml~")).unwrap();
    watched.until(|watched| watched.gone == ["a"]).await;
}

#[tokio::test]
async fn a_swap_of_kubernetes_data_link_is_one_change() {
    let revision = |parent: &Path, name: &str, port: u16| {
        let directory = parent.join("manifests").join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yaml"), service("a", port)).unwrap();
        if port == 1 {
            fs::write(directory.join("b.yaml"), service("b", port)).unwrap();
        }
    };
    let mut watched = Watched::after(|parent| {
        fs::create_dir(parent.join("manifests")).unwrap();
        revision(parent, "..1", 1);
        symlink("..1", parent.join("manifests/..data")).unwrap();
        symlink("..data/a.yaml", parent.join("manifests/a.yaml")).unwrap();
        symlink("..data/b.yaml", parent.join("manifests/b.yaml")).unwrap();
    });
    watched.until(|watched| watched.status.complete).await;
    assert_eq!(
        watched.services,
        BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)])
    );

    revision(watched.parent.path(), "..2", 2);
    symlink("..2", watched.path("..data_tmp")).unwrap();
    fs::rename(watched.path("..data_tmp"), watched.path("..data")).unwrap();
    fs::remove_file(watched.path("b.yaml")).unwrap();
    fs::remove_dir_all(watched.path("..1")).unwrap();
    watched
        .until(|watched| watched.services == BTreeMap::from([("a".to_owned(), 2)]))
        .await;
    assert_eq!(watched.gone, ["b"]);
}

#[tokio::test]
async fn a_directory_that_goes_removes_nothing_and_may_come_back() {
    let mut watched = Watched::with_a().await;
    for number in 0..100 {
        watched.write(
            &format!("{number}.yaml"),
            &service(&format!("s{number}"), 1),
        );
    }
    watched.until(|watched| watched.services.len() == 101).await;
    fs::remove_dir_all(watched.path("")).unwrap();
    watched
        .until(|watched| watched.status.unreadable.is_some())
        .await;
    assert_eq!(
        watched.status.unreadable.as_ref().unwrap().0,
        "no such file or directory"
    );
    assert_eq!((watched.services.len(), watched.gone.len()), (101, 0));

    // Back, and empty: not believed. Then filled, in part: what it lacks goes, later.
    fs::create_dir(watched.path("")).unwrap();
    watched
        .until(|watched| {
            watched
                .status
                .unreadable
                .as_ref()
                .unwrap()
                .0
                .contains("another directory")
        })
        .await;
    assert_eq!((watched.services.len(), watched.gone.len()), (101, 0));
    watched.write("a.yaml", &service("a", 2));
    watched.until_port("a", 2).await;
    assert_eq!((watched.services.len(), watched.gone.len()), (101, 0));
    watched.write("7.yaml", &service("s7", 1));
    watched.until(|watched| watched.services.len() == 2).await;
    assert_eq!(watched.gone.len(), 99);
    assert_eq!(watched.status.unreadable, None);

    // Renamed away, and another one put there.
    fs::create_dir(watched.parent.path().join("other")).unwrap();
    fs::write(watched.parent.path().join("other/a.yaml"), service("a", 5)).unwrap();
    fs::rename(watched.path(""), watched.parent.path().join("old")).unwrap();
    fs::rename(watched.parent.path().join("other"), watched.path("")).unwrap();
    watched.until_port("a", 5).await;
    watched.write("a.yaml", &service("a", 6));
    watched.until_port("a", 6).await;
}

#[tokio::test]
async fn a_root_that_is_a_link_may_be_swapped() {
    let mut watched = Watched::after(|parent| {
        for (number, name) in ["one", "two"].into_iter().enumerate() {
            fs::create_dir(parent.join(name)).unwrap();
            fs::write(
                parent.join(name).join("a.yaml"),
                service("a", u16::try_from(number).unwrap() + 1),
            )
            .unwrap();
        }
        symlink("one", parent.join("manifests")).unwrap();
    });
    watched.until_port("a", 1).await;
    symlink("two", watched.parent.path().join("new")).unwrap();
    fs::rename(
        watched.parent.path().join("new"),
        watched.path("").parent().unwrap().join("manifests"),
    )
    .unwrap();
    watched.until_port("a", 2).await;
    fs::write(watched.parent.path().join("two/a.yaml"), service("a", 3)).unwrap();
    watched.until_port("a", 3).await;
    assert_eq!(watched.gone, [""; 0]);
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet_has_no_passport() {
    let mut watched = Watched::after(|_| {});
    let update = watched.hear().await;
    assert!(
        update.batch.is_empty() && !update.status.complete && update.status.unreadable.is_some()
    );
    fs::create_dir(watched.path("")).unwrap();
    watched.until(|watched| watched.status.complete).await;
    assert_eq!(watched.status.unreadable, None);
    watched.write("a.yaml", &service("a", 1));
    watched.until_port("a", 1).await;
}

#[tokio::test]
async fn it_ends_when_told_and_when_nobody_reads() {
    let mut watched = Watched::with_a().await;
    watched.shutdown.cancel();
    assert!(
        tokio::time::timeout(DEADLINE, async {
            while watched.updates.recv().await.is_some() {}
        })
        .await
        .is_ok()
    );
}

#[tokio::test]
async fn a_storm_of_changes_ends_in_what_is_there() {
    let mut watched = Watched::with_a().await;
    for round in 1..=20 {
        for file in 0..20 {
            let name = format!("{file}.yaml");
            match (round + file) % 5 {
                0 => drop(fs::remove_file(watched.path(&name))),
                1 => {
                    watched.write("tmp", &service(&format!("s{file}"), round));
                    fs::rename(watched.path("tmp"), watched.path(&name)).unwrap();
                }
                _ => watched.write(&name, &service(&format!("s{file}"), round)),
            }
        }
    }
    let mut wanted = BTreeMap::from([("a".to_owned(), 1)]);
    for file in 0..20_u16 {
        if (20 + file) % 5 != 0 {
            wanted.insert(format!("s{file}"), 20);
        }
    }
    watched.until(|watched| watched.services == wanted).await;
}

#[test]
fn a_source_is_sound_once_all_of_it_is_read_whatever_is_not_done_for_it() {
    let mut status = SourceStatus::new("dir:/manifests".to_owned());
    assert!(!status.is_sound(), "not looked at yet");
    status.complete = true;
    assert!(status.is_sound());
    for (kind, sound) in [
        (ProblemKind::NotHandled, true),
        (ProblemKind::Conflict, false),
        (ProblemKind::Broken, false),
    ] {
        let problem = Problem {
            kind,
            place: "backend.yaml:9".to_owned(),
            object: String::new(),
            field: String::new(),
            message: String::new(),
        };
        status.problems = [(problem, Instant::now())].into();
        assert_eq!(status.is_sound(), sound, "{kind:?}");
    }
    status.problems = Arc::default();
    status.unreadable = Some(("it is gone".to_owned(), Instant::now()));
    assert!(!status.is_sound(), "not to be read now");
}
