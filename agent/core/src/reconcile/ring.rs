//! Gives backends their rows, and moves a service's ring to what is wanted.

use isthmus_abi::{BackendRow, NetPort, Ring, Slot, TierHead, backend_state};

use super::grace::Retired;
use super::layout::{LiveRing, lay, slots_needed};
use super::queue::Done;
use super::spans::Span;
use super::write::{BACKENDS_FLAG, SLOTS_FLAG};
use super::{Member, Pending, Place, ReconcileError, Reconciler, Sid};
use crate::desired::{BackendKey, Rank};
use crate::model::{Address, ClusterId, Protocol};
use crate::table::TableError;

/// A backend whose place is not what is wanted.
#[derive(Clone, Copy, Debug)]
struct Move {
    key: BackendKey,
    from: Option<Place>,
    to: Option<Rank>,
}

impl Reconciler {
    /// Backends in question: all of a service's, or those that were touched.
    fn pending_keys(&self, sid: Sid) -> Vec<BackendKey> {
        match self.services.get(sid).map(|service| &service.pending) {
            None | Some(Pending::Nothing) => Vec::new(),
            Some(Pending::Backends(keys)) => keys.clone(),
            Some(Pending::Whole | Pending::Foreign) => self
                .members
                .range(Self::member_range(sid))
                .map(|((_, key), _)| *key)
                .collect(),
        }
    }

    /// Writes a complete row for each wanted backend that has none. After a failure the others still get theirs.
    pub(super) fn house_backends(&mut self, sid: Sid, index: u32) -> Result<Done, ReconcileError> {
        let protocol = self
            .services
            .get(sid)
            .and_then(|service| service.name.as_ref());
        let Some(protocol) = protocol.map(|(_, key)| key.protocol) else {
            return Ok(Done::All);
        };
        let mut failed = None;
        for key in self.pending_keys(sid) {
            let homeless = |member: &Member| member.wanted.is_some() && member.id.is_none();
            if !self.members.get(&(sid, key)).is_some_and(homeless) {
                continue;
            }
            if !self.has_budget() {
                return Ok(Done::More);
            }
            match self.house(index, protocol, key) {
                Ok(id) => {
                    if let Some(member) = self.members.get_mut(&(sid, key)) {
                        member.id = Some(id);
                    }
                }
                Err(error @ TableError::Full { .. }) => return Err(error.into()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Done::All), |error| Err(error.into()))
    }

    fn house(
        &mut self,
        index: u32,
        protocol: Protocol,
        key: BackendKey,
    ) -> Result<u32, TableError> {
        let capacity = self.backends.ids.capacity();
        let full = TableError::Full {
            table: self.tables.backends.name(),
            capacity,
            flag: BACKENDS_FLAG,
        };
        let id = self.backends.ids.take().ok_or(full)?;
        let generation = self.backends.row(id).generation;
        let row = BackendRow {
            address: key.address.words(),
            port: NetPort::from_host(key.port).net(),
            cluster: key.cluster.get(),
            service: index,
            // 0 is an id that never lived, also once the count has gone round.
            generation: generation.checked_add(1).unwrap_or(1),
            state: backend_state::LIVE,
            protocol: u8::try_from(protocol.abi()).expect("a protocol number is below 16"),
            reserved: [0; 2],
        };
        // What was learned in an earlier life is not this one's. No slot names the id: programs do not write there.
        let zeroed = if generation == 0 {
            Ok(())
        } else {
            self.forget_backend(id)
        };
        let written = zeroed.and_then(|()| self.put_backend(id, row));
        if let Err(error) = written {
            self.backends.ids.free(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Brings the ring to what is wanted of backends that have rows, and retires what it has left. With `incomplete`
    /// backends a ring is not emptied.
    pub(super) fn move_ring(
        &mut self,
        sid: Sid,
        index: u32,
        incomplete: bool,
    ) -> Result<(), ReconcileError> {
        let mut keys = self.pending_keys(sid);
        let moves = self.needed_moves(sid, &keys);
        let fits = |this: &Self, moves: &[Move]| {
            this.services
                .get(sid)
                .is_some_and(|service| !service.ring.broken && patchable(&service.ring, moves))
        };
        if fits(self, &moves) {
            self.patch_or_break(sid, index, &moves)?;
        } else {
            // As much work as the ring is long, whatever comes of it.
            self.relabel(sid);
            keys = self
                .members
                .range(Self::member_range(sid))
                .map(|((_, key), _)| *key)
                .collect();
            let moves = self.needed_moves(sid, &keys);
            if fits(self, &moves) {
                self.patch_or_break(sid, index, &moves)?;
            } else if !self.rebuild(sid, index, incomplete)? {
                return Ok(());
            }
        }
        self.retire_members(sid, &keys);
        Ok(())
    }

    fn patch_or_break(&mut self, sid: Sid, index: u32, moves: &[Move]) -> Result<(), TableError> {
        let patched = self.patch(sid, index, moves);
        if let (Err(_), Some(service)) = (&patched, self.services.get_mut(sid)) {
            service.ring.broken = true;
            service.pending = service.pending.clone().whole();
        }
        patched
    }

    fn needed_moves(&self, sid: Sid, keys: &[BackendKey]) -> Vec<Move> {
        keys.iter()
            .filter_map(|key| self.needed_move(sid, *key))
            .collect()
    }

    /// The tiers as they stand may be those wanted, under other ranks: then only the labels move.
    fn relabel(&mut self, sid: Sid) {
        let members = self.members.range(Self::member_range(sid));
        let ranks: std::collections::BTreeSet<_> =
            members.filter_map(|(_, member)| member.target()).collect();
        let Some(service) = self.services.get_mut(sid) else {
            return;
        };
        if ranks.len() == service.ring.tiers.len() {
            for (tier, rank) in service.ring.tiers.iter_mut().zip(ranks) {
                tier.rank = rank;
            }
        }
    }

    fn needed_move(&self, sid: Sid, key: BackendKey) -> Option<Move> {
        let member = self.members.get(&(sid, key))?;
        let tiers = &self.services.get(sid)?.ring.tiers;
        let from = member.place;
        let stands = from
            .and_then(|place| tiers.get(usize::from(place.tier)))
            .map(|tier| tier.rank);
        let to = member.target();
        (stands != to).then_some(Move { key, from, to })
    }

    /// Appends, then moves between tiers, then removals, so that no tier is empty on the way.
    fn patch(&mut self, sid: Sid, index: u32, moves: &[Move]) -> Result<(), TableError> {
        let appends = moves.iter().filter(|m| m.from.is_none());
        let crossings = moves.iter().filter(|m| m.from.is_some() && m.to.is_some());
        let removals = moves.iter().filter(|m| m.to.is_none());
        for m in appends.chain(crossings).chain(removals) {
            let to =
                m.to.map(|rank| self.append(sid, index, m.key, rank))
                    .transpose()?;
            // Read now: a removal before this one may have moved it.
            let from = self
                .members
                .get(&(sid, m.key))
                .and_then(|member| member.place);
            if let Some(from) = from {
                self.take_out(sid, index, from)?;
            }
            if let Some(member) = self.members.get_mut(&(sid, m.key)) {
                member.place = to.flatten();
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        sid: Sid,
        index: u32,
        key: BackendKey,
        rank: Rank,
    ) -> Result<Option<Place>, TableError> {
        let id = self.members.get(&(sid, key)).and_then(|member| member.id);
        let ring = self.services.get(sid).map(|service| &service.ring);
        let (Some(id), Some(ring)) = (id, ring) else {
            return Ok(None);
        };
        let (Some(span), Some(tier)) = (
            ring.span,
            ring.tiers.iter().position(|tier| tier.rank == rank),
        ) else {
            return Ok(None);
        };
        let slot = ring.tiers[tier].len();
        let at = span.at + ring.tiers[tier].offset + slot;
        self.put_slot(at, Slot::new(id, index))?;
        self.with_tier(sid, tier, |ids| ids.push(id));
        self.publish_len(sid, index, tier)?;
        Ok(Some(Place {
            tier: u8::try_from(tier).expect("a tier a rank"),
            slot,
        }))
    }

    /// The last slot goes over the one removed: for a moment its backend has two slots.
    fn take_out(&mut self, sid: Sid, index: u32, from: Place) -> Result<(), TableError> {
        let tier = usize::from(from.tier);
        let Some(ring) = self.services.get(sid).map(|service| &service.ring) else {
            return Ok(());
        };
        let (Some(span), Some(live)) = (ring.span, ring.tiers.get(tier)) else {
            return Ok(());
        };
        let (at, last) = (span.at + live.offset + from.slot, live.len() - 1);
        if from.slot != last {
            let id = live.ids[last as usize];
            self.put_slot(at, Slot::new(id, index))?;
            if let Some(member) = self
                .key_of(id)
                .and_then(|key| self.members.get_mut(&(sid, key)))
            {
                member.place = Some(from);
            }
        }
        self.with_tier(sid, tier, |ids| {
            ids.swap_remove(from.slot as usize);
        });
        self.publish_len(sid, index, tier)
    }

    fn with_tier(&mut self, sid: Sid, tier: usize, change: impl FnOnce(&mut Vec<u32>)) {
        if let Some(tier) = self
            .services
            .get_mut(sid)
            .and_then(|service| service.ring.tiers.get_mut(tier))
        {
            change(&mut tier.ids);
        }
    }

    fn publish_len(&mut self, sid: Sid, index: u32, tier: usize) -> Result<(), TableError> {
        let Some(ring) = self.services.get(sid).map(|service| &service.ring) else {
            return Ok(());
        };
        let (Some(span), Some(live)) = (ring.span, ring.tiers.get(tier)) else {
            return Ok(());
        };
        match u32::try_from(tier).unwrap_or(u32::MAX).checked_sub(1) {
            None => {
                let word = ring.word();
                self.put_ring(index, word)
            }
            Some(head) => {
                let (at, word) = (span.at + head, TierHead::new(live.offset, live.len()));
                self.put_slot(at, Slot(word.0))
            }
        }
    }

    /// The backend that a row names: the rows are the reverse of `members`.
    fn key_of(&self, id: u32) -> Option<BackendKey> {
        backend_key(&self.backends.row(id))
    }

    /// Lays the ring anew and moves it in one word. False if it stays as it is, for want of backends.
    fn rebuild(&mut self, sid: Sid, index: u32, incomplete: bool) -> Result<bool, TableError> {
        let tiers = self.targets(sid);
        if tiers.is_empty() {
            if !incomplete {
                self.empty_ring(sid, index)?;
            }
            return Ok(!incomplete);
        }
        let capacity = self.spans.capacity();
        let full = TableError::Full {
            table: self.tables.slots.name(),
            capacity,
            flag: SLOTS_FLAG,
        };
        let span = slots_needed(&tiers)
            .and_then(|slots| self.spans.take(slots))
            .ok_or(full)?;
        let mut ring = lay(span, tiers);
        ring.sticky = self.wants_affinity(sid);
        let moved = self
            .write_span(index, span, &ring)
            .and_then(|()| self.put_ring(index, ring.word()));
        if let Err(error) = moved {
            // No word ever led there.
            self.spans.free(span);
            return Err(error);
        }
        ring.written = true;
        self.note_places(sid, &ring);
        self.replace_ring(sid, ring);
        Ok(true)
    }

    fn wants_affinity(&self, sid: Sid) -> bool {
        self.services
            .get(sid)
            .is_some_and(|service| service.limits.rules.affinity_seconds != 0)
    }

    /// Has the ring's word say whether the service asks for session affinity.
    pub(super) fn mark_sticky(&mut self, sid: Sid, index: u32) -> Result<(), TableError> {
        let sticky = self.wants_affinity(sid);
        let Some(service) = self.services.get(sid) else {
            return Ok(());
        };
        let ring = &service.ring;
        if !ring.written || ring.broken || ring.sticky == sticky {
            return Ok(());
        }
        let word = ring.word().with_affinity(sticky);
        self.put_ring(index, word)?;
        if let Some(service) = self.services.get_mut(sid) {
            service.ring.sticky = sticky;
        }
        Ok(())
    }

    /// Moves the ring to no backend at all.
    fn empty_ring(&mut self, sid: Sid, index: u32) -> Result<(), TableError> {
        if self
            .services
            .get(sid)
            .is_some_and(|service| service.ring.written)
        {
            self.put_ring(index, Ring::EMPTY)?;
        }
        for (_, member) in self.members.range_mut(Self::member_range(sid)) {
            member.place = None;
        }
        self.replace_ring(sid, LiveRing::default());
        Ok(())
    }

    /// The word has moved.
    fn replace_ring(&mut self, sid: Sid, ring: LiveRing) {
        if let Some(service) = self.services.get_mut(sid) {
            let left = std::mem::replace(&mut service.ring, ring);
            if let Some(span) = left.span {
                self.grace.retire(Retired::Span(span));
            }
        }
    }

    /// What stands in the ring was another Service's: no backend at all is better.
    pub(super) fn empty_foreign_ring(&mut self, sid: Sid, index: u32) -> Result<(), TableError> {
        let keys = self.pending_keys(sid);
        self.empty_ring(sid, index)?;
        self.retire_members(sid, &keys);
        Ok(())
    }

    /// Backends by rank, in the order of their keys.
    fn targets(&self, sid: Sid) -> Vec<(Rank, Vec<u32>)> {
        let mut tiers = std::collections::BTreeMap::<Rank, Vec<u32>>::new();
        for (_, member) in self.members.range(Self::member_range(sid)) {
            if let (Some(rank), Some(id)) = (member.target(), member.id) {
                tiers.entry(rank).or_default().push(id);
            }
        }
        tiers.into_iter().collect()
    }

    fn write_span(&mut self, index: u32, span: Span, ring: &LiveRing) -> Result<(), TableError> {
        for (head, tier) in (span.at..).zip(ring.tiers.iter().skip(1)) {
            self.put_slot(head, Slot(TierHead::new(tier.offset, tier.len()).0))?;
        }
        for tier in &ring.tiers {
            for (at, &id) in (span.at + tier.offset..).zip(&tier.ids) {
                self.put_slot(at, Slot::new(id, index))?;
            }
        }
        Ok(())
    }

    /// Every backend's place in a ring laid by [`Self::targets`], which went through the members in the same order.
    fn note_places(&mut self, sid: Sid, ring: &LiveRing) {
        let mut next = vec![0_u32; ring.tiers.len()];
        for (_, member) in self.members.range_mut(Self::member_range(sid)) {
            let tier = member
                .target()
                .and_then(|rank| ring.tiers.iter().position(|tier| tier.rank == rank));
            member.place = tier.map(|tier| {
                let slot = next[tier];
                next[tier] += 1;
                Place {
                    tier: u8::try_from(tier).expect("a tier a rank"),
                    slot,
                }
            });
        }
    }

    /// Lets go of backends that nobody wants and no slot of the ring names.
    fn retire_members(&mut self, sid: Sid, keys: &[BackendKey]) {
        for key in keys {
            let Some(member) = self.members.get(&(sid, *key)) else {
                continue;
            };
            if member.wanted.is_some() || member.place.is_some() {
                continue;
            }
            if let Some(id) = member.id {
                self.grace.retire(Retired::Backend(id));
            }
            self.members.remove(&(sid, *key));
            if let Some(service) = self.services.get_mut(sid) {
                service.members -= 1;
            }
        }
    }
}

pub(super) fn backend_key(row: &BackendRow) -> Option<BackendKey> {
    let cluster = ClusterId::try_from(row.cluster).ok()?;
    Some(BackendKey {
        cluster,
        address: Address::from_words(row.address),
        port: row.net_port().to_host(),
    })
}

/// Can these moves be done slot by slot? Every tier must be there, have room, and never run empty; and there must be
/// few enough that a fresh span would cost more.
fn patchable(ring: &LiveRing, moves: &[Move]) -> bool {
    let tier_of = |rank| ring.tiers.iter().position(|tier| tier.rank == rank);
    let count = |want: &dyn Fn(&Move) -> bool| {
        u32::try_from(moves.iter().filter(|m| want(m)).count()).unwrap_or(u32::MAX)
    };
    if moves.is_empty() {
        return true;
    }
    moves.len() <= 1 + ring.len() / 4
        && moves
            .iter()
            .filter_map(|m| m.to)
            .all(|rank| tier_of(rank).is_some())
        && ring.tiers.iter().enumerate().all(|(at, tier)| {
            let comes = count(&|m| m.to == Some(tier.rank));
            // Those that cross come too late to count on.
            let comes_first = count(&|m| m.to == Some(tier.rank) && m.from.is_none());
            let goes = count(&|m| m.from.is_some_and(|place| usize::from(place.tier) == at));
            tier.len() + comes <= tier.room && tier.len() + comes_first > goes
        })
}
