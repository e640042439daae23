//! What `agentctl monitor` tells of clients: of hostile ones, and of one whose backends die.

use std::collections::BTreeSet;

use isthmus_tests::Event;

use super::super::common::{SOON, monitor};
use super::*;

/// Of both families.
const BOTH: usize = 2;
/// Connects that end at once.
const SOME: u64 = 200;

/// Each is of this client, by this cause, at a backend of the service.
fn assert_all_of(events: &[Event], client: u32, cause: Option<&str>) {
    for event in events {
        assert_eq!(
            (event.client, event.cause.as_deref()),
            (Some(client), cause),
            "{event:?}"
        );
        assert_eq!(event.service.as_deref(), Some(SERVICE), "{event:?}");
        assert!(event.address.is_some(), "{event:?}");
    }
}

#[test]
fn a_monitor_tells_of_closings_disbelief_and_trials_that_are_given_up() {
    let mut stage = Stage::set("witness");
    let names = stage.strangers().iter().map(Pod::name).collect::<Vec<_>>();
    let [refused, distrusted, hog, ..] = &names[..] else {
        panic!("{names:?}");
    };
    let monitor = monitor(stage.node(), &stage.pod(GOOD));
    let books = stage.books();
    let mark_of = |stage: &Stage, pod: &str| mark(&stage.pod(pod).netns()).unwrap();
    // One backend fails a client twice, of each family; then both backends fail another.
    for (pod, own, kind) in [
        (refused, Own::ResetOne, "closed"),
        (distrusted, Own::Reset, "disbelieved"),
    ] {
        stage.prove(&stage.pod(pod));
        own.set(&stage.pod(pod), &stage.lab);
        stage.beside(|stage| {
            let pod = stage.pod(pod);
            pod.hostile(Behaviour::Connect, &stage.targets, SOME, AT_ONCE)
                .unwrap()
        });
        let told = monitor.wait(kind, BOTH).unwrap();
        assert_all_of(&told, mark_of(&stage, pod), Some("refused"));
        own.unset(&stage.pod(pod), &stage.lab);
    }
    assert_eq!(books.since().ejections, 0);
    assert!(monitor.of("ejected").is_empty());

    stage.prove(&stage.pod(hog));
    stage.pod(DEAD).kill_server().unwrap();
    stage.good.rate(RATE).unwrap();
    // Two failures of the one client, and one of the other.
    wait_for("the dead backend is out", SOON, || {
        let pod = stage.pod(hog);
        pod.hostile(Behaviour::Connect, &stage.targets, 20, AT_ONCE)?;
        Ok((books.since().out == BOTH as u64).then_some(()))
    })
    .unwrap();
    Own::Drop.set(&stage.pod(hog), &stage.lab);
    for event in monitor.wait("ejected", BOTH).unwrap() {
        assert_eq!(event.cause.as_deref(), Some("refused"), "{event:?}");
    }
    stage.good.pause().unwrap();
    stage.pod(DEAD).start_server().unwrap();
    // Nobody else asks when its time is over.
    let told = wait_for("trials are given up", Duration::from_secs(20), || {
        let pod = stage.pod(hog);
        pod.hostile(Behaviour::Abandon, &stage.targets, SOME, AT_ONCE)?;
        let told = monitor.of("trial-abandoned");
        Ok((!told.is_empty()).then_some(told))
    });
    let hog = mark_of(&stage, hog);
    assert_all_of(&told.unwrap().1, hog, None);
    let tried = monitor.of("trial-began");
    assert!(tried.iter().any(|event| event.client == Some(hog)));
    stage.good.rate(RATE).unwrap();
    stage.wait_all_back(&books);
    let returned = monitor.wait("returned", BOTH).unwrap();
    let addresses: BTreeSet<_> = returned.iter().map(|event| event.address).collect();
    assert_eq!(addresses.len(), BOTH, "{returned:?}");
}

#[test]
fn a_monitor_tells_that_all_are_ejected_and_come_back() {
    let mut stage = Stage::set("all");
    let monitor = monitor(stage.node(), &stage.pod(GOOD));
    let books = stage.books();
    let backends = ["east/backend-1", "east/backend-2"];
    let addresses = BOTH * backends.len();
    stage.good.rate(RATE).unwrap();
    for (dead, backend) in (1..).zip(backends) {
        stage.pod(backend).kill_server().unwrap();
        monitor.wait("ejected", BOTH * dead).unwrap();
        // Whom two fail with no success between is not believed at the second.
        at_least(&mut stage.good, 100);
    }
    monitor.wait("all-ejected", BOTH).unwrap();
    for backend in backends {
        stage.pod(backend).start_server().unwrap();
    }
    stage.wait_all_back(&books);
    let returned = monitor.wait("returned", addresses).unwrap();
    stage.good.pause().unwrap();
    let of =
        |events: &[Event]| -> BTreeSet<_> { events.iter().map(|event| event.address).collect() };
    let ejected = monitor.of("ejected");
    assert_eq!(ejected.len() as u64, books.since().ejections);
    assert_eq!(
        (of(&returned).len(), of(&ejected).len()),
        (addresses, addresses)
    );
    for event in monitor.of("all-ejected") {
        assert_eq!((event.address, event.client), (None, None), "{event:?}");
    }
}
