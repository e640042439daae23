use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::super::{Cluster, Epoch, Rows, SavedHistory, SavedPublisher, SavedSilence};

/// A [`Hub`](super::Hub) as a state file holds it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SavedHub {
    pub publisher: SavedPublisher,
    pub links: Vec<SavedLink>,
}

/// A linked cluster as a state file holds it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SavedLink {
    pub cluster: Cluster,
    pub silence: SavedSilence,
    pub rows: Rows,
    #[serde(default)]
    pub history: SavedHistory,
    /// The rows are those that their position names for the peer too: none is left out, none kept against its word.
    #[serde(default)]
    pub exact: bool,
    /// Where its endpoints are, as it said when it was first connected.
    #[serde(default)]
    pub learnt: Option<Vec<IpNet>>,
}

impl SavedHub {
    /// The state of a mesh server that never ran. `epoch` is random.
    #[must_use]
    pub fn empty(epoch: Epoch) -> Self {
        Self {
            publisher: SavedPublisher::empty(epoch),
            links: Vec::new(),
        }
    }
}
