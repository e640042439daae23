#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_core::desired::Family;
use isthmus_core::model::Protocol;
use std::collections::BTreeMap;
use tokio::sync::broadcast::error::TryRecvError;

use super::*;

fn now() -> Now {
    Now {
        nanoseconds: 1_000_000_000_000,
        instant: Instant::now(),
    }
}

fn port(name: &str) -> Arc<ServicePort> {
    Arc::new(ServicePort {
        service: ObjectName::new("production", name),
        key: PortKey {
            name: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        },
    })
}

fn backend(cluster: u16) -> Backend {
    Backend {
        id: 3,
        cluster: cluster.try_into().unwrap(),
        address: "10.11.1.5".parse().unwrap(),
        port: 8080,
    }
}

fn row(kind: EventKind, cause: u8) -> EventRow {
    EventRow {
        at: 999_000_000_000,
        until: 1_003_000_000_000 >> TICK_SHIFT,
        service: 7,
        backend: 3,
        generation: 1,
        kind: kind as u8,
        cause,
        doublings: 2,
        mark: 17,
    }
}

fn health(row: &EventRow, now: Now) -> (Instant, Health) {
    let happening = understand(row, now, Some(port("a")), Some(backend(1))).unwrap();
    match happening.what {
        What::Health(health) => (happening.at, health),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_record_is_told_in_words_and_on_our_clock() {
    let now = now();
    let (at, told) = health(&row(EventKind::Ejected, FailureCause::Refused as u8), now);
    assert_eq!(now.instant - at, Duration::from_secs(1));
    let left = told.until.unwrap() - now.instant;
    // A tick is 65.5 µs.
    assert!(
        left <= Duration::from_secs(3) && left > Duration::from_millis(2999),
        "{left:?}"
    );
    assert_eq!(
        (told.cause, told.doublings, told.client),
        ("refused", 2, Some(17))
    );

    let (_, told) = health(&row(EventKind::Returned, FailureCause::None as u8), now);
    assert_eq!((told.cause, told.until), ("", None), "it lasts");
    let unnamed = EventRow {
        mark: u8::try_from(NO_MARK).unwrap(),
        ..row(EventKind::Refused, 1)
    };
    let (_, told) = health(&unnamed, now);
    assert_eq!((told.cause, told.client), ("unknown_port", None));
    let unknown = EventRow {
        kind: 200,
        ..unnamed
    };
    assert_eq!(understand(&unknown, now, None, None), None);
}

#[test]
fn moments_before_the_clock_began_are_no_panic() {
    let now = now();
    assert_eq!(now.moment(now.nanoseconds), now.instant);
    for far in [0, u64::MAX] {
        let _ = now.moment(far);
    }
}

#[test]
fn what_programs_tell_is_counted_by_kind() {
    let monitors = Monitors::default();
    for _ in 0..3 {
        let row = row(EventKind::Ejected, 1);
        let told = understand(&row, now(), Some(port("a")), Some(backend(1)));
        monitors.tell(told.unwrap());
    }
    let told: BTreeMap<_, _> = monitors
        .told()
        .map(|(kind, number)| (kind.name(), number))
        .collect();
    assert_eq!((told["ejected"], told["returned"]), (3, 0));
}

#[test]
fn who_is_slow_loses_the_oldest_and_holds_up_nobody() {
    let monitors = Monitors::default();
    let mut slow = monitors.listen();
    for number in 0..BACKLOG as u64 + 10 {
        monitors.tell(Happening {
            at: Instant::now(),
            what: What::Untold(number),
        });
    }
    assert_eq!(slow.try_recv(), Err(TryRecvError::Lagged(10)));
    assert_eq!(slow.try_recv().unwrap().what, What::Untold(10));
}
