//! The tasks that a process is made of. None of them may end before the process does: one that panicked or gave up would
//! leave a process that answers `/healthz` and does nothing. So the first that ends ends the process, with a sentence that
//! names it, and whoever started the process starts it again.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

/// What parts are given to end in, once they are told to: state files of large meshes are written meanwhile.
pub const STOP_TIME: Duration = Duration::from_secs(10);

/// Why a process has to end.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    #[error("{part} panicked: {message}")]
    Panicked { part: &'static str, message: String },
    #[error("{part} failed: {cause}")]
    Failed { part: &'static str, cause: String },
    #[error("{part} has ended by itself")]
    Ended { part: &'static str },
    #[error("{parts} did not end within {time:?}")]
    Late { parts: String, time: Duration },
}

/// Parts by name, as the operator reads it: `the engine`.
#[derive(Debug, Default)]
pub struct Parts {
    tasks: JoinSet<Result<(), String>>,
    names: BTreeMap<Id, &'static str>,
}

impl Parts {
    pub fn spawn<E: ToString>(
        &mut self,
        part: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let work = async move { work.await.map_err(|error| error.to_string()) };
        let id = self.tasks.spawn(work).id();
        self.names.insert(id, part);
    }

    /// A part that cannot fail, but for a panic.
    pub fn run(&mut self, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(part, async move {
            work.await;
            Ok::<(), String>(())
        });
    }

    /// A part that runs already.
    pub fn adopt(&mut self, part: &'static str, task: JoinHandle<()>) {
        self.run(part, async move {
            if let Err(error) = task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        });
    }

    /// Until a part ends; none should while the process is not told to stop.
    pub async fn first_end(&mut self) -> PartError {
        match self.tasks.join_next_with_id().await {
            Some(joined) => {
                let (part, why) = self.name(joined);
                why.unwrap_or(PartError::Ended { part })
            }
            None => std::future::pending().await,
        }
    }

    /// Waits for all parts, which were told to stop, for this time at most.
    ///
    /// # Errors
    /// The first part that failed, or those that did not end.
    pub async fn finish(&mut self, time: Duration) -> Result<(), PartError> {
        let deadline = Instant::now() + time;
        let mut result = Ok(());
        while !self.tasks.is_empty() {
            match timeout_at(deadline, self.tasks.join_next_with_id()).await {
                Ok(Some(joined)) => {
                    let (_, why) = self.name(joined);
                    result = result.and(why.map_or(Ok(()), Err));
                }
                Ok(None) => break,
                Err(_) => {
                    let parts: Vec<&str> = self.names.values().copied().collect();
                    let parts = parts.join(", ");
                    return result.and(Err(PartError::Late { parts, time }));
                }
            }
        }
        result
    }

    /// Which part ended, and why, if it should not have at any time.
    fn name(
        &mut self,
        joined: Result<(Id, Result<(), String>), JoinError>,
    ) -> (&'static str, Option<PartError>) {
        let id = joined.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let part = self.names.remove(&id).unwrap_or("a part");
        let why = match joined {
            Ok((_, Ok(()))) => None,
            Ok((_, Err(cause))) => Some(PartError::Failed { part, cause }),
            Err(error) => Some(PartError::Panicked {
                part,
                message: panic_words(error),
            }),
        };
        (part, why)
    }
}

/// What a task said when it panicked.
#[must_use]
pub fn panic_words(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => words(panic.as_ref()),
        Err(_) => "it was stopped".to_owned(),
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a word").to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, reason = "parts panic here")]
    use std::future::pending;

    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn first_of(parts: &mut Parts) -> String {
        parts.run("the rest", pending());
        parts.first_end().await.to_string()
    }

    #[tokio::test]
    async fn the_first_part_that_ends_is_named() {
        let mut parts = Parts::default();
        parts.run("the engine", async { panic!("row {} is none", 7) });
        assert_eq!(
            first_of(&mut parts).await,
            "the engine panicked: row 7 is none"
        );

        let mut parts = Parts::default();
        parts.spawn("the node API", async { Err("no socket") });
        assert_eq!(first_of(&mut parts).await, "the node API failed: no socket");

        let mut parts = Parts::default();
        parts.run("the source", async {});
        assert_eq!(first_of(&mut parts).await, "the source has ended by itself");

        let mut parts = Parts::default();
        parts.adopt("the feed", tokio::spawn(async { panic!("no file") }));
        assert_eq!(first_of(&mut parts).await, "the feed panicked: no file");
    }

    #[tokio::test]
    async fn parts_that_are_told_to_stop_are_waited_for_but_not_for_ever() {
        let stop = CancellationToken::new();
        let mut parts = Parts::default();
        let slow = stop.clone();
        parts.run("the feed", async move {
            slow.cancelled().await;
            let write =
                tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5)));
            assert!(write.await.is_ok());
        });
        stop.cancel();
        assert!(parts.finish(STOP_TIME).await.is_ok());

        parts.run("the feed", pending());
        parts.run("the engine", async { panic!("at the end") });
        let time = Duration::from_millis(10);
        let first = parts.finish(time).await.map_err(|error| error.to_string());
        assert_eq!(first, Err("the engine panicked: at the end".to_owned()));
        let late = parts.finish(time).await.map_err(|error| error.to_string());
        assert_eq!(late, Err("the feed did not end within 10ms".to_owned()));
    }
}
