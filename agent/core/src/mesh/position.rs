use std::fmt;

use serde::{Deserialize, Serialize};

/// Names the life of a publisher's state directory: random, and never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// The last four hexadecimal digits: enough for people to see that it changed.
impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0 & 0xffff)
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A state of one cluster's rows. Equal positions have equal rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Position {
    pub epoch: Epoch,
    /// Counts changes within the epoch.
    pub revision: u64,
    /// Depends on the rows alone. A publisher that lost its last changes in a crash counts their revisions a second
    /// time, for other rows; by the digest nobody takes them for the first. Only publishers compute it.
    pub digest: u64,
}

/// `19c0/77`.
impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.revision)
    }
}
