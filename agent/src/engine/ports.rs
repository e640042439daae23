//! Which service ports stand in the maps, and to which tier their connections go: what people are told when it changes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use isthmus_core::desired::{PortKey, Rank};
use isthmus_core::model::ObjectName;
use isthmus_core::reconcile::Reconciler;
use isthmus_core::store::{Owner, Snapshot};

use crate::events::ServicePort;

/// Service ports by their index in the maps. A clone is O(1).
pub type PortIndex = imbl::HashMap<u32, Arc<ServicePort>>;

#[derive(Debug, Default)]
pub(super) struct Ports {
    /// By index.
    pub(super) index: PortIndex,
    known: HashMap<ObjectName, Vec<Known>>,
    /// What may have changed since it was last looked at.
    touched: BTreeSet<ObjectName>,
}

#[derive(Debug)]
struct Known {
    index: u32,
    port: Arc<ServicePort>,
    tier: Option<&'static str>,
}

/// A service port whose connections go to another tier than before, by the tiers' names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Moved {
    pub(super) port: Arc<ServicePort>,
    pub(super) before: Option<&'static str>,
    pub(super) now: Option<&'static str>,
}

impl Ports {
    pub(super) fn touch<'a>(&mut self, names: impl Iterator<Item = &'a ObjectName>) {
        self.touched.extend(names.cloned());
    }

    /// Looks at what was touched, as it stands in the maps. What is not settled yet is looked at again the next time.
    pub(super) fn review(&mut self, reconciler: &Reconciler, rows: &Snapshot) -> Vec<Moved> {
        let mut moved = Vec::new();
        for name in std::mem::take(&mut self.touched) {
            let row = rows.group(&name).service(Owner::Local);
            let affinity = row.map(|row| row.affinity).unwrap_or_default();
            let settled = reconciler.is_settled(&name);
            let mut before = self.known.remove(&name).unwrap_or_default();
            let mut now = Vec::new();
            for (index, key, first) in reconciler.ports(&name) {
                let tier = first.map(|rank: Rank| rank.name(affinity));
                now.push(
                    match before.iter().position(|known| known.port.key == *key) {
                        Some(place) => {
                            let known = before.swap_remove(place);
                            // A ring that is not as it should be yet has tiers of before.
                            let tier = if settled { tier } else { known.tier };
                            if known.tier != tier {
                                moved.push(Moved {
                                    port: known.port.clone(),
                                    before: known.tier,
                                    now: tier,
                                });
                            }
                            self.withdraw(&known);
                            Known {
                                index,
                                tier,
                                ..known
                            }
                        }
                        None => fresh(&name, key, index, tier),
                    },
                );
            }
            for gone in &before {
                self.withdraw(gone);
            }
            for known in &now {
                self.index.insert(known.index, known.port.clone());
            }
            if !settled {
                self.touched.insert(name.clone());
            }
            if !now.is_empty() {
                self.known.insert(name, now);
            }
        }
        moved
    }

    /// Its index may be another's by now.
    fn withdraw(&mut self, known: &Known) {
        let ours = self.index.get(&known.index);
        if ours.is_some_and(|port| Arc::ptr_eq(port, &known.port)) {
            self.index.remove(&known.index);
        }
    }
}

fn fresh(name: &ObjectName, key: &PortKey, index: u32, tier: Option<&'static str>) -> Known {
    let port = ServicePort {
        service: name.clone(),
        key: key.clone(),
    };
    Known {
        index,
        port: Arc::new(port),
        tier,
    }
}
