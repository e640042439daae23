//! The kernel's counts of a service, held against what its clients say.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::client::{self, Report};
use isthmus_tests::hostile::Account;
use isthmus_tests::{BackendCounts, KernelHealth, Node, ServiceCounts, Traffic};

/// Opened while nothing is under way.
pub(crate) struct Books {
    families: Vec<(KernelHealth, ServiceCounts, Vec<BackendCounts>)>,
}

/// What was counted since, over both families of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) connects: u64,
    pub(crate) refused: u64,
    pub(crate) unreachable: u64,
    pub(crate) timed_out: u64,
    /// Of all connects, whatever became of them, those whose first SYN had no answer in time.
    pub(crate) unanswered: u64,
    pub(crate) ejections: u64,
    pub(crate) all_ejected: u64,
    /// Backends that are left out now.
    pub(crate) out: u64,
}

/// What clients say of their connects: each has one of these fates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Told {
    pub(crate) connects: u64,
    pub(crate) established: u64,
    /// By the client, when no answer had come.
    pub(crate) abandoned: u64,
    pub(crate) refused: u64,
    pub(crate) unreachable: u64,
    pub(crate) timed_out: u64,
    /// Failed at the client's own network, before anything was sent.
    pub(crate) at_home: u64,
}

impl Books {
    pub(crate) fn open(node: Node<'_>, service: &str, port: u16) -> Self {
        let family = |v6| {
            let health = node
                .health_of(&node.frontend(service, port, v6).unwrap())
                .unwrap();
            let backends = health.backends().unwrap().into_values().collect();
            let service = health.service().unwrap();
            (health, service, backends)
        };
        Self {
            families: [false, true].map(family).into(),
        }
    }

    /// Of each backend's address.
    pub(crate) fn since_by_backend(&self) -> Vec<BackendCounts> {
        let family = |(health, _, before): &(KernelHealth, _, Vec<BackendCounts>)| {
            let now = health.backends().unwrap().into_values();
            let since = now.zip(before).map(|(now, before)| now.since(before));
            since.collect::<Vec<_>>()
        };
        self.families.iter().flat_map(family).collect()
    }

    pub(crate) fn since(&self) -> Counted {
        let mut sum = Counted::default();
        for (health, service, _) in &self.families {
            let now = health.service().unwrap();
            sum.ejections += now.ejections - service.ejections;
            sum.all_ejected += now.all_ejected - service.all_ejected;
        }
        for since in self.since_by_backend() {
            sum.connects += since.connects;
            sum.refused += since.refused;
            sum.unreachable += since.unreachable;
            sum.timed_out += since.timed_out;
            sum.unanswered += since.unanswered;
            sum.out += u64::from(since.is_out());
        }
        sum
    }

    /// Whether the client of this mark stands at the service, at both of its families.
    pub(crate) fn stands(&self, mark: u32) -> bool {
        let mut services = self.families.iter().map(|(health, ..)| health.service());
        services.all(|service| service.unwrap().stands(mark))
    }
}

/// Errors that came by ICMP.
const UNREACHABLE: [&str; 3] = ["EHOSTUNREACH", "ENETUNREACH", "EACCES"];

impl Told {
    pub(crate) fn by_client(report: &Report) -> Self {
        let failed = |how| report.failed_by(how);
        let unreachable = report.failures.iter();
        let unreachable =
            unreachable.filter(|(error, _)| UNREACHABLE.iter().any(|name| error.starts_with(name)));
        Self {
            connects: report.requests,
            established: report.answered() + failed(client::NO_ANSWER) + failed(client::BROKEN_OFF),
            abandoned: failed(client::GIVEN_UP),
            refused: failed(client::REFUSED),
            unreachable: unreachable.map(|(_, count)| count).sum(),
            timed_out: failed(client::TIMED_OUT),
            at_home: 0,
        }
    }

    /// `by_icmp`: its connects were unreachable because ICMP said so. Else its own network did.
    pub(crate) fn by_hostile(account: &Account, by_icmp: bool) -> Self {
        let other: u64 = account.other.values().sum();
        let (unreachable, at_home) = if by_icmp { (other, 0) } else { (0, other) };
        Self {
            connects: account.connects,
            established: account.established,
            abandoned: account.abandoned,
            refused: account.refused,
            unreachable,
            timed_out: account.timed_out,
            at_home,
        }
    }

    pub(crate) fn and(self, more: Self) -> Self {
        self.with(more, u64::checked_add)
    }

    pub(crate) fn since(self, before: Self) -> Self {
        self.with(before, u64::checked_sub)
    }

    fn with(self, other: Self, sum: fn(u64, u64) -> Option<u64>) -> Self {
        let sum = |a, b| sum(a, b).unwrap();
        Self {
            connects: sum(self.connects, other.connects),
            established: sum(self.established, other.established),
            abandoned: sum(self.abandoned, other.abandoned),
            refused: sum(self.refused, other.refused),
            unreachable: sum(self.unreachable, other.unreachable),
            timed_out: sum(self.timed_out, other.timed_out),
            at_home: sum(self.at_home, other.at_home),
        }
    }
}

/// Books of a service whose backends come and go, by its node's metrics, which outlive them. One agent lives all the time.
pub(crate) struct Ledger<'a> {
    node: Node<'a>,
    service: &'static str,
    before: Sums,
}

/// Of a service, over all of its backends there ever were.
#[derive(Clone, Copy, Debug)]
struct Sums {
    connects: u64,
    refused: u64,
    unreachable: u64,
    timed_out: u64,
    /// By the datapath, for want of a backend.
    refused_by_us: u64,
}

impl Sums {
    fn read(node: Node<'_>, service: &str) -> Self {
        let (status, page) = node.agent_http("/metrics").unwrap();
        assert_eq!(status, 200, "{page}");
        let sum = |name: &str, reason: &str| {
            let head = format!("isthmus_service_{name}_total{{service=\"{service}\"");
            let of_service = page.lines().filter(|line| line.starts_with(&head));
            let of_reason = of_service.filter(|line| line.contains(reason));
            let values = of_reason.filter_map(|line| line.rsplit(' ').next());
            values.map(|value| value.parse::<u64>().unwrap()).sum()
        };
        Self {
            connects: sum("connects", ""),
            refused: sum("failed_connects", "reason=\"refused\""),
            unreachable: sum("failed_connects", "reason=\"unreachable\""),
            timed_out: sum("failed_connects", "reason=\"timed_out\""),
            refused_by_us: sum("refused_connects", ""),
        }
    }
}

impl<'a> Ledger<'a> {
    pub(crate) fn open(node: Node<'a>, service: &'static str) -> Self {
        Self {
            before: Sums::read(node, service),
            node,
            service,
        }
    }

    /// As [`Counted::balance`], with all that clients told since. What the datapath refused was sent to no backend.
    pub(crate) fn balance(&self, told: Told) {
        let (before, now) = (self.before, Sums::read(self.node, self.service));
        let by_us = now.refused_by_us - before.refused_by_us;
        let kernel = Counted {
            connects: now.connects - before.connects + by_us,
            refused: now.refused - before.refused + by_us,
            unreachable: now.unreachable - before.unreachable,
            timed_out: now.timed_out - before.timed_out,
            ..Counted::default()
        };
        kernel.balance(self.service, told);
    }

    /// The same, with one client's word, which makes no more requests.
    pub(crate) fn balance_with(&self, traffic: &mut Traffic) {
        traffic.pause().unwrap();
        self.balance(Told::by_client(traffic.total()));
    }
}

impl Counted {
    /// The books balance: the kernel counted what all clients together tell, each kind for itself, and what it counted as no
    /// failure is what they say was established, abandoned, or never sent. Nothing may be under way.
    pub(crate) fn balance(self, name: &str, told: Told) {
        assert_eq!(
            (
                self.connects,
                self.refused,
                self.unreachable,
                self.timed_out
            ),
            (
                told.connects,
                told.refused,
                told.unreachable,
                told.timed_out
            ),
            "{name}: connects, refused, unreachable, timed out: the kernel {self:?}, the clients {told:?}"
        );
        assert_eq!(
            self.connects - self.refused - self.unreachable - self.timed_out,
            told.established + told.abandoned + told.at_home,
            "{name}: what is left over: the kernel {self:?}, the clients {told:?}"
        );
    }
}
