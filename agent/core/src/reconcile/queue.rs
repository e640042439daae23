//! What is to be done, in which order, and when what failed is tried again.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Instant;

use super::grace::Retired;
use super::{BACKOFF_FIRST, BACKOFF_MAX, ReconcileError, Sid};
use crate::desired::Frontend;
use crate::model::{Address, ObjectName};
use crate::table::TableError;

/// A piece of work: what succeeds, fails and is retried by itself. Each looks up what is wanted when its turn comes, so
/// doing one twice, or for something that is gone, does no harm.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Work {
    /// A service port's backends, ring and wanted frontends.
    Settle(Sid),
    /// The rows of a Service's addresses alone, once its ports are settled.
    Mark(ObjectName),
    /// Removes the row of an address that no Service has any longer.
    Unmark(Address),
    /// Removes a service port's frontends that nobody wants, and the port itself if it has to go.
    Trim(Sid),
    /// Frees what no program can read any longer.
    LetGo(Retired),
}

/// How a piece of work ended, if not in an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    All,
    /// The round's writes were used up.
    More,
    /// The rest waits for a grace period.
    AfterGrace,
    /// The rest waits for this frontend, which is being taken from a service port that does not want it.
    Held(Frontend),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    /// The first one since it last succeeded.
    pub(super) since: Instant,
    pub(super) attempts: u32,
    pub(super) error: ReconcileError,
    pub(super) retry_at: Instant,
}

/// Freeing goes first, because it makes room. Building goes before removing, because a removed frontend bars insertions
/// until a grace period has passed.
#[derive(Debug, Default)]
pub(super) struct Queues {
    let_go: VecDeque<Work>,
    build: VecDeque<Work>,
    remove: VecDeque<Work>,
    /// Work in one of the queues above.
    queued: HashSet<Work>,
    /// Insertions that wait for a grace period, and the removals that wait for those: else a steady stream of removals
    /// would put insertions off for ever.
    inserts: BTreeSet<Work>,
    removals: BTreeSet<Work>,
    /// Work that waits for a frontend. What failed for one is here and among the failures.
    rivals: BTreeMap<Frontend, BTreeSet<Work>>,
    waiting: BTreeMap<Work, Frontend>,
    failures: BTreeMap<Work, Failure>,
    retry: BTreeSet<(Instant, Work)>,
}

impl Queues {
    /// Queues work behind its like; once is enough.
    pub(super) fn push(&mut self, work: Work) {
        if self.queued.insert(work.clone()) {
            self.lane(&work).push_back(work);
        }
    }

    fn lane(&mut self, work: &Work) -> &mut VecDeque<Work> {
        match work {
            Work::LetGo(_) => &mut self.let_go,
            Work::Settle(_) | Work::Mark(_) => &mut self.build,
            Work::Unmark(_) | Work::Trim(_) => &mut self.remove,
        }
    }

    pub(super) fn pop(&mut self) -> Option<Work> {
        let work = self
            .let_go
            .pop_front()
            .or_else(|| self.build.pop_front())
            .or_else(|| self.remove.pop_front())?;
        self.queued.remove(&work);
        Some(work)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queued.is_empty()
    }

    /// Must removals of frontends wait, so that insertions get their turn?
    pub(super) fn inserts_wait(&self) -> bool {
        !self.inserts.is_empty()
    }

    pub(super) fn done(&mut self, now: Instant, work: Work, done: Result<Done, ReconcileError>) {
        match done {
            Ok(Done::All) => self.forget(&work),
            Ok(Done::More) => {
                if self.queued.insert(work.clone()) {
                    self.lane(&work).push_front(work);
                }
            }
            Ok(Done::AfterGrace) => {
                self.forget(&work);
                match work {
                    Work::Settle(_) | Work::Mark(_) => self.inserts.insert(work),
                    _ => self.removals.insert(work),
                };
            }
            Ok(Done::Held(frontend)) => {
                self.forget(&work);
                self.wait_for(frontend, work);
            }
            Err(error) => self.failed(now, work, error),
        }
    }

    fn failed(&mut self, now: Instant, work: Work, error: ReconcileError) {
        let (since, attempts) = self
            .failures
            .get(&work)
            .map_or((now, 0), |failure| (failure.since, failure.attempts));
        self.forget(&work);
        let backoff = BACKOFF_FIRST
            .saturating_mul(1 << attempts.min(16))
            .min(BACKOFF_MAX);
        let retry_at = now + backoff;
        self.retry.insert((retry_at, work.clone()));
        if let ReconcileError::FrontendTaken { frontend, .. } = error {
            self.wait_for(frontend, work.clone());
        }
        self.failures.insert(
            work,
            Failure {
                since,
                attempts: attempts + 1,
                error,
                retry_at,
            },
        );
    }

    fn wait_for(&mut self, frontend: Frontend, work: Work) {
        self.rivals
            .entry(frontend)
            .or_default()
            .insert(work.clone());
        self.waiting.insert(work, frontend);
    }

    /// Drops what is known of failures of this work, and what it waits for.
    pub(super) fn forget(&mut self, work: &Work) {
        if let Some(failure) = self.failures.remove(work) {
            self.retry.remove(&(failure.retry_at, work.clone()));
        }
        if let Some(frontend) = self.waiting.remove(work)
            && let Some(rivals) = self.rivals.get_mut(&frontend)
        {
            rivals.remove(work);
            if rivals.is_empty() {
                self.rivals.remove(&frontend);
            }
        }
    }

    /// Queues the failed work that is due.
    pub(super) fn wake(&mut self, now: Instant) {
        while self.retry.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, work)) = self.retry.pop_first() {
                self.push(work);
            }
        }
    }

    /// Queues the work that waits for this frontend: it is gone, or somebody wants it no more, or again.
    pub(super) fn wake_rivals(&mut self, frontend: Frontend) {
        for work in self.rivals.get(&frontend).cloned().unwrap_or_default() {
            self.push(work);
        }
    }

    /// Something was freed: the work that is due first of those that found a table full is tried now. One for each
    /// thing freed, so that a table that stays full costs no more than what is freed.
    pub(super) fn wake_full(&mut self) {
        let full = |work: &Work| {
            let failure = self.failures.get(work);
            failure.is_some_and(|failure| {
                matches!(
                    failure.error,
                    ReconcileError::Table(TableError::Full { .. })
                )
            })
        };
        let first = self
            .retry
            .iter()
            .find(|(_, work)| full(work) && !self.queued.contains(work));
        if let Some((_, work)) = first.cloned() {
            self.push(work);
        }
    }

    /// Frontends may be inserted again: first those that waited, then the removals that let them go before.
    pub(super) fn end_waiting(&mut self) {
        for work in std::mem::take(&mut self.inserts)
            .into_iter()
            .chain(std::mem::take(&mut self.removals))
        {
            self.push(work);
        }
    }

    /// A backlog's memory is not kept for the next one.
    pub(super) fn shrink(&mut self) {
        if self.queued.is_empty() && self.queued.capacity() > 1024 {
            self.queued.shrink_to_fit();
            for lane in [&mut self.let_go, &mut self.build, &mut self.remove] {
                lane.shrink_to_fit();
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.retry.first().map(|(at, _)| *at)
    }

    pub(super) fn failures(&self) -> impl Iterator<Item = (&Work, &Failure)> {
        self.failures.iter()
    }

    /// Work that is queued or waits, without what failed.
    pub(super) fn pending(&self) -> usize {
        let waits = |work: &&Work| !self.failures.contains_key(work);
        let waiting = self.waiting.keys().filter(waits).count();
        self.queued.len() + self.inserts.len() + self.removals.len() + waiting
    }
}
