//! Never another's backend: connects spin while services, backends and frontends come and go, and every server names the
//! service that its port stands for.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isthmus_tests::client::REFUSED;
use isthmus_tests::{Lab, PodStatus, Requests, Traffic};
use serde_json::Value;

use super::books::{Ledger, Told, refused_by};
use super::common::{named_service, world};

/// Services that stay, on ports 9000…, and services that come and go, on ports 9100….
const SERVICES: u16 = 16;
/// Of those that stay, the first have their addresses handed to a Service of another name and back, and the next have
/// their ports renamed.
const HANDED: u16 = 4;
const RENAMED: u16 = 4;
/// No connect in so long: the traffic hangs.
const STALL: Duration = Duration::from_secs(30);
const PODS: usize = 4;
/// In all. `ISTHMUS_CONNECTS`, which is `cargo xtask test --connects`, asks for more.
const CONNECTS: u64 = 1_000_000;

fn lab_file() -> String {
    let mut serves = String::new();
    for n in 0..SERVICES {
        write!(
            serves,
            "{}: production/s{n}, {}: production/x{n}, ",
            9000 + n,
            9100 + n
        )
        .unwrap();
    }
    format!(
        "clusters:
  - name: east
    id: 1
    nodes: 2
    pods:
      - {{name: backend, count: {PODS}, namespace: production, labels: {{app: backend}}, serves: {{{serves}}}}}
      - {{name: client}}
      - {{name: stranger}}
"
    )
}

/// What a service that stays is called, and its ports, change with `odd`. Its address and its backends do not.
fn staying(n: u16, odd: bool) -> Value {
    let name = match n {
        0..HANDED if odd => format!("t{n}"),
        _ => format!("s{n}"),
    };
    let mut service = named_service(&name, 80, 9000 + n, &[]);
    if odd && (HANDED..HANDED + RENAMED).contains(&n) {
        service["spec"]["ports"][0]["name"] = "stream".into();
        service["spec"]["ports"][1]["name"] = "datagrams".into();
    }
    service["spec"]["clusterIPs"] = [
        format!("10.96.1.{}", n + 1),
        format!("fd00:10:96::1:{:x}", n + 1),
    ]
    .as_slice()
    .into();
    service
}

/// A service that comes and goes, at one of its four addresses.
fn passing(n: u16, round: u64) -> Value {
    let mut service = named_service(&format!("x{n}"), 80, 9100 + n, &[]);
    let host = u64::from(n) * 4 + round % 4 + 1;
    service["spec"]["clusterIPs"] = [format!("10.96.2.{host}"), format!("fd00:10:96::2:{host:x}")]
        .as_slice()
        .into();
    service
}

/// `ADDRESS:PORT=SERVICE` of services that stay, both families.
fn staying_targets(services: Range<u16>) -> Vec<String> {
    let pair = |n: u16| {
        [
            format!("10.96.1.{}:80=production/s{n}", n + 1),
            format!("[fd00:10:96::1:{:x}]:80=production/s{n}", n + 1),
        ]
    };
    services.flat_map(pair).collect()
}

/// All addresses of the services that come and go.
fn passing_targets() -> Vec<String> {
    let pair = |n: u16, host: u16| {
        [
            format!("10.96.2.{host}:80=production/x{n}"),
            format!("[fd00:10:96::2:{host:x}]:80=production/x{n}"),
        ]
    };
    let of = |n: u16| (1..=4).flat_map(move |h| pair(n, n * 4 + h));
    (0..SERVICES).flat_map(of).collect()
}

fn spin(
    lab: &Lab,
    pod: &str,
    targets: &[String],
    shape: impl FnOnce(Requests) -> Requests,
) -> Traffic {
    let requests = shape(Requests::to_all(targets.iter().map(String::as_str)).unwrap());
    let mut traffic = lab.pod(pod).unwrap().traffic(&requests).unwrap();
    traffic.rate(0.0).unwrap();
    traffic
}

/// Numbers that are the same in every run.
fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Pods become ready, not ready, terminating and absent, but for the first, which stays; services come, move and go, and
/// hand their addresses over.
fn churn(lab: &Lab, done: &AtomicBool, changes: &AtomicU64) {
    let manifests = lab.cluster("east").unwrap().manifests();
    let mut state = 1;
    while !done.load(Ordering::Relaxed) {
        let roll = next(&mut state);
        if roll.is_multiple_of(2) {
            let pod = lab
                .pod(&format!(
                    "east/backend-{}",
                    2 + roll / 2 % (PODS as u64 - 1)
                ))
                .unwrap();
            match next(&mut state) % 4 {
                0 => pod.declare(PodStatus::NotReady).unwrap(),
                1 => pod.declare(PodStatus::Terminating).unwrap(),
                // It may be withdrawn already.
                2 => drop(pod.withdraw()),
                _ => pod.declare(PodStatus::Ready).unwrap(),
            }
        } else if roll % 4 == 1 {
            let n = u16::try_from(roll / 4 % u64::from(HANDED + RENAMED)).unwrap();
            let odd = next(&mut state).is_multiple_of(2);
            manifests
                .write_objects(&format!("s{n}.yaml"), &[staying(n, odd)])
                .unwrap();
        } else {
            let n = u16::try_from(roll / 2 % u64::from(SERVICES)).unwrap();
            let file = format!("x{n}.yaml");
            match next(&mut state) % 3 {
                0 => drop(manifests.remove(&file)),
                round => manifests
                    .write_objects(&file, &[passing(n, round + roll)])
                    .unwrap(),
            }
        }
        changes.fetch_add(1, Ordering::Relaxed);
        // The pace of the churn: two cores are for the connects as well.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn requests(traffic: &Traffic) -> u64 {
    traffic.total().requests
}

/// Says that it is over when it is left.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_connect_never_reaches_another_services_backend() {
    let connects = std::env::var("ISTHMUS_CONNECTS").map_or(CONNECTS, |n| n.parse().unwrap());
    assert!(
        connects >= CONNECTS,
        "ISTHMUS_CONNECTS={connects} makes a weaker test: {CONNECTS} at least"
    );
    let lab = world("churn", &lab_file());
    let manifests = lab.cluster("east").unwrap().manifests();
    for n in 0..SERVICES {
        manifests
            .write_objects(&format!("s{n}.yaml"), &[staying(n, false)])
            .unwrap();
    }
    lab.start()
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.last_words()));
    for name in ["east-1", "east-2"] {
        let node = lab.node(name).unwrap();
        node.wait_frontend("production/s15", 80, "has all backends", |f| {
            f.serving() == PODS
        })
        .unwrap();
    }

    let start = Instant::now();
    let [client, stranger] = ["east/client", "east/stranger"].map(|name| {
        let pod = lab.pod(name).unwrap();
        lab.node(&pod.plan().node.name).unwrap()
    });
    assert_ne!(client.name(), stranger.name());
    // What is counted for a name goes from the metrics with the name: books are of those whose names stay.
    let named = (HANDED..SERVICES).map(|n| format!("production/s{n}"));
    let ledger = Ledger::of(client, named.collect());
    let refused = [client, stranger].map(refused_by);
    let of_clients = |udp: bool| {
        [0..HANDED, HANDED..SERVICES].map(|services| {
            spin(&lab, "east/client", &staying_targets(services), |r| {
                let requests = r.workers(1);
                if udp { requests.udp(16) } else { requests }
            })
        })
    };
    let mut clients = [of_clients(false), of_clients(true)];
    let mut strangers = [false, true].map(|udp| {
        spin(&lab, "east/stranger", &passing_targets(), |r| {
            let requests = r.workers(1);
            if udp { requests.udp(4) } else { requests }
        })
    });
    let (done, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&lab, &done, &changes));
        // However the loop ends, the churn ends too.
        let _done = OnDrop(&done);
        let (mut made, mut at) = (0, Instant::now());
        while made < connects {
            for traffic in clients.as_flattened_mut().iter_mut().chain(&mut strangers) {
                let report = traffic.mark().unwrap();
                assert!(
                    report.wrong == 0,
                    "{} connects reached another's backend: {:?}",
                    report.wrong,
                    report.told
                );
            }
            let now = clients.as_flattened().iter().map(requests).sum();
            if now > made {
                (made, at) = (now, Instant::now());
            }
            assert!(at.elapsed() < STALL, "the traffic hangs at {made} connects");
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    for traffic in clients.as_flattened_mut().iter_mut().chain(&mut strangers) {
        traffic.pause().unwrap();
    }
    for traffic in clients.as_flattened() {
        let total = traffic.total();
        assert_eq!(
            (total.failed(), total.wrong),
            (0, 0),
            "{:?} {:?}",
            total.failures,
            total.told
        );
    }
    // The stranger's addresses are not always there: it may be refused or let through to nowhere, never misled.
    for traffic in &strangers {
        let total = traffic.total();
        assert_eq!(total.wrong, 0, "{:?}", total.told);
        assert!(total.answered() > 0, "{total:?}");
    }
    assert_eq!(client.untranslated().unwrap(), 0, "untranslated packets");
    let told = clients
        .each_ref()
        .map(|[_, named]| Told::by_client(named.total()));
    ledger.balance(told[0].and(told[1]));
    // Sums of services that come and go do not last; but of all that a node refused there is one.
    let by_strangers = strangers.each_ref().map(|t| t.total().failed_by(REFUSED));
    let refused = [
        refused_by(client) - refused[0],
        refused_by(stranger) - refused[1],
    ];
    assert_eq!(refused, [0, by_strangers.iter().sum()]);
    let changes = changes.into_inner();
    assert!(changes > 1000, "only {changes} changes");
    eprintln!(
        "{} TCP and {} UDP connects through {changes} changes in {:.1} s: 0 wrong, 0 failed, 0 untranslated; {} beside",
        clients[0].iter().map(requests).sum::<u64>(),
        clients[1].iter().map(requests).sum::<u64>(),
        start.elapsed().as_secs_f64(),
        strangers.iter().map(requests).sum::<u64>()
    );
}
