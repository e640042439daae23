//! Clients that do not mean it, beside one that does, on one node: no backend is ejected for them, the good client fails at
//! nothing, and the books balance: what the kernel counts is what the clients say.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_abi::CLIENT_MARKS;
use isthmus_tests::hostile::{Account, Behaviour, mark};
use isthmus_tests::{Lab, Node, Pod, Traffic, wait_for};

use super::books::Books;
use super::common::{PORT, SERVICE, at_least, client, running};
use super::own::Own;

/// A node with two backends and so many clients.
fn crowd(clients: usize) -> String {
    format!(
        "clusters:
  - name: east
    id: 1
    pods:
      - {{name: backend, count: 2, namespace: production, labels: {{app: backend}}, serves: {{8080: production/backend}}}}
      - {{name: client, count: {clients}}}
"
    )
}
/// Enough that three are told apart from the good one, and from each other.
const CLIENTS: usize = 8;
/// More than there are marks: two must share one.
const MORE_THAN_MARKS: usize = CLIENT_MARKS as usize + 1;
const GOOD: &str = "east/client-1";
const RATE: f64 = 900.0;
const MANY: u64 = 10_000;

/// Whether a hostile client has reached the service before.
use Past::{Newcomer, Proven};
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Past {
    Newcomer,
    /// It stands: its failures count.
    Proven,
}

/// A kernel sends few ICMP errors at a time.
const FEW: u64 = 100;
/// For how long connects are held: until first time-outs are noticed, and until an ICMP error is believed.
const FIRST_TIME_OUT: Duration = Duration::from_millis(1500);
const SECOND_TIME_OUT: Duration = Duration::from_millis(3500);
const AT_ONCE: Duration = Duration::ZERO;

type Row = (
    &'static str,
    Past,
    Own,
    Behaviour,
    u64,
    Duration,
    fn(&Account) -> u64,
);

/// Name, past, own network, behaviour, connects, for how long they are held, and what shows that it was done: how many
/// connects had the fate that they should.
const ROWS: [Row; 16] = [
    (
        "never succeeded, own firewall resets",
        Newcomer,
        Own::Reset,
        Behaviour::Connect,
        MANY,
        AT_ONCE,
        |a| a.refused,
    ),
    (
        "never succeeded, own firewall drops",
        Newcomer,
        Own::Drop,
        Behaviour::Hold,
        1000,
        FIRST_TIME_OUT,
        |a| a.abandoned,
    ),
    (
        "own firewall resets",
        Proven,
        Own::Reset,
        Behaviour::Connect,
        MANY,
        AT_ONCE,
        |a| a.refused,
    ),
    (
        "own firewall resets to one backend",
        Proven,
        Own::ResetOne,
        Behaviour::Connect,
        MANY,
        AT_ONCE,
        |a| a.refused + a.established,
    ),
    (
        "own firewall says unreachable",
        Proven,
        Own::Unreachable,
        Behaviour::Hold,
        FEW,
        SECOND_TIME_OUT,
        |a| a.other.values().sum(),
    ),
    (
        "own firewall drops, gives up late",
        Proven,
        Own::Drop,
        Behaviour::Hold,
        1000,
        FIRST_TIME_OUT,
        |a| a.abandoned,
    ),
    (
        "own firewall drops to one backend, gives up late",
        Proven,
        Own::DropOne,
        Behaviour::Hold,
        1000,
        FIRST_TIME_OUT,
        |a| a.abandoned + a.established,
    ),
    (
        "own firewall drops, gives up at once",
        Proven,
        Own::Drop,
        Behaviour::Abandon,
        MANY,
        AT_ONCE,
        |a| a.abandoned,
    ),
    (
        "own firewall drops, killed while connecting",
        Proven,
        Own::Drop,
        Behaviour::Killed,
        MANY,
        AT_ONCE,
        |a| a.abandoned,
    ),
    (
        "own firewall drops, dissolves and connects again",
        Proven,
        Own::Drop,
        Behaviour::Dissolve,
        MANY,
        AT_ONCE,
        |a| a.abandoned,
    ),
    (
        "gives up at once",
        Proven,
        Own::Nothing,
        Behaviour::Abandon,
        MANY,
        AT_ONCE,
        |a| a.abandoned,
    ),
    (
        "dissolves and connects again",
        Proven,
        Own::Nothing,
        Behaviour::Dissolve,
        MANY,
        AT_ONCE,
        |a| a.abandoned,
    ),
    (
        "one descriptor for all",
        Proven,
        Own::Nothing,
        Behaviour::Reuse,
        MANY,
        AT_ONCE,
        |a| a.abandoned,
    ),
    (
        "one descriptor for all, own firewall resets",
        Proven,
        Own::Reset,
        Behaviour::Reuse,
        MANY,
        AT_ONCE,
        |a| a.abandoned + a.refused,
    ),
    (
        "ports are used up",
        Proven,
        Own::FewPorts,
        Behaviour::Hold,
        1000,
        AT_ONCE,
        |a| a.other.values().sum(),
    ),
    (
        "no route",
        Proven,
        Own::NoRoute,
        Behaviour::Connect,
        MANY,
        AT_ONCE,
        |a| a.other.values().sum(),
    ),
];

/// A lab with a good client under way.
struct Stage {
    lab: Lab,
    good: Traffic,
    targets: Vec<SocketAddr>,
}

impl Stage {
    fn set(name: &str) -> Self {
        Self::in_crowd(running(name, &crowd(CLIENTS)), GOOD)
    }

    fn in_crowd(lab: Lab, good: &str) -> Self {
        let node = lab.node("east-1").unwrap();
        let targets = [false, true].map(|v6| {
            let frontend = node.frontend(SERVICE, PORT, v6).unwrap();
            frontend.target().unwrap()
        });
        let mut good = client(&lab, good, "east-1");
        good.rate(RATE).unwrap();
        at_least(&mut good, 200);
        good.pause().unwrap();
        Self {
            good,
            targets: targets.to_vec(),
            lab,
        }
    }

    fn node(&self) -> Node<'_> {
        self.lab.node("east-1").unwrap()
    }

    /// Clients that the datapath tells apart from the good one, and from each other.
    fn strangers(&self) -> Vec<Pod<'_>> {
        let mut known = vec![mark(&self.lab.pod(GOOD).unwrap().netns()).unwrap()];
        let mut strangers = Vec::new();
        for number in 2..=CLIENTS {
            let pod = self.lab.pod(&format!("east/client-{number}")).unwrap();
            let mark = mark(&pod.netns()).unwrap();
            if !known.contains(&mark) {
                known.push(mark);
                strangers.push(pod);
            }
        }
        strangers
    }

    /// Lets a client reach the service, until it is one of `clients` that stand at both of the service's families.
    fn prove(&self, pod: &Pod<'_>, clients: u64) {
        let what = format!("{} stands", pod.name());
        wait_for(&what, Duration::from_secs(10), || {
            let account = pod.hostile(Behaviour::Connect, &self.targets, 40, AT_ONCE)?;
            assert_eq!(account.established, account.connects, "{account:?}");
            let standing = self.standing()?;
            anyhow::ensure!(standing.iter().all(|n| *n >= clients), "{standing:?}");
            Ok(Some(()))
        })
        .unwrap();
    }

    /// How many clients stand at the service, by family.
    fn standing(&self) -> anyhow::Result<Vec<u64>> {
        let rows = self.node().ask(&["bpf", "lb", "list"])?;
        let mut counts = Vec::new();
        for v6 in [false, true] {
            let index = self.node().frontend(SERVICE, PORT, v6)?.service_index;
            let services = rows["services"].as_array().into_iter().flatten();
            let ours = services.filter(|s| s["service"].as_u64() == index.map(u64::from));
            counts.extend(ours.filter_map(|s| s["standing"].as_u64()));
        }
        anyhow::ensure!(counts.len() == 2, "{rows}");
        Ok(counts)
    }

    /// The good client's connects take all backends back, and it never failed.
    fn expect_repair(&mut self, books: &Books) {
        self.good.rate(RATE).unwrap();
        wait_for("all backends are back", Duration::from_secs(40), || {
            Ok((books.since().out == 0).then_some(()))
        })
        .unwrap();
        self.good.pause().unwrap();
        let good = self.good.total();
        assert_eq!((good.failed(), good.wrong), (0, 0), "{:?}", good.told);
    }

    /// Does `work` while the good client goes on, and ends with nothing under way.
    fn beside<T>(&mut self, work: impl FnOnce(&Self) -> T) -> T {
        self.good.rate(RATE).unwrap();
        let result = work(self);
        // It saw the end of it too.
        at_least(&mut self.good, 50);
        self.good.pause().unwrap();
        result
    }
}

#[test]
fn no_hostile_client_ejects_a_healthy_backend_or_fails_a_good_one() {
    let mut stage = Stage::set("hostile");
    for (name, past, own, behaviour, connects, hold, done) in ROWS {
        let node = stage.node();
        let strangers: Vec<String> = stage.strangers().iter().map(Pod::name).collect();
        assert!(strangers.len() >= 3, "{strangers:?}");
        let pod = match past {
            Proven => &strangers[0],
            Newcomer => &strangers[1],
        };
        let bad = stage.lab.pod(pod).unwrap();
        if past == Proven {
            stage.prove(&bad, 2);
        }
        own.set(&bad, &stage.lab);
        let books = Books::open(node, SERVICE, PORT);
        drop(bad);
        let before = stage.good.total().clone();
        let account = stage.beside(|stage| {
            let bad = stage.lab.pod(pod).unwrap();
            bad.hostile(behaviour, &stage.targets, connects, hold)
                .unwrap()
        });
        let good = stage.good.total();
        assert_eq!(
            (good.failed(), good.wrong),
            (0, 0),
            "{name}: the good client: {:?} {:?}",
            good.failures,
            good.told
        );
        assert!(account.connects >= connects, "{name}: {account:?}");
        assert!(
            done(&account) * 10 >= account.connects * 9,
            "{name}: it did something else: {account:?}"
        );
        let kernel = books.since();
        assert_eq!(kernel.ejections, 0, "{name}: {account:?} {kernel:?}");
        assert_eq!(kernel.out, 0, "{name}: {kernel:?}");
        kernel.balance(
            name,
            good.requests - before.requests,
            &account,
            own == Own::Unreachable,
        );
        own.unset(&stage.lab.pod(pod).unwrap(), &stage.lab);
    }
    assert!(stage.good.total().requests > 5000, "the good client rested");
}

/// Two that never reached the service have no vote, however many failures they tell of together.
#[test]
fn newcomers_eject_nothing_together() {
    let mut stage = Stage::set("newcomers");
    let accounts = collude(&mut stage, Newcomer);
    assert!(accounts.refused >= 2 * MANY, "{accounts:?}");
    let good = stage.good.total();
    assert_eq!((good.failed(), good.wrong), (0, 0), "{:?}", good.told);
}

/// Two that stand are a quorum: they can put a backend out on their own node, beside a good client, which fails at nothing
/// meanwhile. When they are done the backend's trial takes it back.
#[test]
fn colluders_that_stand_fail_no_good_client_and_the_trial_repairs_what_they_did() {
    let mut stage = Stage::set("colluders");
    collude(&mut stage, Proven);
    let books = Books::open(stage.node(), SERVICE, PORT);
    stage.expect_repair(&books);
}

/// Two that share a mark are one client to the datapath: the one can put a backend out for both, as the only client of a
/// service can. The good one fails at nothing meanwhile, and the trial repairs it.
#[test]
fn one_that_shares_the_good_client_s_mark_fails_it_at_nothing() {
    let lab = running("marks", &crowd(MORE_THAN_MARKS));
    let mut known = BTreeMap::new();
    let pair = (1..=MORE_THAN_MARKS).find_map(|number| {
        let name = format!("east/client-{number}");
        let mark = mark(&lab.pod(&name).unwrap().netns()).unwrap();
        known.insert(mark, name.clone()).map(|other| [other, name])
    });
    let [good, bad] = pair.unwrap();
    let mut stage = Stage::in_crowd(lab, &good);
    let pod = stage.lab.pod(&bad).unwrap();
    Own::ResetOne.set(&pod, &stage.lab);
    drop(pod);
    let books = Books::open(stage.node(), SERVICE, PORT);
    let before = stage.good.total().requests;
    let account = stage.beside(|stage| {
        let pod = stage.lab.pod(&bad).unwrap();
        pod.hostile(Behaviour::Connect, &stage.targets, MANY, AT_ONCE)
            .unwrap()
    });
    let kernel = books.since();
    assert!(kernel.ejections >= 1, "{kernel:?}");
    let requests = stage.good.total().requests - before;
    kernel.balance("one mark", requests, &account, false);
    Own::ResetOne.unset(&stage.lab.pod(&bad).unwrap(), &stage.lab);
    stage.expect_repair(&books);
}

/// Two clients whose own firewalls reset what goes to one backend connect at the same time. Gives what both say, and expects
/// no ejection by newcomers.
fn collude(stage: &mut Stage, past: Past) -> Account {
    let pair: Vec<String> = stage.strangers().iter().map(Pod::name).take(2).collect();
    assert_eq!(pair.len(), 2);
    let own = match past {
        Newcomer => Own::Reset,
        Proven => Own::ResetOne,
    };
    for (clients, name) in (2..).zip(&pair) {
        let pod = stage.lab.pod(name).unwrap();
        if past == Proven {
            stage.prove(&pod, clients);
        }
        own.set(&pod, &stage.lab);
    }
    let books = Books::open(stage.node(), SERVICE, PORT);
    let before = stage.good.total().requests;
    let accounts = stage.beside(|stage| {
        std::thread::scope(|scope| {
            let each = |name: &String| {
                let pod = stage.lab.pod(name).unwrap();
                scope.spawn(move || {
                    pod.hostile(Behaviour::Connect, &stage.targets, MANY, AT_ONCE)
                        .unwrap()
                })
            };
            let both: Vec<_> = pair.iter().map(each).collect();
            let accounts = both.into_iter().map(|thread| thread.join().unwrap());
            accounts.fold(Account::default(), |sum, more| sum.and(&more))
        })
    });
    let kernel = books.since();
    match past {
        Newcomer => assert_eq!((kernel.ejections, kernel.out), (0, 0), "{kernel:?}"),
        // The one backend that their firewalls reset, by its address of each family; again after each return that falls in it.
        Proven => assert!(kernel.ejections >= 1, "{kernel:?}"),
    }
    let good = stage.good.total().requests - before;
    kernel.balance("two together", good, &accounts, false);
    for name in &pair {
        own.unset(&stage.lab.pod(name).unwrap(), &stage.lab);
    }
    accounts
}
