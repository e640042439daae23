//! Two nodes that leave out the same backends: each by its own clients' word, each for a time of its own.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use isthmus_tests::{Event, Lab, Monitor, Traffic, wait_for};

use super::books::{Books, Told};
use super::common::{PORT, SERVICE, SOON, at_least, client, monitor, running};

const NODES: [(&str, &str); 2] = [("east-1", "east/client-1"), ("east-2", "east/client-2")];
const MORTAL: [&str; 3] = ["east/backend-1", "east/backend-2", "east/backend-3"];
/// A client a node, and one backend more than those that die.
const TWO_NODES: &str = r"
clusters:
  - name: east
    id: 1
    nodes: 2
    pods:
      - {name: backend, count: 4, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
      - {name: client, count: 2}
";
const RATE: f64 = 600.0;
/// The first ejection: 5 s, a fifth more or less.
const FIRST: std::ops::RangeInclusive<f64> = 4.0..=6.0;
/// Until a client draws the backend that is due, and the monitor tells of it.
const LATE: f64 = 1.0;
/// Two nodes' returns that are farther apart are not together. One in twenty is nearer by chance.
const APART: f64 = 0.05;

/// A node's client, its books, and its monitor.
struct Witness {
    traffic: Traffic,
    books: Books,
    before: Told,
    monitor: Monitor,
}

impl Witness {
    fn new(lab: &Lab, node: &str, pod: &str) -> Self {
        let mut traffic = client(lab, pod, node);
        traffic.rate(RATE).unwrap();
        at_least(&mut traffic, 200);
        traffic.pause().unwrap();
        let node = lab.node(node).unwrap();
        let monitor = monitor(node, &lab.pod(pod).unwrap());
        Self {
            books: Books::open(node, SERVICE, PORT),
            before: Told::by_client(traffic.total()),
            traffic,
            monitor,
        }
    }

    /// Events of this kind, by the backend's address.
    fn events(&self, kind: &str) -> BTreeMap<IpAddr, Vec<Event>> {
        let mut events = BTreeMap::<IpAddr, Vec<Event>>::new();
        let told = self.monitor.told().into_iter();
        for event in told.filter(|event| event.event == kind) {
            assert_eq!(event.service.as_deref(), Some(SERVICE), "{event:?}");
            events
                .entry(event.address.unwrap())
                .or_default()
                .push(event);
        }
        events
    }
}

#[test]
fn nodes_that_ejected_together_do_not_return_together() {
    let lab = running("nodes", TWO_NODES);
    let mut witnesses = NODES.map(|(node, pod)| Witness::new(&lab, node, pod));
    for witness in &mut witnesses {
        witness.traffic.rate(RATE).unwrap();
    }
    for (dead, backend) in (1..).zip(MORTAL) {
        lab.pod(backend).unwrap().kill_server().unwrap();
        for witness in &witnesses {
            wait_for("both of its addresses are ejected", SOON, || {
                Ok((witness.books.since().out == 2 * dead).then_some(()))
            })
            .unwrap();
        }
    }
    for backend in MORTAL {
        lab.pod(backend).unwrap().start_server().unwrap();
    }
    let addresses = 2 * MORTAL.len();
    for witness in &witnesses {
        wait_for("all are back, and told to be", SOON, || {
            let told = witness.events("returned").len();
            Ok((witness.books.since().out == 0 && told == addresses).then_some(()))
        })
        .unwrap();
    }
    for (witness, (node, _)) in witnesses.iter_mut().zip(NODES) {
        witness.traffic.pause().unwrap();
        let kernel = witness.books.since();
        let told = Told::by_client(witness.traffic.total());
        kernel.balance(node, told.since(witness.before));
        assert_eq!(kernel.ejections, addresses as u64, "{kernel:?}");
        expect_first_ejections(witness);
    }
    let [one, other] = witnesses.map(|witness| witness.events("returned"));
    let apart = one.iter().map(|(address, events)| {
        let other = &other[address][0];
        events[0].at.abs_diff(other.at) as f64 / 1e9
    });
    let apart: Vec<f64> = apart.collect();
    let together = apart.iter().filter(|seconds| **seconds < APART).count();
    assert!(together * 2 <= addresses, "seconds apart: {apart:?}");
}

/// Each was ejected once, was tried when its time was over, and came back by that.
fn expect_first_ejections(witness: &Witness) {
    let (tried, back) = (witness.events("trial-began"), witness.events("returned"));
    for (address, ejections) in witness.events("ejected") {
        let [ejected] = &ejections[..] else {
            panic!("{address}: {ejections:?}");
        };
        let lasts = ejected.lasts_seconds.unwrap();
        assert!(FIRST.contains(&lasts), "{ejected:?}");
        // A trial that its client gave up passes to the next one.
        let trial = &tried[&address][0];
        let waited = trial.at.saturating_sub(ejected.at) as f64 / 1e9;
        assert!(
            waited > lasts - LATE && waited < lasts + LATE,
            "{ejected:?} {trial:?}"
        );
        let returned = &back[&address][0];
        assert!(returned.at >= trial.at, "{trial:?} {returned:?}");
    }
}
