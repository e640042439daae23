use std::collections::BTreeMap;

use super::{Pending, Service, Sid};
use crate::model::ObjectName;

/// Service ports by [`Sid`], and by their index in the maps.
#[derive(Debug, Default)]
pub(super) struct Services {
    rows: Vec<Option<Service>>,
    free: Vec<Sid>,
    by_index: BTreeMap<u32, Sid>,
}

impl Services {
    pub(super) fn insert(&mut self, service: Service) -> Sid {
        let index = service.index;
        let sid = if let Some(sid) = self.free.pop() {
            self.rows[sid as usize] = Some(service);
            sid
        } else {
            self.rows.push(Some(service));
            // The next index is excluded from ranges of members, so one number is never given.
            Sid::try_from(self.rows.len() - 1)
                .ok()
                .filter(|&sid| sid < Sid::MAX)
                .expect("fewer than 2^32 - 1 service ports")
        };
        if let Some(index) = index {
            self.by_index.insert(index, sid);
        }
        sid
    }

    pub(super) fn get(&self, sid: Sid) -> Option<&Service> {
        self.rows.get(sid as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, sid: Sid) -> Option<&mut Service> {
        self.rows.get_mut(sid as usize)?.as_mut()
    }

    pub(super) fn pair_mut(&mut self, one: Sid, other: Sid) -> Option<[&mut Service; 2]> {
        let pair = self
            .rows
            .get_disjoint_mut([one as usize, other as usize])
            .ok()?;
        let [Some(one), Some(other)] = pair else {
            return None;
        };
        Some([one, other])
    }

    pub(super) fn set_index(&mut self, sid: Sid, index: u32) {
        if let Some(service) = self.get_mut(sid) {
            service.index = Some(index);
            self.by_index.insert(index, sid);
        }
    }

    pub(super) fn remove(&mut self, sid: Sid) -> Option<Service> {
        let service = self.rows.get_mut(sid as usize)?.take()?;
        self.free.push(sid);
        if let Some(index) = service.index {
            self.by_index.remove(&index);
        }
        Some(service)
    }

    pub(super) fn by_index(&self, index: u32) -> Option<Sid> {
        self.by_index.get(&index).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Sid, &Service)> {
        (0..)
            .zip(&self.rows)
            .filter_map(|(sid, row)| Some((sid, row.as_ref()?)))
    }
}

impl Pending {
    /// Also what was not in question before.
    pub(super) fn whole(self) -> Self {
        match self {
            Self::Foreign => Self::Foreign,
            _ => Self::Whole,
        }
    }
}

impl Service {
    /// The Service whose port this is.
    pub(super) fn object(&self) -> Option<&ObjectName> {
        self.name.as_ref().map(|(object, _)| object)
    }

    pub(super) fn is_going(&self) -> bool {
        self.wanted.is_empty()
    }

    /// A wanted frontend leads here.
    pub(super) fn serves_wanted(&self) -> bool {
        self.present
            .iter()
            .any(|frontend| self.wanted.contains(frontend))
    }

    /// Every wanted frontend leads here.
    pub(super) fn is_settled(&self) -> bool {
        self.wanted
            .iter()
            .all(|frontend| self.present.contains(frontend))
    }

    /// Notes that a backend may stand in the wrong place. Many of them are the whole service.
    pub(super) fn touch(&mut self, key: super::BackendKey) {
        let most = (4 + self.members as usize / 4).min(64);
        match &mut self.pending {
            Pending::Whole | Pending::Foreign => {}
            Pending::Nothing => self.pending = Pending::Backends(vec![key]),
            Pending::Backends(keys) if keys.len() >= most => self.pending = Pending::Whole,
            Pending::Backends(keys) => {
                if !keys.contains(&key) {
                    keys.push(key);
                }
            }
        }
    }
}
