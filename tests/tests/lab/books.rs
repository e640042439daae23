//! The kernel's counts of a service, held against what its clients say.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::client::{self, Report};
use isthmus_tests::hostile::Account;
use isthmus_tests::{BackendCounts, Frontend, KernelHealth, Node, ServiceCounts, Traffic};

use super::shield::Kept;

/// Of some frontends, each a service to the kernel. Opened while nothing is under way.
pub(crate) struct Books {
    rows: Vec<Rows>,
    /// By maps that others have taken the place of since.
    earlier: Counted,
}

/// Of one frontend, and what they held when its books were opened.
struct Rows {
    frontend: Frontend,
    health: KernelHealth,
    service: ServiceCounts,
    backends: Vec<BackendCounts>,
}

/// What was counted since, over all of the frontends.
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
    /// Of a service's port by TCP, over both families.
    pub(crate) fn open(node: Node<'_>, service: &str, port: u16) -> Self {
        let family = |v6| node.frontend(service, port, v6).unwrap();
        Self::of(node, [false, true].map(family))
    }

    pub(crate) fn of(node: Node<'_>, frontends: impl IntoIterator<Item = Frontend>) -> Self {
        let rows = frontends.into_iter().map(|frontend| {
            let health = node.health_of(&frontend).unwrap();
            Rows {
                service: health.service().unwrap(),
                backends: health.backends().unwrap().into_values().collect(),
                frontend,
                health,
            }
        });
        Self {
            rows: rows.collect(),
            earlier: Counted::default(),
        }
    }

    /// An agent has put other maps in the place of these: sums go on from what these hold, which nothing writes any more, and
    /// from the others' beginning, which is nothing.
    ///
    /// A failure is counted by the program that watches when it comes. That one is replaced a moment before those that draw:
    /// a failure in between is looked for in the new maps, and found there as long as they give the backend the same id.
    pub(crate) fn change_over(&mut self, node: Node<'_>) {
        self.earlier = Counted {
            out: 0,
            ..self.since()
        };
        let all = node.frontends().unwrap();
        for rows in &mut self.rows {
            let same = |f: &&Frontend| {
                let is_port = f.service == rows.frontend.service && f.port == rows.frontend.port;
                is_port
                    && (&f.protocol, f.address) == (&rows.frontend.protocol, rows.frontend.address)
            };
            let health = node.health_of(all.iter().find(same).unwrap()).unwrap();
            rows.service = ServiceCounts::NONE;
            rows.backends = vec![BackendCounts::NONE; health.backends().unwrap().len()];
            rows.health = health;
        }
    }

    /// Of each backend's address.
    pub(crate) fn since_by_backend(&self) -> Vec<BackendCounts> {
        let of_one = |rows: &Rows| {
            let now = rows.health.backends().unwrap().into_values();
            let since = now.zip(&rows.backends);
            let since = since.map(|(now, before)| now.since(before));
            since.collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(of_one).collect()
    }

    pub(crate) fn since(&self) -> Counted {
        let mut sum = self.earlier;
        for rows in &self.rows {
            let now = rows.health.service().unwrap();
            sum.ejections += now.ejections - rows.service.ejections;
            sum.all_ejected += now.all_ejected - rows.service.all_ejected;
            // By the datapath, for want of a backend: it was sent to none.
            let by_us = now.refused - rows.service.refused;
            sum.connects += by_us;
            sum.refused += by_us;
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
        let mut services = self.rows.iter().map(|rows| rows.health.service());
        services.all(|service| service.unwrap().stands(mark))
    }
}

/// A client, and books of all that it asks.
pub(crate) struct Opened {
    pub(crate) books: Books,
    /// What it had told when they were opened.
    pub(crate) before: Told,
    /// What had been kept from the programs by then.
    pub(crate) kept: Kept,
}

impl Opened {
    /// The client rests, and asks for these frontends only from here on; nobody else does.
    pub(crate) fn of(
        node: Node<'_>,
        frontends: impl IntoIterator<Item = Frontend>,
        traffic: &mut Traffic,
    ) -> Self {
        traffic.pause().unwrap();
        Self {
            books: Books::of(node, frontends),
            before: Told::by_client(traffic.total()),
            kept: Kept::default(),
        }
    }

    /// The books balance with all that the client told since. It rests then.
    pub(crate) fn balance(&self, name: &str, traffic: &mut Traffic) -> Counted {
        traffic.pause().unwrap();
        let kernel = self.books.since();
        kernel.balance(name, Told::by_client(traffic.total()).since(self.before));
        kernel
    }
}

/// Errors that came by ICMP.
const UNREACHABLE: [&str; 3] = ["EHOSTUNREACH", "ENETUNREACH", "EACCES"];

impl Told {
    /// Connects, or flows without one, that all live.
    pub(crate) fn established(connects: u64) -> Self {
        Self {
            connects,
            established: connects,
            ..Self::default()
        }
    }

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

/// Books of services whose backends come and go, by their node's metrics, which outlive them. One agent lives all the time.
pub(crate) struct Ledger<'a> {
    node: Node<'a>,
    services: Vec<String>,
    before: Sums,
}

/// What the node's agent says to Prometheus.
pub(crate) fn page(node: Node<'_>) -> String {
    let (status, body) = node.agent_http("/metrics").unwrap();
    assert_eq!(status, 200, "{body}");
    body
}

/// Sum over the series of a counter whose labels begin so, and hold `label`.
fn counted(page: &str, name: &str, labels: &str, label: &str) -> u64 {
    let head = format!("isthmus_{name}_total{{{labels}");
    let series = page.lines().filter(|line| line.starts_with(&head));
    let series = series.filter(|line| line.contains(label));
    let values = series.filter_map(|line| line.rsplit(' ').next());
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

/// Connects that the node's datapath ever refused, to whichever service.
pub(crate) fn refused_by(node: Node<'_>) -> u64 {
    counted(&page(node), "refused_connects", "", "")
}

/// Of services, over all of its backends there ever were.
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
    fn read(node: Node<'_>, services: &[String]) -> Self {
        let page = page(node);
        let sum = |name: &str, reason: &str| {
            let of_service = |service| {
                let label = format!("service=\"{service}\"");
                counted(&page, name, &label, reason)
            };
            services.iter().map(of_service).sum()
        };
        Self {
            connects: sum("service_connects", ""),
            refused: sum("service_failed_connects", "reason=\"refused\""),
            unreachable: sum("service_failed_connects", "reason=\"unreachable\""),
            timed_out: sum("service_failed_connects", "reason=\"timed_out\""),
            refused_by_us: sum("service_refused_connects", ""),
        }
    }
}

impl<'a> Ledger<'a> {
    pub(crate) fn open(node: Node<'a>, service: &str) -> Self {
        Self::of(node, vec![service.to_owned()])
    }

    pub(crate) fn of(node: Node<'a>, services: Vec<String>) -> Self {
        Self {
            before: Sums::read(node, &services),
            node,
            services,
        }
    }

    /// As [`Counted::balance`], with all that clients told since. What the datapath refused was sent to no backend.
    pub(crate) fn balance(&self, told: Told) {
        let (before, now) = (self.before, Sums::read(self.node, &self.services));
        let by_us = now.refused_by_us - before.refused_by_us;
        let kernel = Counted {
            connects: now.connects - before.connects + by_us,
            refused: now.refused - before.refused + by_us,
            unreachable: now.unreachable - before.unreachable,
            timed_out: now.timed_out - before.timed_out,
            ..Counted::default()
        };
        kernel.balance(&self.services.join(", "), told);
    }

    /// The same, with one client's word, which makes no more requests.
    pub(crate) fn balance_with(&self, traffic: &mut Traffic) {
        traffic.pause().unwrap();
        self.balance(Told::by_client(traffic.total()));
    }
}

impl Counted {
    /// With the failures that were kept from the programs. A kernel keeps all of them or none: one that keeps none has counted what
    /// the clients told.
    pub(crate) fn and_kept(mut self, kept: Kept, told: Told) -> Self {
        let counted = [self.refused, self.unreachable, self.timed_out];
        if counted == [told.refused, told.unreachable, told.timed_out] {
            return self;
        }
        eprintln!("kept from the programs: {kept:?}");
        let mut taken = kept.taken;
        for (counted, kept, told) in [
            (&mut self.refused, kept.refused, told.refused),
            (&mut self.unreachable, kept.unreachable, told.unreachable),
            (&mut self.timed_out, kept.timed_out, told.timed_out),
        ] {
            *counted += kept;
            let missing = told.saturating_sub(*counted).min(taken);
            *counted += missing;
            taken -= missing;
        }
        self
    }

    /// Whether so many first SYNs were unanswered, with those that were kept from the programs or without.
    pub(crate) fn has_unanswered(&self, kept: &Kept, wanted: u64) -> bool {
        [self.unanswered, self.unanswered + kept.unanswered].contains(&wanted)
    }

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
