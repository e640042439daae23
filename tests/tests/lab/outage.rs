//! Agents that are killed, replaced, and replaced with other maps, while backends are ejected, on trial, and kept in by the cap:
//! under traffic whose books balance, beside flows that live through all of it.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isthmus_tests::client::REFUSED;
use isthmus_tests::wait_for;

use super::books::Opened;
use super::common::SetAtEnd;
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
    let (_, opened) = scene.through(|node| {
        node.kill_agent().unwrap();
        flows.go_on("without an agent");
        node.start_agent(&[]).unwrap();
    });
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
