//! Which addresses are ours for refusals: the rows of an address alone.
//!
//! Where such a row stands, a port without a frontend is refused. So it stands only when every port that we know of
//! answers there, and not while a fault keeps a new one out: that connect passes, and another may serve it.

use std::collections::{BTreeMap, BTreeSet};

use super::queue::{Done, Work};
use super::{ADDRESS_ONLY, Object, ReconcileError, Reconciler, Service, Sid};
use crate::desired::Frontend;
use crate::model::{Address, ObjectName};

/// Addresses at which a service port should answer, and for a fault does not.
#[derive(Debug, Default)]
pub(super) struct KeptOut {
    by_port: BTreeMap<Sid, Vec<Address>>,
    by_address: BTreeSet<(Address, Sid)>,
}

impl KeptOut {
    fn of(&self, sid: Sid) -> &[Address] {
        self.by_port.get(&sid).map_or(&[], Vec::as_slice)
    }

    fn anyone_at(&self, address: Address) -> bool {
        let mut ports = self
            .by_address
            .range((address, Sid::MIN)..=(address, Sid::MAX));
        ports.next().is_some()
    }

    /// Returns what it was.
    fn set(&mut self, sid: Sid, addresses: Vec<Address>) -> Vec<Address> {
        let before = self.by_port.remove(&sid).unwrap_or_default();
        for &address in &before {
            self.by_address.remove(&(address, sid));
        }
        self.by_address
            .extend(addresses.iter().map(|&address| (address, sid)));
        if !addresses.is_empty() {
            self.by_port.insert(sid, addresses);
        }
        before
    }
}

impl Reconciler {
    /// Marks a Service's addresses, once all its ports are settled.
    pub(super) fn mark(&mut self, name: &ObjectName) -> Result<Done, ReconcileError> {
        let Some(object) = self.objects.get(name) else {
            return Ok(Done::All);
        };
        let settled = |sid: &Sid| self.services.get(*sid).is_some_and(Service::is_settled);
        if !object.ports.iter().all(settled) {
            // The last port to settle queues this again.
            return Ok(Done::All);
        }
        let free = object
            .addresses
            .iter()
            .filter(|address| !self.kept_out.anyone_at(**address));
        let missing: Vec<_> = free
            .map(|address| Frontend::address_only(*address))
            .filter(|row| !self.frontends.contains_key(row))
            .collect();
        for row in missing {
            if !self.grace.may_insert_frontend() {
                return Ok(Done::AfterGrace);
            }
            self.put_frontend(row, ADDRESS_ONLY)?;
        }
        Ok(Done::All)
    }

    pub(super) fn unmark(&mut self, address: Address) -> Result<Done, ReconcileError> {
        let row = Frontend::address_only(address);
        let wanted = self.marks.contains_key(&address) && !self.kept_out.anyone_at(address);
        if wanted || !self.frontends.contains_key(&row) {
            return Ok(Done::All);
        }
        if self.queues.inserts_wait() {
            return Ok(Done::AfterGrace);
        }
        self.remove_frontend(row)?;
        Ok(Done::All)
    }

    /// Looks anew at where a service port does not answer. What a fault kept out stays so until it answers, or is wanted
    /// no more.
    pub(super) fn review_marks(&mut self, sid: Sid, failed: bool) {
        let before = self.kept_out.of(sid);
        if before.is_empty() && !failed {
            return;
        }
        let port = self.services.get(sid);
        let wanted = port.map_or(&[][..], |port| port.wanted.as_slice());
        let missing = wanted
            .iter()
            .filter(|frontend| !self.frontends.contains_key(frontend))
            .map(|frontend| frontend.address)
            .filter(|address| failed || before.contains(address));
        let missing: BTreeSet<_> = missing.collect();
        let before = self.kept_out.set(sid, missing.iter().copied().collect());
        for address in before.iter().filter(|address| !missing.contains(address)) {
            self.mark_again(*address, sid);
        }
        for address in missing {
            self.queues.push(Work::Unmark(address));
        }
    }

    /// Whoever wants this address marked looks anew: mostly the port's own Service alone.
    fn mark_again(&mut self, address: Address, sid: Sid) {
        let Some(&wanting) = self.marks.get(&address) else {
            return;
        };
        if self.kept_out.anyone_at(address) {
            return;
        }
        let wants = |object: &Object| object.addresses.contains(&address);
        let own = self.services.get(sid).and_then(Service::object);
        let own = own.filter(|name| self.objects.get(*name).is_some_and(wants));
        match own {
            Some(name) if wanting == 1 => self.queues.push(Work::Mark(name.clone())),
            _ => {
                for (name, _) in self.objects.iter().filter(|(_, object)| wants(object)) {
                    self.queues.push(Work::Mark(name.clone()));
                }
            }
        }
    }
}
