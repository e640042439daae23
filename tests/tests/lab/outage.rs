//! Agents that are killed, replaced, and replaced with other maps, while backends die, are ejected, on trial, and kept in by the
//! cap: under traffic whose books balance, beside flows that live through all of it.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isthmus_tests::client::{NO_ANSWER, REFUSED, Report};
use isthmus_tests::{Frontend, wait_for};

use super::books::{Counted, Opened};
use super::common::{PORT, SERVICE, SetAtEnd, TWO_SMALL, expect_all_translated, running};
use super::long::LongFlows;
use super::scene::{BACKENDS, RATE, RETURN, Scene, WORKERS};

/// Other maps than those of the defaults, as another ABI has.
const OTHER_MAPS: [&str; 2] = ["--lb-backends-max", "4096"];

/// It stays out through agents that die and come; maps of other sizes begin without what was known, and find it out again.
#[test]
fn restarts_leave_a_dead_backend_out_and_new_maps_cost_its_failures_once_more() {
    let mut scene = Scene::set("outage", WORKERS, Duration::from_secs(2));
    let mut flows = LongFlows::begin(&scene.lab);
    let (_, opened) = scene.until_out(1, |scene| {
        scene.pod(BACKENDS[0]).kill_server().unwrap();
    });
    scene.balance(&opened);
    flows.go_on("with a backend out");
    let age = ejected_for(&scene);
    let (_, opened) = scene.through(|node| {
        node.kill_agent().unwrap();
        flows.go_on("without an agent");
        node.start_agent(&[]).unwrap();
    });
    let later = ejected_for(&scene);
    assert!(later > age, "ejected {age} s ago, and {later} s ago");
    flows.go_on("with the next agent");
    let kernel = scene.balance(&opened);
    // What is refused are trials, one for each time that is over; a trial that fails is no ejection more.
    assert_eq!((kernel.out, kernel.ejections), (1, 0), "{kernel:?}");
    assert!(kernel.refused <= 2, "{kernel:?}");
    let (report, mut opened) = scene.through(|node| {
        node.stop_agent().unwrap();
        node.start_agent(&OTHER_MAPS).unwrap();
    });
    opened.books.change_over(scene.node());
    flows.change_over(scene.node());
    flows.go_on("with other maps");
    scene.balance(&opened);
    // Nobody stands there yet: two failures close it to this client, three eject it.
    let refused = report.failed_by(REFUSED);
    assert!((2..=3 + WORKERS as u64).contains(&refused), "{report:?}");
    let last = scene.more_paused(300);
    // A trial may fall due meanwhile.
    assert!(last.failed() <= 1, "{last:?}");
    scene.pod(BACKENDS[0]).start_server().unwrap();
    scene.until_back();
    scene.balance(&opened);
    flows.go_on("with both backends back");
    flows.balance();
}

/// Seconds since the one backend that is out was ejected, as the agent tells it.
fn ejected_for(scene: &Scene) -> f64 {
    let frontend = scene.node().frontend(SERVICE, PORT, false).unwrap();
    let health = frontend.backends.into_iter().filter_map(|b| b.health);
    let out = health.filter(|health| ["ejected", "trial"].contains(&health.state.as_str()));
    let ages: Vec<_> = out.map(|health| health.since_seconds).collect();
    let [Some(age)] = ages[..] else {
        panic!("{ages:?}");
    };
    age
}

/// One agent after the other is killed, all the time from before the trial of a backend that listens again until after it.
#[test]
fn a_trial_readmits_while_agents_come_and_go() {
    let mut scene = Scene::set("comeback", WORKERS, Duration::from_secs(2));
    let mut flows = LongFlows::begin(&scene.lab);
    let (_, opened) = scene.until_out(1, |scene| {
        scene.pod(BACKENDS[0]).kill_server().unwrap();
    });
    scene.pod(BACKENDS[0]).start_server().unwrap();
    scene.client.rate(RATE).unwrap();
    let back = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let restarts = scope.spawn(|| {
            let mut restarts = 0;
            while !back.load(Ordering::Relaxed) {
                scene.node().kill_agent().unwrap();
                scene.node().start_agent(&[]).unwrap();
                restarts += 1;
            }
            restarts
        });
        let end = SetAtEnd(&back);
        wait_for("it is back", RETURN, || {
            Ok((opened.books.since().out == 0).then_some(()))
        })
        .unwrap();
        drop(end);
        assert!(restarts.join().unwrap() > 2, "agents did not come and go");
    });
    flows.go_on("through it all");
    scene.more(200);
    let last = scene.client.pause().unwrap();
    assert_eq!(last.failed(), 0, "{last:?}");
    let kernel = scene.balance(&opened);
    assert_eq!((kernel.out, kernel.ejections), (0, 1), "{kernel:?}");
    // The one time that it listened was the first trial's.
    let before = WORKERS as u64 - 1;
    assert!((3..=3 + before).contains(&kernel.refused), "{kernel:?}");
    flows.balance();
}

/// Without an agent nobody raises the cap: each backend can be ejected once, and no more.
fn capped(name: &str) -> (Scene, LongFlows, Opened) {
    let mut scene = Scene::set(name, WORKERS, Duration::from_secs(2));
    let mut flows = LongFlows::begin(&scene.lab);
    let all = scene.open_books();
    scene.node().kill_agent().unwrap();
    for (out, backend) in (1..).zip(BACKENDS) {
        scene.client.rate(RATE).unwrap();
        scene.pod(backend).kill_server().unwrap();
        wait_for("it is ejected", RETURN, || {
            Ok((all.books.since().out >= out).then_some(()))
        })
        .unwrap();
    }
    for backend in BACKENDS {
        scene.pod(backend).start_server().unwrap();
    }
    wait_for("both are back", RETURN, || {
        Ok((all.books.since().out == 0).then_some(()))
    })
    .unwrap();
    scene.client.pause().unwrap();
    let before = scene.balance(&all);
    assert_eq!(before.ejections, 2);
    scene.client.rate(RATE).unwrap();
    scene.pod(BACKENDS[0]).kill_server().unwrap();
    // Three would eject it. It is closed to the client for a while instead, and tried again, and closed.
    let more = before.refused + 3 + WORKERS as u64;
    wait_for("more than an ejection's refusals", RETURN, || {
        Ok((all.books.since().refused > more).then_some(()))
    })
    .unwrap();
    scene.client.pause().unwrap();
    let kernel = scene.balance(&all);
    assert_eq!((kernel.out, kernel.ejections), (0, 2), "{kernel:?}");
    flows.go_on("without an agent, with a backend kept in by the cap");
    (scene, flows, all)
}

/// The next agent raises the cap, and the next failure ejects.
#[test]
fn what_the_cap_kept_in_goes_with_the_next_agent() {
    let (mut scene, mut flows, opened) = capped("capped");
    scene.node().start_agent(&[]).unwrap();
    scene.client.rate(RATE).unwrap();
    wait_for("it is ejected", RETURN, || {
        Ok((opened.books.since().out == 1).then_some(()))
    })
    .unwrap();
    scene.more(200);
    scene.client.pause().unwrap();
    assert_eq!(scene.balance(&opened).ejections, 3);
    flows.go_on("with the next agent");
    flows.balance();
}

/// Other maps know nothing of earlier ejections, and have a cap of their own.
#[test]
fn what_the_cap_kept_in_goes_with_other_maps() {
    let (mut scene, mut flows, mut opened) = capped("cappedmaps");
    scene.client.rate(RATE).unwrap();
    scene.more(100);
    scene.node().start_agent(&OTHER_MAPS).unwrap();
    opened.books.change_over(scene.node());
    flows.change_over(scene.node());
    // If it fails the client twice before that stands anew, it is closed to it for five seconds first.
    wait_for("it is ejected", RETURN, || {
        Ok((opened.books.since().out == 1).then_some(()))
    })
    .unwrap();
    scene.client.pause().unwrap();
    // The two before the cap, and the one of the other maps.
    assert_eq!(scene.balance(&opened).ejections, 3);
    flows.go_on("with other maps");
    flows.balance();
}

/// Connects under way at once when a pod goes.
const MANY_WORKERS: usize = 16;

/// A pod of the other cluster goes whole, with its network, while neither node has an agent; both get one later. What clients
/// asked until the kernel had ejected it, and what it counted.
fn removed_without_agents(name: &str, network: impl FnOnce(&Scene)) -> (Report, Counted) {
    const GONE: &str = "west/backend";
    let lab = running(name, TWO_SMALL);
    let mut scene = Scene::blocking(lab, MANY_WORKERS, Duration::from_secs(2));
    let client = scene.pod("east/client").netns();
    client.sysctl(&[("net/ipv4/tcp_syn_retries", "1")]).unwrap();
    network(&scene);
    let (report, opened) = scene.until_out(1, |scene| {
        for node in scene.lab.nodes() {
            node.kill_agent().unwrap();
        }
        scene.pod(GONE).remove().unwrap();
    });
    let agents = scene.lab.nodes().flat_map(|node| node.pids("agent"));
    assert_eq!(agents.count(), 0);
    let kernel = scene.balance(&opened);
    eprintln!("{name}: {:?}, {kernel:?}", report.failures);
    assert_eq!((kernel.out, kernel.ejections), (1, 1), "{kernel:?}");
    assert_eq!(kernel.refused, 0, "{kernel:?}");
    // What was established when it went had no answer.
    let failed = kernel.unreachable + kernel.timed_out;
    let unanswered = report.failed_by(NO_ANSWER);
    assert_eq!(report.failed(), failed + unanswered, "{report:?}");
    // Each that was under way, those whose workers had drawn it again before the third failure, and a trial. Were it still in
    // when the kernel gave the first ones up, it would be as many again.
    assert!(
        (5..=MANY_WORKERS as u64 + 3).contains(&failed),
        "{report:?}"
    );
    let rest = scene.more_paused(1000);
    // A trial may fall due meanwhile.
    assert!(rest.failed() <= 1, "{rest:?}");
    let answered: Vec<_> = rest.answers.keys().collect();
    assert_eq!(answered, ["production/backend east/backend"]);
    scene.balance(&opened);
    // Agents come under traffic, and learn that it is gone.
    scene.client.rate(RATE).unwrap();
    for node in scene.lab.nodes() {
        node.start_agent(&[]).unwrap();
    }
    for node in scene.lab.nodes() {
        let one = |f: &Frontend| f.serving() == 1;
        node.wait_frontend(SERVICE, PORT, "has one backend", one)
            .unwrap();
    }
    let start = scene.client.pause().unwrap();
    // Trials again, while it was still there to be tried.
    assert!(start.failed() <= 2, "{start:?}");
    let last = scene.more_paused(1000);
    eprintln!(
        "{name}: failed of {}, {}, {}: {}, {}, {}",
        rest.requests,
        start.requests,
        last.requests,
        rest.failed(),
        start.failed(),
        last.failed()
    );
    assert_eq!(last.failed(), 0, "{last:?}");
    expect_all_translated(&scene.lab);
    (report, kernel)
}

/// Its node has no route to it and says so, by ICMP, as often as a kernel does that: to the first few, then once a second. To a
/// connect that waits it is a hint at first, by which it fails when its time is over; only what comes after its second SYN ends
/// it at once. So it is first time-outs that eject here too.
#[test]
fn a_pod_removed_without_agents_is_ejected_where_its_node_says_that_it_is_unreachable() {
    let (report, kernel) = removed_without_agents("removed", |_| ());
    assert!(kernel.unreachable > 0, "{report:?}");
}

/// Its node says nothing: a route of its own swallows what goes to addresses that no pod has.
#[test]
fn a_pod_removed_without_agents_is_ejected_where_its_node_is_silent() {
    let (report, kernel) = removed_without_agents("swallowed", |scene| {
        let node = scene.lab.node("west-1").unwrap();
        for prefix in node.plan().pod_prefixes() {
            let lines = format!("route del unreachable {prefix}\nroute add blackhole {prefix}\n");
            node.netns().ip(&lines).unwrap();
        }
    });
    assert_eq!(kernel.unreachable, 0, "{report:?}");
}
