//! Files that outlive a process: what is written is whole or not there, and what is read is what was written.
//!
//! The first line is `isthmus-state VERSION KIND SHA256`, of the rest, which is JSON. A file that is torn, of another
//! kind or of another version is set aside as `NAME.bad-N`, with a problem for the operator; the process starts as if it
//! had none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use isthmus_core::mesh::Trouble;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::seldom::Seldom;

const VERSION: u32 = 1;
const MAGIC: &str = "isthmus-state";
/// SHA-256 in hexadecimal.
const SUM: usize = 64;

/// Files set aside that are kept. The oldest number is used again.
const BAD_MAX: u32 = 8;

/// The least time between two writes of a [`Saver`].
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {operation} {}: {cause}: is --state-dir there, and writable?", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        cause: io::Error,
    },
    #[error("cannot write {}: {cause}", path.display())]
    Unwritable {
        path: PathBuf,
        cause: serde_json::Error,
    },
}

/// What [`load`] found.
#[derive(Debug, PartialEq)]
pub enum Loaded<T> {
    Missing,
    Good(T),
    /// The file could not be used.
    Bad(SetAside),
}

/// A state file that could not be used, and where it is now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetAside {
    pub problem: String,
    pub path: PathBuf,
    pub aside: PathBuf,
}

impl SetAside {
    /// None once somebody has taken the file away. `meanwhile`: what the process does without it.
    #[must_use]
    pub fn trouble(&self, meanwhile: &str) -> Option<Trouble> {
        self.aside.exists().then(|| Trouble {
            about: "state file".to_owned(),
            cause: format!(
                "{} could not be used: {}. {meanwhile}",
                self.path.display(),
                self.problem
            ),
            way_out: format!(
                "It was set aside as {}: remove it once it is not needed to find out why.",
                self.aside.display()
            ),
        })
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |cause| StateError::Io {
        operation,
        path,
        cause,
    }
}

/// Reads a file of this kind (one word).
///
/// # Errors
/// The file is there and cannot be read, or a bad one cannot be renamed.
pub fn load<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<Loaded<T>, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Missing),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    match decode(&bytes, kind) {
        Ok(state) => Ok(Loaded::Good(state)),
        Err(problem) => {
            let aside = set_aside(path)?;
            let path = path.to_owned();
            Ok(Loaded::Bad(SetAside {
                problem,
                path,
                aside,
            }))
        }
    }
}

/// Reads what [`encode`] made, of the same kind.
///
/// # Errors
/// The bytes are something else, for the reason given.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], kind: &str) -> Result<T, String> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or("it has no first line")?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| "its first line is no text")?;
    let [magic, version, found, sum] = head.split(' ').collect::<Vec<_>>()[..] else {
        return Err("its first line is not that of a state file".to_owned());
    };
    if magic != MAGIC {
        return Err("its first line is not that of a state file".to_owned());
    }
    if version != VERSION.to_string() {
        return Err(format!(
            "it is of version {version}, and this program reads version {VERSION}"
        ));
    }
    if found != kind {
        return Err(format!("it holds {found}, not {kind}"));
    }
    if sum != checksum(body) {
        return Err("its checksum is wrong: it was cut off or changed".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| format!("its content is not understood: {error}"))
}

/// A whole file of this kind (one word).
///
/// # Errors
/// The state is none that JSON can hold.
pub fn encode<T: Serialize>(kind: &str, state: &T) -> serde_json::Result<Vec<u8>> {
    let mut file = format!("{MAGIC} {VERSION} {kind} {:SUM$}\n", "").into_bytes();
    let body = file.len();
    serde_json::to_writer(&mut file, state)?;
    let sum = checksum(&file[body..]);
    file[body - 1 - SUM..body - 1].copy_from_slice(sum.as_bytes());
    Ok(file)
}

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn set_aside(path: &Path) -> Result<PathBuf, StateError> {
    let aside = |n: u32| PathBuf::from(format!("{}.bad-{n}", path.display()));
    let free = (1..=BAD_MAX)
        .map(aside)
        .find(|aside| !aside.exists())
        .unwrap_or_else(|| aside(1));
    fs::rename(path, &free).map_err(io_error("set aside", path))?;
    Ok(free)
}

/// Writes beside the file, to the disk, and renames into place. Readable by the owner only.
///
/// # Errors
/// The old file is then unchanged.
pub fn store<T: Serialize>(path: &Path, kind: &str, state: &T) -> Result<(), StateError> {
    let unwritable = |cause| StateError::Unwritable {
        path: path.to_owned(),
        cause,
    };
    let bytes = encode(kind, state).map_err(unwritable)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(io_error("create", directory))?;
    let beside = PathBuf::from(format!("{}.new", path.display()));
    let write = || -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(io_error("write", path))
}

/// Writes the newest state given to it, on a thread of its own, with pauses: a second at least, and ten times what the
/// last write took. What cannot be written is tried again after the pause.
#[derive(Debug)]
pub struct Saver<T> {
    newest: watch::Sender<Option<T>>,
    failure: watch::Receiver<Option<String>>,
    writer: JoinHandle<()>,
}

impl<T: Serialize + Clone + Send + Sync + 'static> Saver<T> {
    #[must_use]
    pub fn spawn(path: PathBuf, kind: &'static str) -> Self {
        let (newest, given) = watch::channel(None);
        let (failing, failure) = watch::channel(None);
        let writer = tokio::spawn(write_on(path, kind, given, failing));
        Self {
            newest,
            failure,
            writer,
        }
    }

    /// Hands over a state; it is cheap, and an older one that is not written yet is forgotten.
    pub fn put(&self, state: T) {
        self.newest.send_replace(Some(state));
    }

    /// Why the last write failed; `None` as soon as one succeeds.
    #[must_use]
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failure.clone()
    }

    /// The same for people. `meanwhile`: what a restart would cost now.
    #[must_use]
    pub fn trouble(&self, meanwhile: &str) -> Option<Trouble> {
        let failure = self.failure.borrow();
        failure.as_ref().map(|error| Trouble {
            about: "state directory".to_owned(),
            cause: format!("{error} {meanwhile}"),
            way_out: "Give it room, and the right to be written; it is tried again all the time."
                .to_owned(),
        })
    }

    /// Writes what was handed over last, and ends.
    pub async fn finish(self) {
        drop(self.newest);
        if let Err(error) = self.writer.await {
            tracing::error!(%error, "the state's writer died");
        }
    }
}

/// Ends when nobody can give a state any more, and the newest one was tried.
async fn write_on<T: Serialize + Clone + Send + Sync + 'static>(
    path: PathBuf,
    kind: &'static str,
    mut given: watch::Receiver<Option<T>>,
    failing: watch::Sender<Option<String>>,
) {
    let mut seldom = Seldom::default();
    let mut again = false;
    loop {
        if !again && given.changed().await.is_err() {
            return;
        }
        let Some(state) = given.borrow_and_update().clone() else {
            continue;
        };
        let (file, began) = (path.clone(), Instant::now());
        let written = tokio::task::spawn_blocking(move || store(&file, kind, &state)).await;
        let error = match written {
            Ok(written) => written.err().map(|error| error.to_string()),
            Err(died) => Some(died.to_string()),
        };
        let failed = error.is_some();
        if let Some(error) = &error
            && let Some(again) = seldom.due(error, Instant::now())
        {
            tracing::error!(%error, again, "state is not saved; trying on");
        }
        failing.send_if_modified(|before| std::mem::replace(before, error.clone()) != error);
        let pause = PAUSE.max(began.elapsed() * 10);
        let ends = tokio::select! {
            () = tokio::time::sleep(pause) => false,
            () = closed(&given) => true,
        };
        again = failed && !ends;
    }
}

async fn closed<T>(given: &watch::Receiver<T>) {
    let mut given = given.clone();
    while given.changed().await.is_ok() {}
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_was_changed_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/peers.state");
        assert_eq!(load::<Vec<u32>>(&path, "peers").unwrap(), Loaded::Missing);
        store(&path, "peers", &vec![1, 2, 3]).unwrap();
        assert_eq!(load(&path, "peers").unwrap(), Loaded::Good(vec![1, 2, 3]));
        let good = fs::read(&path).unwrap();
        let mut torn = good.clone();
        torn.pop();
        let newer = String::from_utf8(good.clone())
            .unwrap()
            .replacen(" 1 ", " 2 ", 1)
            .into_bytes();
        for (n, (bytes, kind, word)) in [
            (torn, "peers", "checksum"),
            (newer, "peers", "version 2"),
            (good, "mesh", "holds peers"),
            (Vec::new(), "peers", "first line"),
        ]
        .into_iter()
        .enumerate()
        {
            fs::write(&path, &bytes).unwrap();
            let Loaded::Bad(bad) = load::<Vec<u32>>(&path, kind).unwrap() else {
                unreachable!()
            };
            assert!(bad.problem.contains(word), "{}", bad.problem);
            assert_eq!(
                bad.aside,
                PathBuf::from(format!("{}.bad-{}", path.display(), n + 1))
            );
            assert_eq!(fs::read(&bad.aside).unwrap(), bytes);
            assert!(!path.exists());
            let trouble = bad.trouble("All begins anew.").unwrap();
            assert!(trouble.cause.contains(word) && trouble.cause.ends_with(" All begins anew."));
            fs::rename(&bad.aside, &path).unwrap();
            assert_eq!(bad.trouble("All begins anew."), None);
            fs::rename(&path, &bad.aside).unwrap();
        }
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_said_and_tried_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n.state");
        // Where the new file should be.
        let obstacle = directory.path().join("n.state.new");
        fs::create_dir(&obstacle).unwrap();
        let saver = Saver::spawn(path.clone(), "n");
        assert_eq!(saver.trouble("All is lost."), None);
        let mut failure = saver.failure();
        saver.put(1);
        failure.wait_for(Option::is_some).await.unwrap();
        let trouble = saver.trouble("All is lost.").unwrap();
        assert!(
            trouble.cause.contains("cannot write") && trouble.cause.contains("n.state"),
            "{trouble:?}"
        );
        assert!(trouble.cause.ends_with(" All is lost."), "{trouble:?}");
        fs::remove_dir(&obstacle).unwrap();
        // Without another state.
        failure.wait_for(Option::is_none).await.unwrap();
        assert_eq!(saver.trouble("All is lost."), None);
        assert_eq!(load(&path, "n").unwrap(), Loaded::Good(1));
        // A state that cannot be written does not hold up the end.
        fs::create_dir(&obstacle).unwrap();
        saver.put(2);
        saver.finish().await;
        assert_eq!(load(&path, "n").unwrap(), Loaded::Good(1));
    }

    #[tokio::test]
    async fn the_newest_state_is_written_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("n.state");
        let saver = Saver::spawn(path.clone(), "n");
        for n in 0..100 {
            saver.put(n);
            tokio::task::yield_now().await;
        }
        saver.finish().await;
        assert_eq!(load(&path, "n").unwrap(), Loaded::Good(99));
    }
}
