//! Clients that do not mean it, beside one that does, on one node: no backend is ejected for them, the good client fails at
//! nothing, and the books balance: what the kernel counts is what the clients say.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod table;
mod told;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isthmus_abi::CLIENT_MARKS;
use isthmus_tests::client::Report;
use isthmus_tests::hostile::{Account, Behaviour, mark};
use isthmus_tests::{Lab, Node, Pod, Traffic, wait_for};

use super::books::{Books, Told};
use super::common::{PORT, SERVICE, SetAtEnd, at_least, client, running};
use super::own::Own;
use super::shield::Shield;
use table::{FIRST_TIME_OUT, MANY, Past, ROWS, Silence};

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
/// Enough that six are told apart from the good one, and from each other.
const CLIENTS: usize = 12;
/// Clients that never reach the service before their rows.
const NEWCOMERS: usize = 2;
/// More than there are marks: two must share one.
const MORE_THAN_MARKS: usize = CLIENT_MARKS as usize + 1;
const GOOD: &str = "east/client-1";
const DEAD: &str = "east/backend-1";
const RATE: f64 = 900.0;
/// Of a good client that seldom says anything for a backend.
const SELDOM: f64 = 50.0;
/// Fewer answers say nothing of shares.
const SHARED: u64 = 500;
const AT_ONCE: Duration = Duration::ZERO;

/// A lab with a good client under way.
struct Stage {
    lab: Lab,
    good: Traffic,
    rate: f64,
    targets: Vec<SocketAddr>,
    shield: Shield,
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
            rate: RATE,
            targets: targets.to_vec(),
            shield: Shield::watch(),
            lab,
        }
    }

    fn node(&self) -> Node<'_> {
        self.lab.node("east-1").unwrap()
    }

    fn pod(&self, name: &str) -> Pod<'_> {
        self.lab.pod(name).unwrap()
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

    fn books(&self) -> Books {
        Books::open(self.node(), SERVICE, PORT)
    }

    /// Lets a client reach the service, until it stands at both of the service's families, and no backend of either is closed
    /// to it. The good one must rest.
    fn prove(&self, pod: &Pod<'_>) {
        let what = format!("{} stands", pod.name());
        let mark = mark(&pod.netns()).unwrap();
        wait_for(&what, Duration::from_secs(20), || {
            let books = self.books();
            let account = pod.hostile(Behaviour::Connect, &self.targets, 40, AT_ONCE)?;
            assert_eq!(account.established, account.connects, "{account:?}");
            let reached = books.since_by_backend();
            anyhow::ensure!(
                reached.iter().all(|backend| backend.connects > 0) && books.stands(mark),
                "{reached:?}"
            );
            Ok(Some(()))
        })
        .unwrap();
    }

    fn wait_all_back(&self, books: &Books) {
        wait_for("all backends are back", Duration::from_secs(40), || {
            Ok((books.since().out == 0).then_some(()))
        })
        .unwrap();
    }

    /// The good client's connects take all backends back, and it never failed.
    fn expect_repair(&mut self, books: &Books) {
        self.good.rate(RATE).unwrap();
        self.wait_all_back(books);
        self.good.pause().unwrap();
        let good = self.good.total();
        assert_eq!((good.failed(), good.wrong), (0, 0), "{:?}", good.told);
    }

    /// Does `work` while the good client goes on, and ends with nothing under way. Gives what the good client told meanwhile,
    /// which was no failure.
    fn beside<T>(&mut self, work: impl FnOnce(&Self) -> T) -> (T, Told) {
        let before = Told::by_client(self.good.total());
        self.good.rate(self.rate).unwrap();
        let result = work(self);
        // It saw the end of it too.
        at_least(&mut self.good, 50);
        self.good.pause().unwrap();
        let good = self.good.total();
        assert_eq!(
            (good.failed(), good.wrong),
            (0, 0),
            "the good client: {:?} {:?}",
            good.failures,
            good.told
        );
        (result, Told::by_client(good).since(before))
    }
}

#[test]
fn no_hostile_client_ejects_a_healthy_backend_or_fails_a_good_one() {
    let mut stage = Stage::set("hostile");
    let strangers: Vec<String> = stage.strangers().iter().map(Pod::name).collect();
    assert!(strangers.len() >= 6, "{strangers:?}");
    let (newcomers, others) = strangers.split_at(NEWCOMERS);
    // Each row's client is not the last one's, and so not one to which that one's doings closed a backend.
    let (mut newcomers, mut others) = (newcomers.iter().cycle(), others.iter().cycle());
    let often = ROWS.iter().map(|row| (RATE, row));
    let seldom = ROWS.iter().filter(|row| row.hold < FIRST_TIME_OUT);
    for (rate, row) in often.chain(seldom.map(|row| (SELDOM, row))) {
        let name = row.name;
        stage.rate = rate;
        let before = stage.good.total().clone();
        let pod = match row.past {
            Past::Newcomer => newcomers.next().unwrap(),
            Past::Proven => others.next().unwrap(),
        };
        let bad = stage.pod(pod);
        if row.past == Past::Proven {
            stage.prove(&bad);
        }
        row.own.set(&bad, &stage.lab);
        drop(bad);
        let books = stage.books();
        let kept = stage.shield.kept();
        let (account, good) = stage.beside(|stage| {
            let bad = stage.pod(pod);
            bad.hostile(row.behaviour, &stage.targets, MANY, row.hold)
                .unwrap()
        });
        let kept = stage.shield.kept().since(kept);
        let kernel = books.since();
        let told = format!("{name}, {rate}/s: {account:?} {kernel:?} {good:?}");
        expect_shares(&before, stage.good.total(), &told);
        assert!(account.connects >= MANY, "{told}");
        assert!((row.did)(&account), "it did something else: {told}");
        assert_eq!((kernel.ejections, kernel.out), (0, 0), "{told}");
        let unreachable = matches!(row.own, Own::Unreachable | Own::Prohibited);
        let all = good.and(Told::by_hostile(&account, unreachable));
        kernel.and_kept(kept, all).balance(name, all);
        match row.silence {
            Silence::Never => assert_eq!(kernel.unanswered, 0, "{told}"),
            Silence::OfAbandoned => assert!(
                kernel.has_unanswered(&kept, account.abandoned),
                "{told}, kept: {kept:?}"
            ),
            Silence::OfTimedOut => assert!(
                kernel.has_unanswered(&kept, account.timed_out),
                "{told}, kept: {kept:?}"
            ),
            Silence::Perhaps => assert!(kernel.unanswered <= account.connects, "{told}"),
        }
        row.own.unset(&stage.pod(pod), &stage.lab);
    }
    assert!(stage.good.total().requests > 5000, "the good client rested");
}

/// Nobody takes a backend from the good client: each answered it as often as the other, more or less.
fn expect_shares(before: &Report, now: &Report, told: &str) {
    let answered = now.answered() - before.answered();
    for (backend, answers) in &now.answers {
        let before = before.answers.get(backend).map_or(0, |before| before.count);
        let share = answers.count - before;
        assert!(
            answered < SHARED || share * 3 > answered,
            "{backend} gave {share} of {answered} answers: {told}"
        );
    }
}

/// Two that never reached the service have no vote, however many failures they tell of together.
#[test]
fn newcomers_eject_nothing_together() {
    let mut stage = Stage::set("newcomers");
    let accounts = collude(&mut stage, Past::Newcomer);
    assert_eq!(accounts.refused, accounts.connects, "{accounts:?}");
}

/// Two that stand are a quorum: they can put a backend out on their own node, beside a good client, which fails at nothing
/// meanwhile. When they are done the backend's trial takes it back.
#[test]
fn colluders_that_stand_fail_no_good_client_and_the_trial_repairs_what_they_did() {
    let mut stage = Stage::set("colluders");
    // If the good client reaches the backend between their failures, it is believed.
    for turn in 1.. {
        let before = stage.books();
        collude(&mut stage, Past::Proven);
        let ejections = before.since().ejections;
        let books = stage.books();
        stage.expect_repair(&books);
        if ejections > 0 {
            break;
        }
        assert!(turn < 10, "they never put a backend out");
    }
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
    let pod = stage.pod(&bad);
    Own::ResetOne.set(&pod, &stage.lab);
    drop(pod);
    let books = stage.books();
    let (account, good) = stage.beside(|stage| {
        let pod = stage.pod(&bad);
        pod.hostile(Behaviour::Connect, &stage.targets, MANY, AT_ONCE)
            .unwrap()
    });
    let kernel = books.since();
    assert!(kernel.ejections >= 1, "{kernel:?}");
    kernel.balance("one mark", good.and(Told::by_hostile(&account, false)));
    Own::ResetOne.unset(&stage.pod(&bad), &stage.lab);
    stage.expect_repair(&books);
}

/// A dead backend returns while a hostile client that stands abandons every connect: it keeps no trial to itself.
#[test]
fn one_that_abandons_every_connect_holds_no_trial() {
    let mut stage = Stage::set("hog");
    let hog = stage.strangers()[0].name();
    stage.prove(&stage.pod(&hog));
    let (books, before) = (stage.books(), Told::by_client(stage.good.total()));
    let mut abandoned = Account::default();
    stage.pod(DEAD).kill_server().unwrap();
    stage.good.rate(RATE).unwrap();
    // Both of its addresses: two failures of the one client and one of the other.
    wait_for("the dead backend is out", Duration::from_secs(10), || {
        let pod = stage.pod(&hog);
        let account = pod.hostile(Behaviour::Connect, &stage.targets, 20, AT_ONCE)?;
        abandoned = std::mem::take(&mut abandoned).and(&account);
        Ok((books.since().out == 2).then_some(()))
    })
    .unwrap();
    assert_eq!(books.since().ejections, 2);
    Own::Drop.set(&stage.pod(&hog), &stage.lab);
    stage.pod(DEAD).start_server().unwrap();
    stage.good.mark().unwrap();
    let refused = Told::by_client(stage.good.total()).refused;
    let back = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hostile = scope.spawn(|| {
            let mut sum = Account::default();
            while !back.load(Ordering::Relaxed) {
                let pod = stage.pod(&hog);
                let account = pod.hostile(Behaviour::Abandon, &stage.targets, 1000, AT_ONCE);
                sum = sum.and(&account.unwrap());
            }
            sum
        });
        let end = SetAtEnd(&back);
        stage.wait_all_back(&books);
        drop(end);
        let account = hostile.join().unwrap();
        assert_eq!(account.abandoned, account.connects, "{account:?}");
        abandoned = std::mem::take(&mut abandoned).and(&account);
    });
    at_least(&mut stage.good, 50);
    stage.good.pause().unwrap();
    let good = Told::by_client(stage.good.total());
    assert_eq!(good.refused, refused, "a trial was refused");
    let told = good.since(before).and(Told::by_hostile(&abandoned, false));
    books.since().balance("a hog", told);
}

/// Two clients whose own firewalls reset what goes to one backend connect at the same time. Gives what both say, and expects
/// no ejection by newcomers.
fn collude(stage: &mut Stage, past: Past) -> Account {
    let pair: Vec<String> = stage.strangers().iter().map(Pod::name).take(2).collect();
    assert_eq!(pair.len(), 2);
    let own = match past {
        Past::Newcomer => Own::Reset,
        Past::Proven => Own::ResetOne,
    };
    if past == Past::Proven {
        for name in &pair {
            stage.prove(&stage.pod(name));
        }
    }
    for name in &pair {
        own.set(&stage.pod(name), &stage.lab);
    }
    let books = stage.books();
    let (accounts, good) = stage.beside(|stage| {
        std::thread::scope(|scope| {
            let each = |name: &String| {
                let pod = stage.pod(name);
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
    if past == Past::Newcomer {
        assert_eq!((kernel.ejections, kernel.out), (0, 0), "{kernel:?}");
    }
    kernel.balance("two together", good.and(Told::by_hostile(&accounts, false)));
    for name in &pair {
        own.unset(&stage.pod(name), &stage.lab);
    }
    accounts
}
