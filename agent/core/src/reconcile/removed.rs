//! Backends that are gone for good: who is still connected to one of UDP would never hear of it.

use std::collections::BTreeSet;

use isthmus_abi::{BackendRow, ScopeProtocol};

use super::Reconciler;
use crate::model::Address;

impl Reconciler {
    /// No program can send there any more.
    pub(super) fn note_removed(&mut self, row: &BackendRow) {
        if u16::from(row.protocol) == ScopeProtocol::UDP {
            let place = (Address::from_words(row.address), row.net_port().to_host());
            self.removed.insert(place);
        }
    }

    /// Where backends of UDP stood, before the last rounds, that some service has no longer. Another service, or the same
    /// one anew, may have one there still. Take it after each round: so it is never more than a round can remove.
    pub fn take_removed(&mut self) -> BTreeSet<(Address, u16)> {
        std::mem::take(&mut self.removed)
    }
}
