//! Settles a service port, and takes away what nobody wants.

use isthmus_abi::{BackendRow, Ring};

use super::grace::Retired;
use super::queue::{Done, Work};
use super::write::SERVICES_FLAG;
use super::{Pending, ReconcileError, Reconciler, Service, Sid};
use crate::desired::Frontend;
use crate::model::Address;
use crate::table::TableError;

impl Reconciler {
    pub(super) fn run(&mut self, work: &Work) -> Result<Done, ReconcileError> {
        match work {
            Work::Settle(sid) => self.settle(*sid),
            Work::Mark(name) => self.mark(name),
            Work::Unmark(address) => self.unmark(*address),
            Work::Trim(sid) => self.trim(*sid),
            Work::LetGo(retired) => self.let_go(retired),
        }
    }

    /// Backend rows, ring, frontends.
    fn settle(&mut self, sid: Sid) -> Result<Done, ReconcileError> {
        if self.services.get(sid).is_none_or(Service::is_going) {
            return Ok(Done::All);
        }
        if let Some(giver) = self.giver(sid) {
            self.take_place(sid, giver);
            return Ok(Done::All);
        }
        if self.lets_others_first(sid) {
            self.queues.push(Work::Settle(sid));
            return Ok(Done::All);
        }
        let Some(service) = self.services.get(sid) else {
            return Ok(Done::All);
        };
        let foreign = service.pending == Pending::Foreign;
        let index = match service.index {
            Some(index) => index,
            None => self.take_index(sid)?,
        };
        self.write_limits(sid, index)?;
        let housed = self.house_backends(sid, index);
        if housed == Ok(Done::More) {
            return Ok(Done::More);
        }
        // Without all the backends it is better to serve with those that there are than to keep those that are gone;
        // but never with none.
        let moved = self.move_ring(sid, index, housed.is_err() && !foreign);
        if moved.is_err() && foreign {
            self.empty_foreign_ring(sid, index)?;
        }
        moved?;
        self.mark_sticky(sid, index)?;
        let Some(service) = self.services.get_mut(sid) else {
            return Ok(Done::All);
        };
        match housed {
            Ok(_) => service.pending = Pending::Nothing,
            Err(ref error) if !service.ring.written => return Err(error.clone()),
            Err(_) => service.pending = Pending::Whole,
        }
        let done = self.insert_frontends(sid, index)?;
        housed?;
        let Some(service) = self.services.get(sid) else {
            return Ok(Done::All);
        };
        if service
            .present
            .iter()
            .any(|frontend| !service.wanted.contains(frontend))
        {
            self.queues.push(Work::Trim(sid));
        }
        if let (Done::All, Some((name, _))) = (done, &service.name) {
            let marked = |address: &Address| {
                self.frontends
                    .contains_key(&Frontend::address_only(*address))
            };
            if self
                .objects
                .get(name)
                .is_some_and(|object| !object.addresses.iter().all(marked))
            {
                self.queues.push(Work::Mark(name.clone()));
            }
        }
        Ok(done)
    }

    fn take_index(&mut self, sid: Sid) -> Result<u32, ReconcileError> {
        let full = TableError::Full {
            table: self.tables.rings.name(),
            capacity: self.indices.capacity(),
            flag: SERVICES_FLAG,
        };
        let index = self.indices.take().ok_or(full)?;
        // No frontend leads to it yet.
        if let Err(error) = self.forget_service(index) {
            self.indices.free(index);
            return Err(error.into());
        }
        self.services.set_index(sid, index);
        Ok(index)
    }

    fn insert_frontends(&mut self, sid: Sid, index: u32) -> Result<Done, ReconcileError> {
        let Some(service) = self.services.get(sid) else {
            return Ok(Done::All);
        };
        let missing: Vec<_> = service
            .wanted
            .iter()
            .copied()
            .filter(|f| !service.present.contains(f))
            .collect();
        for frontend in missing {
            if let Some(&holder) = self.frontends.get(&frontend) {
                return self.contend(frontend, holder);
            }
            if !self.grace.may_insert_frontend() {
                return Ok(Done::AfterGrace);
            }
            self.put_frontend(frontend, index)?;
            if let Some(service) = self.services.get_mut(sid) {
                // Most have one, and there are many of them.
                service.present.reserve_exact(1);
                service.present.push(frontend);
            }
        }
        Ok(Done::All)
    }

    /// Another service's row stands where a frontend should. If that one still wants it, the first to come keeps it.
    fn contend(&mut self, frontend: Frontend, holder: u32) -> Result<Done, ReconcileError> {
        let holder = self
            .services
            .by_index(holder)
            .and_then(|sid| Some((sid, self.services.get(sid)?)));
        let Some((holder, service)) = holder else {
            // A row that leads to no service that we know of: nobody misses it.
            self.remove_frontend(frontend)?;
            return Ok(Done::AfterGrace);
        };
        match &service.name {
            Some((name, _)) if service.wanted.contains(&frontend) => {
                return Err(ReconcileError::FrontendTaken {
                    frontend,
                    holder: name.clone(),
                });
            }
            _ => self.kept.remove(&frontend),
        };
        self.queues.push(Work::Trim(holder));
        Ok(Done::Held(frontend))
    }

    fn trim(&mut self, sid: Sid) -> Result<Done, ReconcileError> {
        let Some(service) = self.services.get(sid) else {
            return Ok(Done::All);
        };
        // What was found in the maps stays until this cluster's list is complete; unless someone who wanted it let it go.
        let on_trust = service.name.is_none();
        let going = service.is_going();
        let kept = |frontend: &Frontend| self.kept.contains(frontend) && (on_trust || !going);
        let unwanted = service
            .present
            .iter()
            .copied()
            .filter(|f| !service.wanted.contains(f) && !kept(f));
        for frontend in unwanted.collect::<Vec<_>>() {
            if self.queues.inserts_wait() {
                return Ok(Done::AfterGrace);
            }
            if !self.has_budget() {
                return Ok(Done::More);
            }
            self.remove_frontend(frontend)?;
            if let Some(service) = self.services.get_mut(sid) {
                service.present.retain(|present| *present != frontend);
            }
            self.queues.wake_rivals(frontend);
        }
        if self
            .services
            .get(sid)
            .is_some_and(|service| service.is_going() && service.present.is_empty())
        {
            self.retire_service(sid);
        }
        Ok(Done::All)
    }

    /// Nothing leads to the service any longer; programs on their way may still read its ring.
    fn retire_service(&mut self, sid: Sid) {
        let Some(service) = self.services.remove(sid) else {
            return;
        };
        self.queues.forget(&Work::Settle(sid));
        self.deferred.remove(&sid);
        self.review_marks(sid, false);
        let keys: Vec<_> = self
            .members
            .range(Self::member_range(sid))
            .map(|(key, member)| (*key, member.id))
            .collect();
        for (key, _) in &keys {
            self.members.remove(key);
        }
        if let Some((name, _)) = &service.name
            && let Some(object) = self.objects.get_mut(name)
        {
            object.ports.retain(|&port| port != sid);
            if object.ports.is_empty() && object.addresses.is_empty() {
                self.objects.remove(name);
            }
        }
        if let Some(index) = service.index {
            let backends = keys.iter().filter_map(|(_, id)| *id).collect();
            self.grace.retire(Retired::Service {
                index,
                span: service.ring.span,
                backends,
            });
        }
    }

    fn let_go(&mut self, retired: &Retired) -> Result<Done, ReconcileError> {
        match retired {
            Retired::Span(span) => self.spans.free(*span),
            Retired::Backend(id) => {
                // The generation outlives the row, and this agent.
                let row = self.backends.row(*id);
                let generation = row.generation;
                self.put_backend(
                    *id,
                    BackendRow {
                        generation,
                        ..BackendRow::default()
                    },
                )?;
                self.backends.ids.free(*id);
                self.note_removed(&row);
            }
            Retired::Service {
                index,
                span,
                backends,
            } => {
                self.put_ring(*index, Ring::EMPTY)?;
                if let Some(span) = span {
                    self.spans.free(*span);
                }
                for &id in backends {
                    self.queues.push(Work::LetGo(Retired::Backend(id)));
                }
                self.indices.free(*index);
            }
        }
        self.queues.wake_full();
        Ok(Done::All)
    }
}
