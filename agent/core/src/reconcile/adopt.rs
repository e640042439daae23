//! Reads back what an earlier agent left in the maps. Nothing is renumbered, and nothing is written here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use isthmus_abi::{BackendRow, Ring, ServiceLimitsRow, Slot, TIERS_MAX, TierHead, backend_state};

use super::grace::{Grace, Retired};
use super::ids::{Backends, Ids};
use super::layout::{LiveRing, LiveTier};
use super::limits::Limits;
use super::marks::KeptOut;
use super::queue::{Queues, Work};
use super::ring::backend_key;
use super::services::Services;
use super::spans::{Span, Spans};
use super::write::frontend_of;
use super::{ADDRESS_ONLY, Member, Pending, Place, Reconciler, Service};
use crate::desired::{BackendKey, Frontend, Rank};
use crate::model::{Address, ClusterId};
use crate::table::{TableError, Tables};

/// What was found in the maps. All zero if they were new.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Adopted {
    pub services: u32,
    pub frontends: u32,
    pub backends: u32,
    /// Services and backends that nothing leads to: a crash's leftovers, to be freed.
    pub leftovers: u32,
    /// Rings that no agent of this version can have written, to be laid anew.
    pub broken: u32,
}

/// The maps' rows, read whole.
struct Found {
    frontends: HashMap<Frontend, u32>,
    rings: BTreeMap<u32, Ring>,
    slots: Vec<u64>,
    backends: Vec<BackendRow>,
    limits: BTreeMap<u32, ServiceLimitsRow>,
}

/// A ring's backends in their places.
struct Reading {
    ring: LiveRing,
    members: Vec<(BackendKey, Member)>,
}

impl Reconciler {
    /// Starts from what the maps hold. `local` is this node's cluster. What is found there stays until its owner is
    /// released ([`crate::desired::Change::Release`]), as far as nothing else is said of it.
    ///
    /// Let a grace period pass between the end of the earlier writer and this call: what the maps do not lead to is
    /// taken for unread. New maps need none.
    ///
    /// # Errors
    /// A table that cannot be read.
    pub fn adopt(tables: Tables, local: ClusterId) -> Result<(Self, Adopted), TableError> {
        let found = Found::read(&tables)?;
        let live = |id: u32| {
            found
                .backends
                .get(id as usize)
                .is_some_and(|row| row.state == backend_state::LIVE)
        };
        let mut adopted = Adopted::default();
        let mut by_index = BTreeMap::<u32, Vec<Frontend>>::new();
        for (&frontend, &index) in found
            .frontends
            .iter()
            .filter(|(_, index)| **index != ADDRESS_ONLY)
        {
            by_index.entry(index).or_default().push(frontend);
        }
        let taken: BTreeSet<u32> = by_index.keys().chain(found.rings.keys()).copied().collect();
        let mut this = Self {
            local,
            objects: BTreeMap::new(),
            services: Services::default(),
            members: BTreeMap::new(),
            kept: found.frontends.keys().copied().collect(),
            marks: HashMap::new(),
            kept_out: KeptOut::default(),
            indices: Ids::adopt(tables.rings.capacity(), |index| taken.contains(&index)),
            backends: Backends::new(Ids::adopt(tables.backends.capacity(), live), Vec::new()),
            spans: Spans::new(tables.slots.capacity()),
            deferred: BTreeSet::new(),
            grace: Grace::new(),
            removed: BTreeSet::new(),
            queues: Queues::default(),
            frontends: HashMap::new(),
            frontends6: 0,
            writes: 0,
            writes_failed: 0,
            round_end: 0,
            tables,
        };
        let mut named = BTreeSet::new();
        // All spans are claimed before any is given room to grow.
        let readings: Vec<_> = taken
            .into_iter()
            .map(|index| (index, found.read_ring(index, &mut this.spans)))
            .collect();
        for (index, mut reading) in readings {
            give_room(&mut reading.ring, &mut this.spans);
            named.extend(reading.members.iter().filter_map(|(_, member)| member.id));
            adopted.broken += u32::from(reading.ring.broken);
            match by_index.remove(&index) {
                Some(present) => {
                    adopted.services += 1;
                    adopted.frontends += u32::try_from(present.len()).unwrap_or(u32::MAX);
                    let limits = found.limits.get(&index).copied();
                    this.adopt_service(index, present, reading, limits);
                }
                None => {
                    adopted.leftovers += 1;
                    let backends = reading
                        .members
                        .iter()
                        .filter_map(|(_, member)| member.id)
                        .collect();
                    let span = reading.ring.span;
                    this.queues.push(Work::LetGo(Retired::Service {
                        index,
                        span,
                        backends,
                    }));
                }
            }
        }
        for id in (0..).take(found.backends.len()).filter(|&id| live(id)) {
            if named.contains(&id) {
                adopted.backends += 1;
            } else {
                adopted.leftovers += 1;
                this.queues.push(Work::LetGo(Retired::Backend(id)));
            }
        }
        let v6 = found.frontends.keys().filter(|row| !row.address.is_v4());
        this.frontends6 = u32::try_from(v6.count()).unwrap_or(u32::MAX);
        this.frontends = found.frontends;
        this.backends = Backends::new(this.backends.ids, found.backends);
        Ok((this, adopted))
    }

    fn adopt_service(
        &mut self,
        index: u32,
        present: Vec<Frontend>,
        reading: Reading,
        limits: Option<ServiceLimitsRow>,
    ) {
        let sid = self.services.insert(Service {
            name: None,
            wanted: Vec::new(),
            present,
            index: Some(index),
            // A row that no table shows is all zeros.
            limits: Limits::found(limits.unwrap_or_default()),
            ring: reading.ring,
            pending: Pending::Whole,
            members: u32::try_from(reading.members.len()).unwrap_or(u32::MAX),
        });
        self.members.extend(
            reading
                .members
                .into_iter()
                .map(|(key, member)| ((sid, key), member)),
        );
    }

    /// Clusters of which something is kept on trust: until each is released, what was found of it stays. One that is no
    /// longer linked has to be released by whoever knows that.
    #[must_use]
    pub fn kept_clusters(&self) -> BTreeSet<ClusterId> {
        let mut clusters: BTreeSet<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.kept)
            .map(|((_, key), _)| key.cluster)
            .collect();
        if !self.kept.is_empty() {
            clusters.insert(self.local);
        }
        clusters
    }
}

impl Found {
    fn read(tables: &Tables) -> Result<Self, TableError> {
        let mut frontends = HashMap::new();
        tables.frontends4.for_each(&mut |key, value| {
            let address = Address::from(std::net::Ipv4Addr::from(key.address.to_ne_bytes()));
            if let Some(frontend) = frontend_of(address, key.port, key.scope_protocol) {
                frontends.insert(frontend, value.service);
            }
        })?;
        tables.frontends6.for_each(&mut |key, value| {
            if let Some(frontend) = frontend_of(
                Address::from_words(key.address),
                key.port,
                key.scope_protocol,
            ) {
                frontends.insert(frontend, value.service);
            }
        })?;
        let mut rings = BTreeMap::new();
        tables.rings.for_each(&mut |index, ring| {
            if ring != Ring::EMPTY {
                rings.insert(index, ring);
            }
        })?;
        let mut slots = Vec::new();
        tables
            .slots
            .for_each(&mut |at, slot| put_at(&mut slots, at, slot.0))?;
        let mut backends = Vec::new();
        tables
            .backends
            .for_each(&mut |id, row| put_at(&mut backends, id, row))?;
        let mut limits = BTreeMap::new();
        tables.service_limits.for_each(&mut |index, row| {
            limits.insert(index, row);
        })?;
        Ok(Self {
            frontends,
            rings,
            slots,
            backends,
            limits,
        })
    }

    /// A zeroed row is not shown by a table.
    fn slot(&self, at: u32) -> u64 {
        self.slots.get(at as usize).copied().unwrap_or(0)
    }

    /// Reads a ring and claims its span: the part that is in use, which later only an append can find too small.
    /// What contradicts itself makes it broken; backends that can be believed are kept.
    fn read_ring(&self, index: u32, spans: &mut Spans) -> Reading {
        let word = self.rings.get(&index).copied().unwrap_or(Ring::EMPTY);
        let mut reading = Reading {
            ring: LiveRing::default(),
            members: Vec::new(),
        };
        if word == Ring::EMPTY {
            return reading;
        }
        reading.ring.written = true;
        reading.ring.sticky = word.is_sticky();
        let heads = u32::from(word.tiers()).saturating_sub(1);
        let mut tiers = vec![(heads, word.len())];
        tiers.extend((0..heads).map(|head| {
            let head = TierHead(self.slot(word.span().saturating_add(head)));
            (head.offset(), head.len())
        }));
        // Each tier begins where the one before has ended, or later: its room is what lies between.
        let ends = tiers
            .iter()
            .map(|(offset, len)| offset.checked_add(*len))
            .collect::<Option<Vec<_>>>();
        let ordered = ends.as_ref().is_some_and(|ends| {
            ends.iter()
                .zip(&tiers[1..])
                .all(|(end, next)| *end <= next.0)
        });
        let extent = ends.as_ref().and_then(|ends| ends.last().copied());
        let sound = ordered
            && word.tiers() > 0
            && usize::from(word.tiers()) <= TIERS_MAX
            && !word.is_empty();
        let span = extent
            .filter(|_| sound)
            .and_then(|extent| spans.claim(word.span(), extent));
        let Some(span) = span else {
            reading.ring.broken = true;
            return reading;
        };
        reading.ring.span = Some(span);
        self.read_tiers(index, span, &tiers, &mut reading);
        reading
    }

    fn read_tiers(&self, index: u32, span: Span, tiers: &[(u32, u32)], reading: &mut Reading) {
        let mut seen = BTreeSet::new();
        for (number, &(offset, len)) in tiers.iter().enumerate() {
            let until = tiers.get(number + 1).map_or(span.len(), |next| next.0);
            let rank = u8::try_from(number).unwrap_or(u8::MAX);
            let mut live = LiveTier {
                rank: Rank::from_raw(rank),
                offset,
                room: until - offset,
                ids: Vec::with_capacity(len as usize),
            };
            for place in 0..len {
                let slot = Slot(self.slot(span.at + offset + place));
                live.ids.push(slot.backend());
                let row = self
                    .backends
                    .get(slot.backend() as usize)
                    .copied()
                    .unwrap_or_default();
                let believed = slot.service() == index
                    && row.service == index
                    && row.state == backend_state::LIVE;
                match backend_key(&row) {
                    Some(key) if believed && seen.insert(key) => {
                        let place = Place {
                            tier: rank,
                            slot: place,
                        };
                        let member = Member {
                            wanted: None,
                            id: Some(slot.backend()),
                            place: Some(place),
                            kept: true,
                        };
                        reading.members.push((key, member));
                    }
                    // Also a removal or a change of tier that was cut short: its backend stands twice.
                    _ => reading.ring.broken = true,
                }
            }
            reading.ring.broken |= len == 0;
            reading.ring.tiers.push(live);
        }
    }
}

/// A span claimed by what it holds may have lost the half that was its room; it is taken back if it is free.
fn give_room(ring: &mut LiveRing, spans: &mut Spans) {
    let (Some(span), Some(last)) = (ring.span, ring.tiers.last_mut()) else {
        return;
    };
    if last.offset + last.len() == span.len()
        && let Some(wider) = spans.widen(span)
    {
        ring.span = Some(wider);
        last.room = wider.len() - last.offset;
    }
}

fn put_at<T: Copy + Default>(rows: &mut Vec<T>, at: u32, row: T) {
    let at = at as usize;
    if at >= rows.len() {
        rows.resize(at + 1, T::default());
    }
    rows[at] = row;
}
