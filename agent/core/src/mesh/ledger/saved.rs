use std::ops::Bound::{Excluded, Unbounded};

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::Past;
use crate::mesh::{RowKey, Rows};

/// Changes that a state file holds: what a consumer missed that was away while its mesh server restarted.
const SAVED_MAX: usize = 4096;

/// A ledger's memory as a state file holds it. To make one costs a few words; whoever serialises it does the work.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
#[serde(from = "Lists", into = "Lists")]
pub struct SavedHistory {
    past: Past,
}

#[derive(PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
struct Lists {
    /// Changes at or before it are not known.
    forgotten: u64,
    sequence: u64,
    log: Vec<(u64, RowKey)>,
    /// Place and digest.
    states: Vec<(u64, u64)>,
}

impl SavedHistory {
    pub(super) fn of(past: &Past) -> Self {
        Self { past: past.clone() }
    }

    /// As a ledger of `rows` goes on with it; nothing, if it could be nobody's.
    pub(super) fn past(self, rows: &Rows) -> Past {
        let mut past = self.past;
        let last = past.log.get_max().map_or(0, |(place, _)| *place);
        let last = last.max(past.states.get_max().map_or(0, |(place, _)| *place));
        let possible = last <= past.sequence
            && past.forgotten <= past.sequence
            && past.sequence < u64::MAX / 2
            && past.places.len() == past.log.len();
        if !possible {
            return Past::default();
        }
        let gone = past.log.iter().filter(|(_, key)| !rows.contains(key));
        past.gone = gone.map(|(place, _)| *place).collect();
        past
    }
}

/// As files.
impl PartialEq for SavedHistory {
    fn eq(&self, other: &Self) -> bool {
        Lists::from(self.clone()) == Lists::from(other.clone())
    }
}

impl From<SavedHistory> for Lists {
    fn from(saved: SavedHistory) -> Self {
        let past = saved.past;
        let surplus = past.log.len().saturating_sub(SAVED_MAX);
        let last_left_out = surplus.checked_sub(1);
        let last_left_out = last_left_out.and_then(|n| past.log.keys().nth(n).copied());
        let forgotten = last_left_out.unwrap_or_default().max(past.forgotten);
        let log = past.log.range((Excluded(forgotten), Unbounded));
        Self {
            forgotten,
            sequence: past.sequence,
            log: log.map(|(place, key)| (*place, key.clone())).collect(),
            states: past.states.range((forgotten, 0)..).copied().collect(),
        }
    }
}

impl From<Lists> for SavedHistory {
    fn from(lists: Lists) -> Self {
        let places = lists.log.iter().map(|(place, key)| (key.clone(), *place));
        let named = lists.states.iter().map(|(place, digest)| (*digest, *place));
        Self {
            past: Past {
                sequence: lists.sequence,
                places: places.collect(),
                named: named.collect(),
                log: lists.log.into_iter().collect::<OrdMap<_, _>>(),
                gone: OrdSet::new(),
                forgotten: lists.forgotten,
                states: lists.states.into_iter().collect(),
            },
        }
    }
}
