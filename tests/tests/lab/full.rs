//! Maps that are full, on a live agent: what has no room is named with the way out, the rest goes on, and room heals it.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::{Frontend, Lab, Node, PodStatus, Requests, Traffic, wait_for};
use serde_json::{Value, json};

use super::books::{Ledger, Opened};
use super::common::{
    ALONE, PORT, SERVICE, SOON, at_least, client, expect_all_translated, named_service, started,
    wait_status, world,
};

/// Of each client.
const RATE: f64 = 1000.0;

/// A Service without endpoints: it takes a frontend, a ring and nothing else.
fn idle(number: u32) -> Value {
    let mut service = of_one_port(&format!("idle-{number}"));
    service["spec"].as_object_mut().unwrap().remove("selector");
    service
}

/// One that fills, and stays.
const FILLER: &str = "production/busy-3";

/// A Service over both pods: besides, it takes two backends, and a span of four slots.
fn busy(number: u32) -> Value {
    of_one_port(&format!("busy-{number}"))
}

fn of_one_port(name: &str) -> Value {
    let mut service = named_service(name, 80, PORT, &[]);
    service["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    service["spec"]["ports"] = json!([{"port": 80, "targetPort": PORT, "protocol": "TCP"}]);
    service
}

/// `production/backend`, which is there first, has two backends over TCP and UDP, IPv4 and IPv6: four service ports,
/// eight backends, sixteen slots.
struct Case {
    lab: &'static str,
    sizes: [&'static str; 3],
    /// The map that fills, as its rows are named in `status`.
    table: &'static str,
    flag: &'static str,
    /// As many of these as fit beside it.
    filler: fn(u32) -> Value,
    fit: u32,
    /// A backend that leaves makes room that another service may take.
    backends_are_scarce: bool,
}

const CASES: [Case; 3] = [
    Case {
        lab: "fullrings",
        sizes: [
            "--lb-services-max=64",
            "--lb-backends-max=64",
            "--lb-ring-slots-max=256",
        ],
        table: "services",
        flag: "--lb-services-max",
        filler: idle,
        fit: 60,
        backends_are_scarce: false,
    },
    Case {
        lab: "fullbacks",
        sizes: [
            "--lb-services-max=64",
            "--lb-backends-max=64",
            "--lb-ring-slots-max=256",
        ],
        table: "backends",
        flag: "--lb-backends-max",
        filler: busy,
        fit: 28,
        backends_are_scarce: true,
    },
    Case {
        lab: "fullslots",
        sizes: [
            "--lb-services-max=64",
            "--lb-backends-max=64",
            "--lb-ring-slots-max=64",
        ],
        table: "slots",
        flag: "--lb-ring-slots-max",
        filler: busy,
        fit: 12,
        backends_are_scarce: false,
    },
];

fn write(lab: &Lab, file: &str, services: &[Value]) {
    let manifests = lab.cluster("east").unwrap().manifests();
    manifests.write_objects(file, services).unwrap();
}

fn remove(lab: &Lab, file: &str) {
    lab.cluster("east")
        .unwrap()
        .manifests()
        .remove(file)
        .unwrap();
}

/// A Service's only frontend, with both backends.
fn whole(node: Node<'_>, service: &str) -> Frontend {
    let (_, frontend) = node
        .wait_frontend(service, 80, "has its backends", |f| f.serving() == 2)
        .unwrap();
    frontend
}

/// Requests to it, from now on.
fn requests_to(lab: &Lab, node: Node<'_>, service: &str) -> Traffic {
    let target = format!("{}={SERVICE}", whole(node, service).target().unwrap());
    let mut traffic = lab
        .pod("client")
        .unwrap()
        .traffic(&Requests::to(&target).unwrap())
        .unwrap();
    traffic.rate(RATE).unwrap();
    traffic
}

fn expect_served(traffic: &mut Traffic) {
    let report = at_least(traffic, 200);
    assert_eq!((report.failed(), report.wrong), (0, 0), "{:?}", report.told);
    assert_eq!(report.answers.len(), 2, "{:?}", report.answers);
}

/// Waits until the node has so many frontends, all in the kernel, and nothing fails.
fn wait_all_served(node: Node<'_>, frontends: usize) {
    wait_for(&format!("{frontends} frontends are served"), SOON, || {
        let all = node.frontends()?;
        let served = all.iter().filter(|f| f.service_index.is_some()).count();
        anyhow::ensure!(
            (all.len(), served) == (frontends, frontends),
            "{served} of {} are",
            all.len()
        );
        Ok(Some(()))
    })
    .unwrap();
    wait_status(node, 0, "the kernel holds all that it should");
}

/// Rows that `status` says fail.
fn failing(node: Node<'_>) -> anyhow::Result<Vec<Value>> {
    let status = node.ask(&["status"])?;
    let rows = status["reconcile"]["failing"].as_array().cloned();
    Ok(rows.unwrap_or_default())
}

fn wait_failing(node: Node<'_>, services: &[&str]) -> Vec<Value> {
    let (_, rows) = wait_for(&format!("rows of {services:?} fail"), SOON, || {
        let rows = failing(node)?;
        let mut named: Vec<_> = rows.iter().filter_map(|r| r["service"].as_str()).collect();
        named.sort_unstable();
        anyhow::ensure!(named == services, "{rows:?}");
        Ok(Some(rows))
    })
    .unwrap();
    rows
}

fn a_backend_leaves_and_returns(lab: &Lab, node: Node<'_>) {
    let pod = lab.pod("east/backend-1").unwrap();
    pod.declare(PodStatus::NotReady).unwrap();
    node.wait_frontend(SERVICE, PORT, "has one backend left", |f| f.serving() == 1)
        .unwrap();
    pod.declare(PodStatus::Ready).unwrap();
    node.wait_frontend(SERVICE, PORT, "has both again", |f| f.serving() == 2)
        .unwrap();
}

fn fills_up_and_heals(case: &Case) {
    let lab = started(world(case.lab, ALONE), &case.sizes);
    let node = lab.node("east-1").unwrap();
    let ledger = Ledger::open(node, SERVICE);
    let mut before = client(&lab, "client", "east-1");
    before.rate(RATE).unwrap();

    // The last one that fits fits.
    let fillers: Vec<Value> = (1..=case.fit).map(case.filler).collect();
    write(&lab, "fillers.yaml", &fillers);
    wait_all_served(node, 4 + fillers.len());

    write(&lab, "late.yaml", &[busy(101), busy(102)]);
    let late = ["production/busy-101", "production/busy-102"];
    let rows = wait_failing(node, &late);
    let said = wait_status(node, 1, "map full");
    for row in &rows {
        let frontend = node.frontend(row["service"].as_str().unwrap(), 80, false);
        let frontend = frontend.unwrap();
        assert_eq!(
            row["row"],
            json!(format!("{}/TCP", frontend.target().unwrap())),
            "{row}"
        );
        assert_eq!(row["table"], case.table, "{row}");
        assert!(row["ageSeconds"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(frontend.service_index, None, "{frontend:?}");
        let word = format!("raise {}", case.flag);
        assert!(row["error"].as_str().unwrap().contains(&word), "{row}");
    }
    let listed = said
        .lines()
        .filter(|line| line.starts_with(&format!("! {} ", case.table)))
        .filter(|line| late.iter().any(|service| line.contains(service)));
    assert_eq!(listed.count(), 2, "both, with service and address: {said}");
    let listed = node.agentctl(&["service", "list"]).unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("not served: "), "{listed}");

    // Others go on: what was there, and what changes in it where it needs no room.
    expect_served(&mut before);
    let filler = (case.table != "services").then(|| {
        let mut filler = requests_to(&lab, node, FILLER);
        expect_served(&mut filler);
        filler
    });
    if !case.backends_are_scarce {
        a_backend_leaves_and_returns(&lab, node);
    }
    // Backends of these do not come or go from here on.
    ledger.balance_with(&mut before);
    let both = [false, true].map(|v6| node.frontend(SERVICE, PORT, v6).unwrap());
    let opened = Opened::of(node, both, &mut before);
    let mut asked = vec![(before, opened)];
    asked.extend(filler.map(|mut filler| {
        let opened = Opened::of(node, [whole(node, FILLER)], &mut filler);
        (filler, opened)
    }));
    for (traffic, _) in &mut asked {
        traffic.rate(RATE).unwrap();
    }

    // A restart finds the maps full, and serves as before.
    node.kill_agent().unwrap();
    node.start_agent(&case.sizes).unwrap();
    wait_failing(node, &late);
    for (traffic, _) in &mut asked {
        expect_served(traffic);
    }

    // Room comes, and goes again to those who had it.
    write(&lab, "fillers.yaml", &fillers[2..]);
    wait_status(node, 0, "the kernel holds all that it should");
    for service in late {
        let ledger = Ledger::open(node, service);
        let mut traffic = requests_to(&lab, node, service);
        expect_served(&mut traffic);
        ledger.balance_with(&mut traffic);
    }
    remove(&lab, "late.yaml");
    write(&lab, "fillers.yaml", &fillers);
    wait_all_served(node, 4 + fillers.len());
    for (mut traffic, opened) in asked {
        opened.balance(case.lab, &mut traffic);
        let total = traffic.total();
        assert_eq!((total.failed(), total.wrong), (0, 0), "{:?}", total.told);
    }
    expect_all_translated(&lab);
}

#[test]
fn full_rings_name_the_services_that_have_no_room() {
    fills_up_and_heals(&CASES[0]);
}

#[test]
fn full_backends_name_the_services_that_have_no_room() {
    fills_up_and_heals(&CASES[1]);
}

#[test]
fn full_slots_name_the_services_that_have_no_room() {
    fills_up_and_heals(&CASES[2]);
}

/// Every row of `frontends4` is taken: the agent's own probe at its start finds no room for its frontend.
#[test]
fn a_restart_with_no_room_for_the_probe_serves_on() {
    let sizes = ["--lb-services-max=64", "--lb-backends-max=64"];
    let lab = started(world("fullprobe", ALONE), &sizes);
    let node = lab.node("east-1").unwrap();
    let mut one = of_one_port("backend");
    one["spec"]["ports"][0]["port"] = json!(PORT);
    write(&lab, "backend.yaml", &[one]);
    // 64 frontends, and 64 rows of their addresses.
    let idle: Vec<Value> = (1..=63).map(idle).collect();
    write(&lab, "idle.yaml", &idle);
    wait_all_served(node, 64);
    let kept = node.map_id("frontends4").unwrap();
    let rows = isthmus_tests::kernel::bpftool(&["map", "dump", "id", &kept.to_string()]);
    assert_eq!(rows.unwrap().as_array().unwrap().len(), 128);

    let frontend = node.frontend(SERVICE, PORT, false).unwrap();
    let target = frontend.target().unwrap();
    let requests = Requests::to(&format!("{target}={SERVICE}")).unwrap();
    let mut traffic = lab.pod("client").unwrap().traffic(&requests).unwrap();
    let opened = Opened::of(node, [frontend], &mut traffic);
    traffic.rate(RATE).unwrap();
    expect_served(&mut traffic);
    node.kill_agent().unwrap();
    node.start_agent(&sizes).unwrap();
    let said = wait_status(node, 0, "the kernel holds all that it should");
    assert!(said.contains("no room"), "why nothing is proved: {said}");
    assert_eq!(node.map_id("frontends4").unwrap(), kept);
    expect_served(&mut traffic);

    remove(&lab, "idle.yaml");
    wait_status(node, 0, "the kernel holds all that it should");
    node.stop_agent().unwrap();
    node.start_agent(&sizes).unwrap();
    wait_status(node, 0, "sockets there meet our hooks");
    opened.balance("full", &mut traffic);
    let total = traffic.total();
    assert_eq!((total.failed(), total.wrong), (0, 0), "{:?}", total.told);
}
