//! What may be reused only when no program can still be reading it.

use super::spans::Span;

/// Names a grace period. When [`super::Progress::want_grace`] holds one, begin a grace period (`membarrier`, on a thread
/// of its own) and, when it is over, tell [`super::Reconciler::grace_passed`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GraceTicket(u64);

/// Something that the maps no longer lead to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) enum Retired {
    /// A stretch of slots that a ring has left.
    Span(Span),
    /// A backend that its ring has left.
    Backend(u32),
    /// A service without frontends: its ring is emptied now, and only then are the ring's span and backends let go.
    Service {
        index: u32,
        span: Option<Span>,
        backends: Vec<u32>,
    },
}

#[derive(Debug)]
pub(super) struct Grace {
    /// The ticket under which things retire now.
    open: u64,
    retired: Vec<Retired>,
    /// A frontend was deleted under the open ticket.
    deleted: bool,
    in_flight: Option<InFlight>,
    /// The ticket of the last deletion of a frontend, until it has passed.
    last_deletion: Option<u64>,
}

#[derive(Debug)]
struct InFlight {
    ticket: u64,
    retired: Vec<Retired>,
}

impl Grace {
    pub(super) fn new() -> Self {
        Self {
            open: 1,
            retired: Vec::new(),
            deleted: false,
            in_flight: None,
            last_deletion: None,
        }
    }

    pub(super) fn retire(&mut self, what: Retired) {
        self.retired.push(what);
    }

    /// A hash gives a deleted element's memory to the next insertion at once, while a program may still read the value
    /// through it: so insertions wait.
    pub(super) fn frontend_deleted(&mut self) {
        self.deleted = true;
        self.last_deletion = Some(self.open);
    }

    pub(super) fn may_insert_frontend(&self) -> bool {
        self.last_deletion.is_none()
    }

    /// Closes the list of what is retired, if there is anything and no other grace period is on its way.
    pub(super) fn begin(&mut self) -> Option<GraceTicket> {
        if self.in_flight.is_some() || (self.retired.is_empty() && !self.deleted) {
            return None;
        }
        let ticket = self.open;
        self.open += 1;
        self.deleted = false;
        self.in_flight = Some(InFlight {
            ticket,
            retired: std::mem::take(&mut self.retired),
        });
        Some(GraceTicket(ticket))
    }

    pub(super) fn in_flight(&self) -> Option<GraceTicket> {
        self.in_flight
            .as_ref()
            .map(|flight| GraceTicket(flight.ticket))
    }

    /// What can be let go now. Nothing for a ticket that is not on its way.
    pub(super) fn passed(&mut self, ticket: GraceTicket) -> Vec<Retired> {
        let Some(flight) = self.in_flight.take_if(|flight| flight.ticket == ticket.0) else {
            return Vec::new();
        };
        if self
            .last_deletion
            .is_some_and(|deletion| deletion <= flight.ticket)
        {
            self.last_deletion = None;
        }
        flight.retired
    }

    /// What will be let go when the grace period on its way is over.
    pub(super) fn letting_go(&self) -> impl Iterator<Item = &Retired> {
        self.in_flight.iter().flat_map(|flight| &flight.retired)
    }

    /// Things retired and not yet let go.
    pub(super) fn waiting(&self) -> usize {
        self.retired.len()
            + self
                .in_flight
                .as_ref()
                .map_or(0, |flight| flight.retired.len())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    #[test]
    fn a_grace_period_that_began_before_the_deletion_frees_nothing_of_it() {
        let mut grace = Grace::new();
        grace.retire(Retired::Backend(1));
        let first = grace.begin().unwrap();
        grace.retire(Retired::Backend(2));
        grace.frontend_deleted();
        assert_eq!(grace.begin(), None, "one at a time");
        assert_eq!(grace.passed(first), [Retired::Backend(1)]);
        assert!(!grace.may_insert_frontend());
        let second = grace.begin().unwrap();
        assert_eq!(grace.passed(first), [], "a ticket passes once");
        assert!(!grace.may_insert_frontend());
        assert_eq!(grace.passed(second), [Retired::Backend(2)]);
        assert!(grace.may_insert_frontend());
        assert_eq!(grace.begin(), None, "nothing waits");
    }

    #[test]
    fn a_deletion_alone_asks_for_a_grace_period() {
        let mut grace = Grace::new();
        grace.frontend_deleted();
        let ticket = grace.begin().unwrap();
        assert_eq!(grace.in_flight(), Some(ticket));
        grace.passed(ticket);
        assert!(grace.may_insert_frontend());
    }
}
