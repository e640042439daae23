//! Backends that are dead in earnest, by every death: how many connects it costs, that the kernel's counts are the client's,
//! and that they come back.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use isthmus_tests::client::{NO_ANSWER, REFUSED, Report, TIMED_OUT, monotonic};
use isthmus_tests::hostile::Account;
use isthmus_tests::{Pod, wait_for};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::books::{Told, page};
use super::common::{ALONE, PORT, SERVICE, running};
use super::scene::{BACKENDS, RATE, Scene, WORKERS};

/// Three failures, and those that were drawn before the third.
fn expect_three(count: u64, report: &Report) {
    let most = 3 + u64::try_from(WORKERS).unwrap() - 1;
    assert!((3..=most).contains(&count), "{report:?}");
}

/// Time-outs: five eject, a second after the fifth connect began. None of them is over by then: with one retransmission the
/// kernel gives a connect up after three seconds. So each worker has met the dead backend once at most when it is ejected,
/// and then it is tried by one connect at a time, four seconds later at the earliest: one that falls due before the
/// traffic ends.
fn expect_one_each(failed: u64, workers: usize, report: &Report) {
    assert!((5..=workers as u64 + 1).contains(&failed), "{report:?}");
}

#[test]
fn a_killed_backend_costs_three_refusals_and_comes_back() {
    let mut scene = Scene::set("killed", WORKERS, Duration::from_secs(2));
    let (report, opened) = scene.until_out(1, |scene| {
        scene.pod(BACKENDS[0]).kill_server().unwrap();
    });
    let refused = report.failed_by(REFUSED);
    expect_three(refused, &report);
    // What was accepted and broken off by the kill is no connect that failed.
    assert!(report.failed() - refused <= WORKERS as u64, "{report:?}");
    let kernel = scene.balance(&opened);
    assert_eq!((kernel.unanswered, kernel.ejections), (0, 1), "{kernel:?}");
    scene.pod(BACKENDS[0]).start_server().unwrap();
    let back = scene.until_back();
    let refused = refused + back.failed_by(REFUSED);
    assert_eq!(scene.balance(&opened).refused, refused);
    // Metrics say the same: of all families together, from the first connect on.
    let page = page(scene.node());
    let of = |cluster: &str| format!("service=\"{SERVICE}\"{cluster}");
    let pair = of(",cluster=\"east\"");
    let metric = |name: &str, labels: &str| {
        let line = format!("isthmus_{name}{{{labels}}} ");
        let found = page.lines().find_map(|l| l.strip_prefix(&line));
        found
            .unwrap_or_else(|| panic!("no {line}in:\n{page}"))
            .parse::<f64>()
            .unwrap()
    };
    let reason = format!("{pair},reason=\"refused\"");
    assert_eq!(
        metric("service_failed_connects_total", &reason),
        refused as f64
    );
    assert_eq!(metric("service_ejections_total", &of("")), 1.0);
    for event in ["ejected", "returned"] {
        let label = format!("event=\"{event}\"");
        assert_eq!(metric("health_events_total", &label), 1.0);
    }
    assert_eq!(metric("service_backends_ejected", &pair), 0.0);
    // Two backends, a port each of TCP and UDP, two families.
    assert_eq!(metric("service_backends", &pair), 8.0);
    let all = scene.client.total().requests;
    assert_eq!(metric("service_connects_total", &pair), all as f64);
}

/// One after the other, by two deaths in turn: what each costs, and how long after it the last of its failures came.
#[test]
fn nine_deaths_of_ten_backends_cost_three_refusals_each() {
    const BACKENDS: usize = 10;
    let ten = ALONE.replace("count: 2", &format!("count: {BACKENDS}"));
    let patience = Duration::from_secs(2);
    let mut scene = Scene::in_lab(running("ten", &ten), WORKERS, patience);
    let (mut costs, mut times) = (Vec::new(), Vec::new());
    for nth in 1..BACKENDS {
        let name = format!("east/backend-{nth}");
        let mut listener =
            (nth % 2 == 0).then(|| Impostor::instead_of(&scene.pod(&name), Some(Duration::ZERO)));
        let mut died = 0;
        let (report, opened) = scene.until_out(nth as u64, |scene| {
            died = monotonic();
            match listener.take() {
                Some(listener) => drop(listener),
                None => scene.pod(&name).kill_server().unwrap(),
            }
        });
        scene.balance(&opened);
        // Of the one that died, by its IPv4 address: another's trial may have been refused meanwhile.
        costs.push(opened.books.since_by_backend()[nth - 1].refused);
        let refused = report.told.iter().filter(|f| f.error == REFUSED);
        let last = refused.map(|f| f.at).nth(2).unwrap();
        times.push(last.saturating_sub(died) as f64 / 1e6);
    }
    times.sort_by(f64::total_cmp);
    let told = format!("refused {costs:?}, milliseconds until the third {times:.1?}");
    eprintln!("{told}");
    let most = 3 + WORKERS as u64 - 1;
    assert!(costs.iter().all(|cost| (3..=most).contains(cost)), "{told}");
    // Each draw meets the dead one of ten or fewer once in 10 ms.
    assert!(times[times.len() / 2] < 200.0, "{told}");
    assert!(times[times.len() - 1] < 1000.0, "{told}");
}

/// The process lives; its listener is gone.
#[test]
fn a_closed_listener_costs_three_refusals() {
    let mut scene = Scene::set("closed", WORKERS, Duration::from_secs(2));
    let listener = Impostor::instead_of(&scene.pod(BACKENDS[0]), Some(Duration::ZERO));
    let (report, opened) = scene.until_out(1, |_| drop(listener));
    expect_three(report.failed_by(REFUSED), &report);
    let kernel = scene.balance(&opened);
    assert_eq!((kernel.unanswered, kernel.ejections), (0, 1), "{kernel:?}");
}

/// It accepts, and answers late: that is no failure, and it keeps its share.
#[test]
fn a_slow_backend_is_not_ejected() {
    let mut scene = Scene::set("slow", 16, Duration::from_secs(10));
    let delay = Duration::from_millis(300);
    let slow = Impostor::instead_of(&scene.pod(BACKENDS[0]), Some(delay));
    let opened = scene.open_books();
    scene.client.rate(RATE).unwrap();
    let report = scene.more(200);
    let report = report.and(&scene.client.pause().unwrap());
    assert_eq!(
        (report.failed(), report.answers.len()),
        (0, 2),
        "{report:?}"
    );
    // Of 200 or more draws a half each: a third is 33 less than that, more than four times their standard deviation (√200 ÷ 2).
    let least = report.answered() / 3;
    let mut shares = report.answers.values().map(|answers| answers.count);
    assert!(shares.all(|share| share > least), "{report:?}");
    let kernel = scene.balance(&opened);
    assert_eq!((kernel.unanswered, kernel.ejections), (0, 0), "{kernel:?}");
    drop(slow);
}

/// It does not accept. When its queue is full, the kernel behind it drops SYNs: a black hole to those who come then.
#[test]
fn a_backend_whose_queue_is_full_is_ejected_by_first_time_outs() {
    const QUEUE: u64 = 4;
    const MANY_WORKERS: usize = 32;
    let mut scene = Scene::set("queue", MANY_WORKERS, Duration::from_secs(8));
    let client = scene.pod("east/client").netns();
    client.sysctl(&[("net/ipv4/tcp_syn_retries", "1")]).unwrap();
    let netns = scene.pod(BACKENDS[0]).netns();
    let queue = QUEUE.to_string();
    netns.sysctl(&[("net/core/somaxconn", &queue)]).unwrap();
    let deaf = Impostor::instead_of(&scene.pod(BACKENDS[0]), None);
    let (_, opened) = scene.until_out(1, |_| ());
    let kernel = scene.balance(&opened);
    let report = scene.client.total();
    assert_eq!((kernel.ejections, kernel.refused), (1, 0), "{kernel:?}");
    // Those in the queue were established, and got no answer.
    let deaf_to = report.failed_by(NO_ANSWER);
    assert!((1..=2 * QUEUE).contains(&deaf_to), "{report:?}");
    assert_eq!(
        report.failed(),
        deaf_to + report.failed_by(TIMED_OUT),
        "{report:?}"
    );
    expect_one_each(report.failed(), MANY_WORKERS, report);
    drop(deaf);
}

/// The connects wait: an ICMP error that comes back while `connect` still holds the socket is a hint to the kernel, and the
/// retransmission brings it again as an error.
#[test]
fn a_host_that_is_unreachable_costs_three_connects_and_comes_back() {
    let mut scene = Scene::set("unreachable", WORKERS, Duration::from_secs(5));
    let opened = scene.open_books();
    let verdict = "reject with icmpx type host-unreachable";
    scene.pod(BACKENDS[0]).netns().nft(&gate(verdict)).unwrap();
    let mut account = Account::default();
    wait_for("it is ejected", Duration::from_secs(20), || {
        account = std::mem::take(&mut account).and(&scene.connects(20));
        Ok((opened.books.since().out == 1).then_some(()))
    })
    .unwrap();
    account = account.and(&scene.connects(100));
    let failed = account.other_of("EHOSTUNREACH");
    assert_eq!(
        account.established,
        account.connects - failed,
        "{account:?}"
    );
    // Each that was kept from the programs is one more.
    let kept = scene.kept(&opened).unreachable;
    assert!(
        (3..=3 + kept).contains(&failed),
        "{account:?}, kept: {kept}"
    );
    let kernel = scene.balance_with(&opened, Told::by_hostile(&account, true));
    assert_eq!(kernel.ejections, 1, "{kernel:?}");
    open(&scene.pod(BACKENDS[0]));
    scene.until_back();
}

/// Packets vanish. The first time-out of a connect counts, a second after it began, and five of them eject; connects that were
/// under way by then are given up by the kernel, and counted as that.
#[test]
fn a_black_hole_is_ejected_by_first_time_outs() {
    const MANY_WORKERS: usize = 48;
    let mut scene = Scene::set("hole", MANY_WORKERS, Duration::from_secs(20));
    let client = scene.pod("east/client").netns();
    client.sysctl(&[("net/ipv4/tcp_syn_retries", "1")]).unwrap();
    let (report, opened) = scene.until_out(1, |scene| {
        scene.pod(BACKENDS[0]).netns().nft(&gate("drop")).unwrap();
    });
    let kernel = scene.balance(&opened);
    let timed_out = report.failed_by(TIMED_OUT);
    expect_one_each(timed_out, MANY_WORKERS, &report);
    // What was established when the packets began to vanish had no answer. Nobody's own patience ended before a connect.
    let unanswered = report.failed_by(NO_ANSWER);
    assert_eq!(report.failed(), timed_out + unanswered, "{report:?}");
    assert!(unanswered <= 2, "{report:?}");
    assert_eq!(kernel.ejections, 1, "{kernel:?}");
    // No answer came later.
    let kept = scene.kept(&opened);
    assert!(
        kernel.has_unanswered(&kept, timed_out),
        "{kernel:?}, kept: {kept:?}"
    );
    open(&scene.pod(BACKENDS[0]));
    scene.until_back();
}

/// With every backend out, draws go on as if none were: so the first connect after their return succeeds, without waiting
/// for a trial's time.
#[test]
fn the_first_connect_after_all_have_returned_succeeds() {
    let mut scene = Scene::set("all", WORKERS, Duration::from_secs(2));
    let opened = scene.open_books();
    for (out, backend) in (1..).zip(BACKENDS) {
        let kill = |scene: &Scene| scene.pod(backend).kill_server().unwrap();
        scene.until_out(out, kill);
    }
    let kernel = scene.balance(&opened);
    assert_eq!(kernel.ejections, 2, "{kernel:?}");
    assert!(kernel.all_ejected > 0, "{kernel:?}");
    scene.expect_first_connect(&opened);
}

/// The only client fails at two backends with no success between, so it might be its own trouble: it loses its vote, both are
/// closed to it alone, and draws go on as if they were not.
#[test]
fn the_first_connect_after_all_died_at_once_succeeds() {
    let mut scene = Scene::set("once", WORKERS, Duration::from_secs(2));
    let opened = scene.open_books();
    scene.client.rate(RATE).unwrap();
    for backend in BACKENDS {
        scene.pod(backend).kill_server().unwrap();
    }
    let report = scene.more(400);
    let report = report.and(&scene.client.pause().unwrap());
    assert!(report.answered() < 200, "{report:?}");
    scene.balance(&opened);
    scene.expect_first_connect(&opened);
}

/// How often an impostor looks whether it is to close.
const LOOK: Duration = Duration::from_millis(5);

/// A listener in the place of a pod's server, held by the test.
struct Impostor {
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    /// Ends the server. `answers` is how long each answer takes; without it nothing is accepted.
    fn instead_of(pod: &Pod<'_>, answers: Option<Duration>) -> Self {
        pod.kill_server().unwrap();
        let listener = pod.netns().run(|| TcpListener::bind(("0.0.0.0", PORT)));
        let listener = listener.unwrap().unwrap();
        let closing = Arc::new(AtomicBool::new(false));
        let (closed, name) = (Arc::clone(&closing), format!("{SERVICE} {}\n", pod.name()));
        let thread = std::thread::spawn(move || {
            let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            while !closed.load(Ordering::Relaxed) {
                let Some(delay) = answers else {
                    std::thread::park_timeout(LOOK);
                    continue;
                };
                let look = PollTimeout::try_from(LOOK).unwrap();
                if poll(&mut wait, look).unwrap() == 1 {
                    let (stream, _) = listener.accept().unwrap();
                    let name = name.clone();
                    std::thread::spawn(move || answer(stream, delay, &name));
                }
            }
        });
        Self {
            closing,
            thread: Some(thread),
        }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: TcpStream, delay: Duration, name: &str) {
    // How long this server takes, not a wait for anything.
    std::thread::sleep(delay);
    // A client that is gone already did not want the answer.
    let _ = stream.write_all(name.as_bytes());
}

/// What a pod does with connects to it.
fn gate(verdict: &str) -> String {
    format!(
        "table inet gate {{ chain in {{ type filter hook input priority 0\ntcp dport {PORT} {verdict}\n}}\n}}\n"
    )
}

fn open(pod: &Pod<'_>) {
    pod.netns().nft("delete table inet gate\n").unwrap();
}
