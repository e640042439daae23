//! Takes in changes of desired state. Nothing is written here: only what is wanted changes, and work is queued.

use super::queue::Work;
use super::{Member, Object, Pending, Reconciler, Service, Sid};
use crate::desired::{
    BackendKey, Change, DesiredEndpoint, DesiredPort, DesiredService, Frontend, PortKey, Rank,
    assumed,
};
use crate::model::{Address, ObjectName};
use crate::store::Owner;

impl Reconciler {
    /// Takes in one change; a service's whole state costs O(n log n), an endpoint's O(log n).
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Service(name, desired) => self.want_service(&name, desired),
            Change::Endpoint(name, endpoint) => self.want_endpoint(&name, &endpoint),
            Change::Release(owner) => self.release(owner),
        }
    }

    fn want_service(&mut self, name: &ObjectName, desired: DesiredService) {
        if !self.objects.contains_key(name) {
            if desired == DesiredService::default() {
                return;
            }
            self.objects.insert(name.clone(), Object::default());
        }
        self.want_addresses(name, desired.addresses);
        let before = self
            .objects
            .get(name)
            .map(|object| object.ports.clone())
            .unwrap_or_default();
        let mut going = before.clone();
        for port in desired.ports {
            // One that goes comes back only if there is no other.
            let known = before
                .iter()
                .copied()
                .filter(|&sid| self.is_port(sid, &port));
            let known =
                known.min_by_key(|&sid| self.services.get(sid).is_some_and(Service::is_going));
            let sid = known.unwrap_or_else(|| {
                let sid = self
                    .claim(name, &port)
                    .unwrap_or_else(|| self.create(name, port.key.clone()));
                self.objects
                    .entry(name.clone())
                    .or_default()
                    .ports
                    .push(sid);
                sid
            });
            going.retain(|&other| other != sid);
            self.want_port(sid, port);
        }
        for sid in going {
            self.want_frontends(sid, Vec::new());
            self.queues.push(Work::Trim(sid));
        }
        match self.objects.get(name) {
            Some(object) if object.ports.is_empty() && object.addresses.is_empty() => {
                self.objects.remove(name);
            }
            _ => self.queues.push(Work::Mark(name.clone())),
        }
    }

    fn is_port(&self, sid: Sid, port: &DesiredPort) -> bool {
        self.services
            .get(sid)
            .and_then(|service| service.name.as_ref())
            .is_some_and(|(_, key)| *key == port.key)
    }

    fn want_addresses(&mut self, name: &ObjectName, addresses: Vec<Address>) {
        let Some(object) = self.objects.get_mut(name) else {
            return;
        };
        for &address in &addresses {
            *self.marks.entry(address).or_default() += 1;
        }
        for address in std::mem::replace(&mut object.addresses, addresses) {
            let Some(count) = self.marks.get_mut(&address) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.marks.remove(&address);
                self.queues.push(Work::Unmark(address));
            }
        }
    }

    pub(super) fn create(&mut self, name: &ObjectName, key: PortKey) -> Sid {
        self.services.insert(Service {
            name: Some((name.clone(), key)),
            wanted: Vec::new(),
            present: Vec::new(),
            index: None,
            limits: super::Limits::default(),
            ring: super::LiveRing::default(),
            pending: Pending::Whole,
            members: 0,
        })
    }

    /// A service found in the maps under some of the port's frontends and no others, which may be another's by now; not
    /// yet wanted by anyone: it keeps its index, and until their owners have spoken its backends, in the order of tiers that they were found in.
    fn claim(&mut self, name: &ObjectName, port: &DesiredPort) -> Option<Sid> {
        let sid = port.frontends.iter().find_map(|frontend| {
            let sid = self.services.by_index(*self.frontends.get(frontend)?)?;
            let found = self.services.get(sid)?;
            let ours = found.present.iter().all(|f| port.frontends.contains(f));
            (found.name.is_none() && ours).then_some(sid)
        })?;
        let local = self.local;
        let tiers = self.members.range(Self::member_range(sid));
        let mut holds_local = Vec::new();
        for ((_, key), member) in tiers {
            if let Some(place) = member.place {
                let tier = usize::from(place.tier);
                holds_local.resize(holds_local.len().max(tier + 1), false);
                holds_local[tier] |= key.cluster == local;
            }
        }
        let service = self.services.get_mut(sid)?;
        holds_local.resize(service.ring.tiers.len(), false);
        let ranks = assumed(port.affinity, holds_local);
        for (tier, rank) in service.ring.tiers.iter_mut().zip(&ranks) {
            tier.rank = *rank;
        }
        service.name = Some((name.clone(), port.key.clone()));
        service.pending = Pending::Whole;
        for (_, member) in self
            .members
            .range_mut(Self::member_range(sid))
            .filter(|(_, member)| member.kept)
        {
            member.wanted = member
                .place
                .and_then(|place| ranks.get(usize::from(place.tier)).copied());
        }
        Some(sid)
    }

    fn want_port(&mut self, sid: Sid, port: DesiredPort) {
        let Some(service) = self.services.get_mut(sid) else {
            return;
        };
        for (key, member) in self.members.range_mut(Self::member_range(sid)) {
            let named = port
                .backends
                .binary_search_by(|(other, _)| other.cmp(&key.1))
                .is_ok();
            // No trust makes a service global that is not.
            member.kept &= port.global || key.1.cluster == self.local;
            if !named && !member.kept && member.wanted.take().is_some() {
                service.touch(key.1);
            }
        }
        service.limits.rules = port.rules;
        for (key, rank) in port.backends {
            want_backend(&mut self.members, service, sid, key, rank);
        }
        self.want_frontends(sid, port.frontends);
        self.queues.push(Work::Settle(sid));
    }

    /// Whoever waits for a frontend that is wanted no more, or again, looks anew.
    fn want_frontends(&mut self, sid: Sid, frontends: Vec<Frontend>) {
        let Some(service) = self.services.get_mut(sid) else {
            return;
        };
        if service.wanted == frontends {
            return;
        }
        let before = std::mem::replace(&mut service.wanted, frontends);
        for frontend in before.iter().chain(&service.wanted) {
            self.queues.wake_rivals(*frontend);
        }
        self.review_marks(sid, false);
    }

    fn want_endpoint(&mut self, name: &ObjectName, endpoint: &DesiredEndpoint) {
        let Some(object) = self.objects.get(name) else {
            return;
        };
        for &sid in &object.ports {
            let Some(service) = self.services.get_mut(sid) else {
                continue;
            };
            let Some((_, port)) = service.name.clone() else {
                continue;
            };
            if service.is_going() {
                continue;
            }
            let key = |port| BackendKey {
                cluster: endpoint.cluster,
                address: endpoint.address,
                port,
            };
            for ((_, key), member) in self.members.range_mut((sid, key(0))..=(sid, key(u16::MAX))) {
                let named = endpoint
                    .backends
                    .iter()
                    .any(|(to, number, _)| *to == port && *number == key.port);
                if !named && member.wanted.take().is_some() {
                    member.kept = false;
                    service.touch(*key);
                }
            }
            for (_, number, rank) in endpoint.backends.iter().filter(|(to, ..)| *to == port) {
                want_backend(&mut self.members, service, sid, key(*number), *rank);
            }
            if service.pending != Pending::Nothing {
                self.queues.push(Work::Settle(sid));
            }
        }
    }

    /// What was kept on trust of this owner, and is not wanted, goes. Local is also the owner of frontends.
    fn release(&mut self, owner: Owner) {
        let cluster = match owner {
            Owner::Local => self.local,
            Owner::Peer(id) if id == self.local => return,
            Owner::Peer(id) => id,
        };
        for ((sid, key), member) in self
            .members
            .iter_mut()
            .filter(|((_, key), m)| m.kept && key.cluster == cluster)
        {
            member.kept = false;
            member.wanted = None;
            if let Some(service) = self.services.get_mut(*sid) {
                service.touch(*key);
                if service.name.is_some() {
                    self.queues.push(Work::Settle(*sid));
                }
            }
        }
        if owner == Owner::Local {
            for frontend in std::mem::take(&mut self.kept) {
                let holder = self
                    .frontends
                    .get(&frontend)
                    .and_then(|&index| self.services.by_index(index));
                match holder {
                    _ if frontend.is_address_only() => {
                        self.queues.push(Work::Unmark(frontend.address))
                    }
                    Some(sid) => self.queues.push(Work::Trim(sid)),
                    None => {}
                }
            }
        }
    }
}

fn want_backend(
    members: &mut std::collections::BTreeMap<(Sid, BackendKey), Member>,
    service: &mut Service,
    sid: Sid,
    key: BackendKey,
    rank: Rank,
) {
    let member = members.entry((sid, key)).or_insert_with(|| {
        service.members += 1;
        Member::NEW
    });
    member.kept = false;
    if member.wanted.replace(rank) != Some(rank) {
        service.touch(key);
    }
}
