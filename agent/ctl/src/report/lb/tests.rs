use isthmus_proto::node::v1 as proto;

use super::*;

fn frontend(address: &str, port: u32, service: u32) -> proto::LbFrontend {
    proto::LbFrontend {
        address: address.to_owned(),
        port,
        protocol: if port == 0 { "any" } else { "TCP" }.to_owned(),
        scope: 0,
        service,
    }
}

fn backend(id: u32, address: &str, cluster: u32, service: u32, connects: u64) -> proto::LbBackend {
    proto::LbBackend {
        id,
        address: address.to_owned(),
        port: 8080,
        protocol: "TCP".to_owned(),
        cluster,
        service,
        generation: 1,
        connects,
        ..proto::LbBackend::default()
    }
}

/// Service 7 at span 16: three slots of two backends, then a tier of one.
fn maps() -> proto::DumpLbResponse {
    let slot = |backend| SlotWord::new(backend, 7).0;
    proto::DumpLbResponse {
        node: None,
        frontends: vec![
            frontend("10.96.71.4", 8080, 7),
            frontend("10.96.71.4", 0, 7),
        ],
        rings: vec![proto::LbRing {
            service: 7,
            word: RingWord::new(16, 2, 3).0,
            slots: vec![
                TierHead::new(6, 1).0,
                slot(1),
                slot(2),
                slot(1),
                0,
                0,
                slot(4),
            ],
        }],
        backends: vec![
            backend(4, "10.12.1.5", 2, 7, 0),
            backend(1, "10.11.1.5", 1, 7, 4012),
            backend(2, "fd00::5", 1, 7, 3988),
            backend(9, "10.11.9.9", 1, 8, 12),
        ],
        counters: vec![proto::LbCounter {
            number: 0,
            name: "refused_no_backend".to_owned(),
            value: 6,
        }],
        services: vec![],
        now_ticks: 0,
    }
}

#[test]
fn rows_lead_from_the_frontend_to_its_backends() {
    let maps = LoadBalancerMaps::new(maps());
    let wanted = "\
FRONTEND             SERVICE  SPAN  TIERS  LEN  TIER  SLOTS  BACKEND ID  BACKEND             CLUSTER ID  CONNECTS
10.96.71.4           7        -     -      -    -     -      -           -                   -           -
10.96.71.4:8080/TCP  7        16    2      3    0     17,19  1           10.11.1.5:8080/TCP  1           4012
10.96.71.4:8080/TCP  7        16    2      3    0     18     2           [fd00::5]:8080/TCP  1           3988
10.96.71.4:8080/TCP  7        16    2      3    1     22     4           10.12.1.5:8080/TCP  2           0
-                    8        -     -      -    -     -      9           10.11.9.9:8080/TCP  1           12

COUNTER             VALUE
refused_no_backend  6
";
    assert_eq!(maps.text(false, Style::PLAIN), wanted);
    assert_eq!(maps.rings[0].word, "0000001002000003");
    assert!(maps.text(true, Style::PLAIN).contains("0000001002000003"));
}

#[test]
fn slots_that_do_not_fit_are_named() {
    let mut dump = maps();
    dump.rings[0].slots[1] = SlotWord::new(1, 8).0;
    dump.rings[0].slots[2] = SlotWord::new(5, 7).0;
    dump.rings[0].slots[3] = SlotWord::new(9, 7).0;
    dump.rings[0].slots.pop();
    let maps = LoadBalancerMaps::new(dump);
    assert_eq!(
        maps.oddities,
        [
            "ring of service 7: tier 1 has 1 slots, 0 were read",
            "slot 17 of service 7 names service 8",
            "slot 18 of service 7 names backend 5, which is free",
            "slot 19 of service 7 names backend 9 of service 8",
        ]
    );
    assert!(
        maps.text(false, Style::PLAIN)
            .ends_with("before you believe the lines above.\n")
    );
}

#[test]
fn any_ring_word_is_shown_without_a_panic() {
    for (word, slots) in [
        (u64::MAX, vec![]),
        (u64::MAX, vec![u64::MAX; 3]),
        (RingWord::new(u32::MAX, 255, 1).0, vec![u64::MAX; 300]),
        (RingWord::new(0, 0, 5).0, vec![0; 5]),
    ] {
        let ring = proto::LbRing {
            service: 1,
            word,
            slots,
        };
        let maps = LoadBalancerMaps::new(proto::DumpLbResponse {
            rings: vec![ring],
            ..proto::DumpLbResponse::default()
        });
        assert!(maps.text(true, Style::PLAIN).contains("RING WORD"));
    }
}

#[test]
fn slots_of_a_backend_are_ranges() {
    let slots = [3, 4, 5, 9, 11, 12].map(|index| Slot {
        index,
        backend: 1,
        service: 7,
    });
    let tier = Tier {
        number: 0,
        first: 3,
        slots: slots.to_vec(),
    };
    assert_eq!(
        text::by_backend(&tier).get(&1).map(String::as_str),
        Some("3-5,9,11-12")
    );
}

#[test]
fn health_rows_are_shown_raw_and_decoded() {
    let mut dump = maps();
    let now = isthmus_abi::ticks(60_000);
    let seconds = |seconds: u64| isthmus_abi::ticks(seconds * 1000);
    dump.now_ticks = now;
    let states = [
        HealthWord::suspect(now - seconds(2)),
        HealthWord::ejected(now + seconds(3), 1),
        HealthWord::trial(now - seconds(1), 0, 17),
        HealthWord::HEALTHY,
    ];
    for (backend, state) in dump.backends.iter_mut().zip(states) {
        backend.health_word = state.0;
        backend.failures = Some(proto::FailureCounts {
            refused: u64::from(state != HealthWord::HEALTHY) * 3,
            ..proto::FailureCounts::default()
        });
    }
    dump.backends[0].score = 10;
    dump.backends[0].accusers = 2;
    dump.services = vec![proto::LbService {
        service: 7,
        standing: 4,
        refused: 6,
        all_ejected: 1,
        ejected_total: 2,
        allowed_total: 5,
        affinity_seconds: 10_800,
        flags: 1,
    }];
    let maps = LoadBalancerMaps::new(dump);
    let text = maps.text(false, Style::PLAIN);
    let wanted = format!(
        "
BACKEND ID  HEALTH              TIME    DOUBLINGS  STATE WORD        REFUSED  UNREACHABLE  UNANSWERED  TIMED OUT  SCORE  ACCUSERS  CLOSED TO
1           ejected             in 3s   1          {:016x}  3        0            0           0          0      0         0
2           trial of client 17  1s ago  0          {:016x}  3        0            0           0          0      0         0
4           suspect             2s ago  0          {:016x}  3        0            0           0          10     2         0

SERVICE  STANDING  REFUSED  ALL EJECTED  EJECTED  ALLOWED  AFFINITY  PASSIVE HEALTH
7        4         6        1            2        5        10800s    off

COUNTER ",
        states[1].0, states[2].0, states[0].0
    );
    assert!(text.contains(&wanted), "{text}");
    assert!(
        maps.text(true, Style::PLAIN)
            .contains("9           healthy")
    );
    assert_eq!(maps.backends[3].health.time_seconds, None);
    assert!(maps.services[0].no_passive_health);
}
