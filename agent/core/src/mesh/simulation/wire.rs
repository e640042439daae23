//! Streams between the parties, and what came over them.

use std::collections::VecDeque;

use super::*;

/// One stream: what the server wrote and the consumer has not read.
pub(super) struct Wire {
    pub(super) watcher: Watcher,
    pub(super) hello: ConsumerHello,
    pub(super) queue: VecDeque<Sequenced>,
    /// Half-open: both sides write, nothing arrives.
    pub(super) void: bool,
    /// The consumer reads one message a step.
    pub(super) slow: bool,
    pub(super) heard: Instant,
}

/// Messages that wait in a stream; beyond them the server waits.
pub(super) const QUEUE: usize = 4;

impl Wire {
    pub(super) fn new(watcher: Watcher, hello: ConsumerHello, now: Instant) -> Self {
        Self {
            watcher,
            hello,
            queue: VecDeque::new(),
            void: false,
            slow: false,
            heard: now,
        }
    }

    pub(super) fn fill(&mut self, view: &View, now: Instant) {
        while self.queue.len() < QUEUE
            && let Some(said) = self.watcher.poll(view, now)
        {
            self.queue.push_back(said);
        }
        if self.void {
            self.queue.clear();
        } else {
            self.watcher.heard(now);
        }
    }

    /// What the consumer reads in one step.
    pub(super) fn read(&mut self) -> Vec<Sequenced> {
        let n = if self.slow { 1 } else { self.queue.len() };
        self.queue.drain(..n.min(self.queue.len())).collect()
    }
}

/// What came over a wire.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Traffic {
    pub(super) rows: usize,
    pub(super) beginnings: Vec<Beginning>,
}

impl Traffic {
    pub(super) fn note(&mut self, said: &Sequenced) {
        match &said.message {
            FromServer::Rows { changes, .. } => self.rows += changes.len(),
            FromServer::Start { beginning, .. } => self.beginnings.push(*beginning),
            _ => {}
        }
    }
}
