//! Frontends that pass from one service port to another: a port with a new name, an address given to another Service.
//!
//! A row in the hash of frontends is never replaced, and between its removal and its insertion clients would miss it. But
//! what leads to a place (an index, its ring, its frontends) is a matter of names: so the two exchange places, and the
//! ring moves from the one's backends to the other's in one word, as for any change.

use super::queue::Work;
use super::{Member, Pending, Reconciler, Service, Sid};
use crate::desired::{BackendKey, Rank};

impl Reconciler {
    /// Whose place this service port can take: one with no frontend that is wanted there, and none that is not wanted
    /// here. None for a service port with a frontend of its own already: the rest has to be freed first.
    pub(super) fn giver(&self, sid: Sid) -> Option<Sid> {
        let service = self.services.get(sid)?;
        if service.serves_wanted() {
            return None;
        }
        let holders = service
            .wanted
            .iter()
            .filter_map(|frontend| self.services.by_index(*self.frontends.get(frontend)?));
        holders.filter(|holder| *holder != sid).find(|holder| {
            self.services.get(*holder).is_some_and(|holder| {
                holder.name.is_some()
                    && !holder.serves_wanted()
                    && holder.present.iter().all(|f| service.wanted.contains(f))
            })
        })
    }

    /// A service port that moves to other frontends waits once, until the rest of what is queued had its turn: of that,
    /// someone may want the frontends that it leaves, and then takes its place with them.
    pub(super) fn lets_others_first(&mut self, sid: Sid) -> bool {
        let moves = self
            .services
            .get(sid)
            .is_some_and(|service| !service.present.is_empty() && !service.serves_wanted());
        if !moves {
            self.deferred.remove(&sid);
        }
        moves && (self.deferred.insert(sid) || !self.deferred.remove(&sid))
    }

    /// Puts a service port in the place of its giver. The giver gets its place in turn, if it has none, or the giver wants
    /// all frontends there; else a new one, because what leads to a place is not for another meanwhile.
    pub(super) fn take_place(&mut self, sid: Sid, giver: Sid) {
        let fits = |service: &Service, giver: &Service| {
            service.present.iter().all(|f| giver.wanted.contains(f))
        };
        match (self.services.get(sid), self.services.get(giver)) {
            (Some(service), Some(other)) if fits(service, other) => {
                self.exchange_places(sid, giver);
            }
            _ => {
                if let Some(blank) = self.leave_place(sid) {
                    self.exchange_places(blank, giver);
                }
            }
        }
    }

    /// Gives a service port a place without anything. The old one goes.
    fn leave_place(&mut self, sid: Sid) -> Option<Sid> {
        let left = self.services.get_mut(sid)?;
        let (object, key) = left.name.clone()?;
        let wanted = std::mem::take(&mut left.wanted);
        let blank = self.create(&object, key);
        self.services.get_mut(blank)?.wanted = wanted;
        self.objects.entry(object).or_default().ports.push(blank);
        let wants = self.take_wants(sid, true);
        self.put_wants(blank, wants);
        self.queues.push(Work::Trim(sid));
        Some(blank)
    }

    /// Each gets the other's name, and what was wanted of it. Backends that both want stay as they are.
    fn exchange_places(&mut self, one: Sid, other: Sid) {
        let Some([first, second]) = self.services.pair_mut(one, other) else {
            return;
        };
        std::mem::swap(&mut first.name, &mut second.name);
        std::mem::swap(&mut first.wanted, &mut second.wanted);
        let same = first.object() == second.object();
        if same {
            for service in [&mut *first, &mut *second] {
                service.pending = std::mem::take(&mut service.pending).whole();
            }
        } else {
            (first.pending, second.pending) = (Pending::Foreign, Pending::Foreign);
        }
        let names = [first.object().cloned(), second.object().cloned()];
        if let [Some(first), Some(second)] = names
            && first != second
        {
            for (name, from, to) in [(first, other, one), (second, one, other)] {
                let ports = self.objects.get_mut(&name).map(|object| &mut object.ports);
                for port in ports.into_iter().flatten().filter(|port| **port == from) {
                    *port = to;
                }
            }
        }
        let (of_one, of_other) = (self.take_wants(one, same), self.take_wants(other, same));
        self.put_wants(one, of_other);
        self.put_wants(other, of_one);
        for sid in [one, other] {
            self.queues.push(Work::Settle(sid));
            self.queues.push(Work::Trim(sid));
        }
    }

    /// What was found in the maps is kept for the Service that it was found under, and for no other.
    fn take_wants(&mut self, sid: Sid, trust: bool) -> Vec<(BackendKey, Rank, bool)> {
        let members = self.members.range_mut(Self::member_range(sid));
        let wants = members.filter_map(|((_, key), member)| {
            let kept = std::mem::take(&mut member.kept);
            let wanted = member.wanted.take()?;
            (trust || !kept).then_some((*key, wanted, kept))
        });
        wants.collect()
    }

    fn put_wants(&mut self, sid: Sid, wants: Vec<(BackendKey, Rank, bool)>) {
        let Some(service) = self.services.get_mut(sid) else {
            return;
        };
        for (key, rank, kept) in wants {
            let member = self.members.entry((sid, key)).or_insert_with(|| {
                service.members += 1;
                Member::NEW
            });
            member.wanted = Some(rank);
            member.kept = kept;
        }
    }
}
