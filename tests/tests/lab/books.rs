//! The kernel's counts of a service, to be held against what clients say.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::hostile::Account;
use isthmus_tests::{BackendCounts, KernelHealth, Node, ServiceCounts};

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
    pub(crate) unanswered: u64,
    pub(crate) ejections: u64,
    pub(crate) all_ejected: u64,
    /// Backends that are left out now.
    pub(crate) out: u64,
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

    pub(crate) fn since(&self) -> Counted {
        let mut sum = Counted::default();
        for (health, service, backends) in &self.families {
            let now = health.service().unwrap();
            sum.ejections += now.ejections - service.ejections;
            sum.all_ejected += now.all_ejected - service.all_ejected;
            for (now, before) in health.backends().unwrap().values().zip(backends) {
                let since = now.since(before);
                sum.connects += since.connects;
                sum.refused += since.refused;
                sum.unreachable += since.unreachable;
                sum.timed_out += since.timed_out;
                sum.unanswered += since.unanswered;
                sum.out += u64::from(now.is_out());
            }
        }
        sum
    }
}

impl Counted {
    /// Holds the books against a good client's requests, which all succeeded, and a hostile one's account. What it abandoned
    /// may have failed unseen. Errors of its own network are no failures, unless they came by ICMP.
    pub(crate) fn balance(&self, name: &str, good: u64, bad: &Account, by_icmp: bool) {
        let told =
            format!("{name}: the kernel {self:?}, the good client {good}, the hostile {bad:?}");
        assert_eq!(self.connects, good + bad.connects, "{told}");
        let other: u64 = bad.other.values().sum();
        let unreachable = if by_icmp { other } else { 0 };
        let pairs = [
            (self.refused, bad.refused),
            (self.unreachable, unreachable),
            (self.timed_out, bad.timed_out),
        ];
        let mut unseen = 0;
        for (kernel, client) in pairs {
            assert!(kernel >= client, "{told}");
            unseen += kernel - client;
        }
        assert!(unseen <= bad.abandoned, "{told}");
    }
}
