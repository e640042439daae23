//! UDP that lives long or is short and plenty, and clients that come back: flows, a resolver, session affinity.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use isthmus_tests::client::REFUSED;
use isthmus_tests::flow::{Flow, Said};
use isthmus_tests::{Frontend, Lab, Node, Pod, PodStatus, Requests, wait_for};
use serde_json::{Value, json};

use super::books::{Books, Ledger, Opened, Told};
use super::common::{
    ALONE, PORT, SERVICE, SOON, TWO_SMALL, at_least, client, collect_until, expect_all_translated,
    named_service, running, service,
};
use super::long::LongFlows;
use super::scene::{Scene, WORKERS};

/// Where the service is, over IPv4 and IPv6.
fn addresses(lab: &Lab) -> [SocketAddr; 2] {
    let node = lab.node("east-1").unwrap();
    [false, true].map(|v6| node.frontend(SERVICE, PORT, v6).unwrap().target().unwrap())
}

/// The frontend of datagrams to it.
fn datagrams(node: Node<'_>, address: SocketAddr) -> Frontend {
    let all = node.frontends_of(SERVICE, PORT).unwrap();
    let is_it = |f: &Frontend| f.protocol == "UDP" && f.address == Some(address.ip());
    all.into_iter().find(is_it).unwrap()
}

fn backends(lab: &Lab) -> [Pod<'_>; 2] {
    ["east/backend-1", "east/backend-2"].map(|name| lab.pod(name).unwrap())
}

/// Which of the two answered.
fn which(backends: &[Pod<'_>; 2], said: &Said) -> usize {
    let named = |pod: &Pod<'_>| said.answer == format!("{SERVICE} {}", pod.name());
    backends.iter().position(named).unwrap()
}

/// Asks, and expects an answer that is shown as the service's.
fn answered(flow: &mut Flow, address: SocketAddr) -> Said {
    let said = flow.ask().unwrap().unwrap();
    assert_eq!(said.from, address, "{said:?}");
    said
}

#[test]
fn a_long_flow_without_a_connect_keeps_its_backend_while_it_is_there() {
    let lab = running("flow", ALONE);
    let pods = backends(&lab);
    let node = lab.node("east-1").unwrap();
    let pod = lab.pod("east/client").unwrap();
    for address in addresses(&lab) {
        let mut books = Books::of(node, [datagrams(node, address)]);
        let balance = |books: &Books, drawn| {
            let told = Told::established(drawn);
            books.since().balance("a flow", told);
        };
        let mut flow = pod.flow(address, false).unwrap();
        let first = answered(&mut flow, address);
        let mut stays = |why: &str| {
            for _ in 0..100 {
                assert_eq!(answered(&mut flow, address), first, "{why}");
            }
        };
        stays("at rest");
        node.kill_agent().unwrap();
        stays("without an agent");
        node.start_agent(&[]).unwrap();
        stays("with the next agent");
        // New maps: the backend has another id there.
        node.stop_agent().unwrap();
        node.start_agent(&["--lb-backends-max", "4096"]).unwrap();
        stays("after a change of the maps' sizes");
        books.change_over(node);
        balance(&books, 1);
        let leaving = &pods[which(&pods, &first)];
        leaving.withdraw().unwrap();
        let (_, next) = wait_for("the flow goes to the other backend", SOON, || {
            let said = answered(&mut flow, address);
            Ok((said != first).then_some(said))
        })
        .unwrap();
        assert_ne!(which(&pods, &next), which(&pods, &first));
        balance(&books, 2);
        leaving.declare(PodStatus::Ready).unwrap();
        node.wait_frontend(SERVICE, PORT, "has both again", |f| f.serving() == 2)
            .unwrap();
        let books = Books::of(node, [datagrams(node, address)]);
        assert_eq!(answered(&mut flow, address), next, "it does not go back");
        balance(&books, 0);
        node.stop_agent().unwrap();
        node.start_agent(&[]).unwrap();
    }
    expect_all_translated(&lab);
}

/// As QUIC's flows: several datagrams in flight in each direction, all the time, of one connection id, from one address. The
/// backends' health changes under them, by the kernel's word and by manifest, and agents and maps change.
#[test]
fn long_flows_in_both_directions_lose_nothing_and_stay() {
    let mut scene = Scene::set("quic", WORKERS, Duration::from_secs(2));
    let mut flows = LongFlows::begin(&scene.lab);
    let servers = flows.servers();
    assert!(flows.most_in_flight() > 1);
    // One of the flows of datagrams is at it.
    let backend = servers.last().unwrap().as_str();
    // Its other port is dead to TCP, and the backend of that is ejected.
    let (_, opened) = scene.until_out(1, |scene| scene.pod(backend).kill_server().unwrap());
    scene.balance(&opened);
    flows.go_on("with its backend's other port ejected");
    scene.node().kill_agent().unwrap();
    flows.go_on("without an agent");
    scene.node().start_agent(&[]).unwrap();
    flows.go_on("with the next agent");
    // No new flow goes there, and the old ones stay.
    scene.pod(backend).declare(PodStatus::Terminating).unwrap();
    let node = scene.node();
    node.wait_frontend(SERVICE, PORT, "has one", |f| f.serving() == 1)
        .unwrap();
    flows.go_on("with its backend on its way out");
    node.stop_agent().unwrap();
    node.start_agent(&["--lb-backends-max", "4096"]).unwrap();
    flows.change_over(node);
    flows.go_on("with other maps");
    scene.pod(backend).start_server().unwrap();
    scene.pod(backend).declare(PodStatus::Ready).unwrap();
    node.wait_frontend(SERVICE, PORT, "has both again", |f| f.serving() == 2)
        .unwrap();
    flows.go_on("with its backend ready again");
    assert_eq!(flows.servers(), servers);
    flows.balance();
    expect_all_translated(&scene.lab);
}

/// Health does not look at datagrams: who is dead goes on to be drawn, and each refusal that ICMP brings is counted.
#[test]
fn what_a_dead_backend_refuses_of_datagrams_is_counted() {
    const RATE: f64 = 100.0;
    let lab = running("udpdead", ALONE);
    let node = lab.node("east-1").unwrap();
    let dead = &backends(&lab)[0];
    // Else ICMP answers one datagram a second.
    let unlimited = ["net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"];
    dead.netns()
        .sysctl(&unlimited.map(|key| (key, "0")))
        .unwrap();
    let all = addresses(&lab);
    let frontends = all.map(|address| datagrams(node, address));
    let targets = all.map(|address| format!("{address}={SERVICE}"));
    let requests = Requests::to_all(targets.iter().map(String::as_str)).unwrap();
    let pod = lab.pod("east/client").unwrap();
    let mut traffic = pod.traffic(&requests.udp(4).workers(2)).unwrap();
    let opened = Opened::of(node, frontends, &mut traffic);
    traffic.rate(RATE).unwrap();
    assert_eq!(at_least(&mut traffic, 200).failed(), 0);
    traffic.pause().unwrap();
    dead.kill_server().unwrap();
    traffic.rate(RATE).unwrap();
    let report = at_least(&mut traffic, 400);
    let kernel = opened.balance("datagrams", &mut traffic);
    let refused = report.failed_by(REFUSED);
    // A half of 400 draws or more, less four times their standard deviation (√400 ÷ 2).
    assert!(refused >= 160, "{report:?}");
    assert_eq!(report.failed(), refused, "{report:?}");
    assert_eq!((kernel.ejections, kernel.out), (0, 0), "{kernel:?}");
    expect_all_translated(&lab);
}

#[test]
fn a_connected_socket_of_a_removed_backend_is_closed() {
    const FLOWS: u64 = 20;
    let lab = running("orphan", ALONE);
    let pods = backends(&lab);
    let pod = lab.pod("east/client").unwrap();
    let ledger = Ledger::open(lab.node("east-1").unwrap(), SERVICE);
    for address in addresses(&lab) {
        let mut flows: Vec<(Flow, usize)> = (0..FLOWS)
            .map(|_| {
                let mut flow = pod.flow(address, true).unwrap();
                let which = which(&pods, &answered(&mut flow, address));
                (flow, which)
            })
            .collect();
        // On its way out, and out of the draw, it keeps its flows.
        pods[0].declare(PodStatus::Terminating).unwrap();
        let node = lab.node("east-1").unwrap();
        node.wait_frontend(SERVICE, PORT, "has one", |f| f.serving() == 1)
            .unwrap();
        for (flow, before) in &mut flows {
            assert_eq!(which(&pods, &answered(flow, address)), *before);
        }
        pods[0].withdraw().unwrap();
        for (flow, before) in &mut flows {
            if *before == 0 {
                let (_, error) =
                    wait_for("its socket is closed", SOON, || Ok(flow.ask()?.err())).unwrap();
                // Who sends finds no peer any more; who waits for an answer is told ECONNABORTED.
                let told = ["os error 89", "os error 103"];
                assert!(told.iter().any(|told| error.contains(told)), "{error}");
            }
        }
        for (flow, before) in flows.iter_mut().filter(|(_, before)| *before == 1) {
            assert_eq!(
                which(&pods, &answered(flow, address)),
                *before,
                "a neighbour"
            );
        }
        pods[0].declare(PodStatus::Ready).unwrap();
        node.wait_frontend(SERVICE, PORT, "has both again", |f| f.serving() == 2)
            .unwrap();
    }
    // What is closed is no connect that failed.
    ledger.balance(Told::established(2 * FLOWS));
}

/// It goes while no agent runs, and the next agent's maps never held it.
#[test]
fn a_connected_socket_whose_backend_went_with_the_maps_is_closed() {
    const FLOWS: u64 = 20;
    let lab = running("unseen", ALONE);
    let pods = backends(&lab);
    let node = lab.node("east-1").unwrap();
    let pod = lab.pod("east/client").unwrap();
    let mut flows = Vec::new();
    for address in addresses(&lab) {
        for _ in 0..FLOWS {
            let mut flow = pod.flow(address, true).unwrap();
            let which = which(&pods, &answered(&mut flow, address));
            flows.push((flow, address, which));
        }
    }
    node.kill_agent().unwrap();
    pods[0].withdraw().unwrap();
    node.start_agent(&["--lb-backends-max", "4096"]).unwrap();
    let (gone, kept): (Vec<_>, Vec<_>) = flows.into_iter().partition(|(_, _, at)| *at == 0);
    assert!(!gone.is_empty() && !kept.is_empty());
    for (mut flow, ..) in gone {
        wait_for("its socket is closed", SOON, || Ok(flow.ask()?.err())).unwrap();
    }
    for (mut flow, address, before) in kept {
        assert_eq!(which(&pods, &answered(&mut flow, address)), before);
    }
    expect_all_translated(&lab);
}

/// The next agent's maps begin without the backends of a cluster that its mesh server, which is dead, has not told of: they are not gone
/// for that.
#[test]
fn a_connected_socket_whose_cluster_is_not_heard_of_stays() {
    const FLOWS: u64 = 20;
    // Longer than an agent waits, once its programs serve, before it looks for what went unseen.
    const WATCHED: Duration = Duration::from_secs(5);
    let lab = running("unheard", TWO_SMALL);
    let node = lab.node("east-1").unwrap();
    let east = lab.cluster("east").unwrap();
    let address = addresses(&lab)[0];
    let pod = lab.pod("east/client").unwrap();
    let flows = (0..FLOWS).map(|_| {
        let mut flow = pod.flow(address, true).unwrap();
        let server = answered(&mut flow, address).answer;
        (flow, server)
    });
    let mut flows: Vec<(Flow, String)> = flows.collect();
    assert!(flows.iter().any(|(_, server)| server.contains("west")));
    let mut all_stay = |why: &str| {
        let begun = Instant::now();
        while begun.elapsed() < WATCHED {
            for (flow, server) in &mut flows {
                assert_eq!(answered(flow, address).answer, *server, "{why}");
            }
        }
    };
    node.kill_agent().unwrap();
    east.kill_mesh().unwrap();
    std::fs::remove_dir_all(node.plan().dir().join("agent-state")).unwrap();
    let programs = node.kernel_programs().unwrap();
    node.spawn_agent(&["--lb-backends-max", "4096"]).unwrap();
    wait_for("the next agent's programs serve", SOON, || {
        Ok((node.kernel_programs()? != programs).then_some(()))
    })
    .unwrap();
    all_stay("without a word of the other cluster");
    let frontend = node.frontend(SERVICE, PORT, false).unwrap();
    assert_eq!(
        frontend.serving(),
        1,
        "the next agent knows it: {frontend:?}"
    );
    east.start_mesh(&[]).unwrap();
    node.wait_frontend(SERVICE, PORT, "has both", |f| f.serving() == 2)
        .unwrap();
    all_stay("with both clusters' backends");
}

#[test]
fn clients_come_back_where_the_service_asks_for_it() {
    let lab = running("sessions", ALONE);
    let pods = backends(&lab);
    let manifests = lab.cluster("east").unwrap().manifests();
    let mut object: Value = service(&[("service.cilium.io/global", "true")]);
    object["spec"]["sessionAffinity"] = json!("ClientIP");
    // Each family is a frontend of its own, with clients of its own.
    object["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    let ledger = Ledger::open(lab.node("east-1").unwrap(), SERVICE);
    let mut traffic = {
        let target = format!("{}={SERVICE}", addresses(&lab)[0]);
        let requests = Requests::to(&target).unwrap();
        lab.pod("east/client").unwrap().traffic(&requests).unwrap()
    };
    traffic.rate(2000.0).unwrap();
    collect_until(&mut traffic, "both answer", |r| r.answers.len() == 2);
    manifests.write_objects("backend.yaml", &[object]).unwrap();
    collect_until(&mut traffic, "one answers", |r| {
        r.failed() == 0 && r.answers.len() == 1
    });
    let kept = at_least(&mut traffic, 1000);
    assert_eq!((kept.failed(), kept.answers.len()), (0, 1), "{kept:?}");
    let name = kept.answers.keys().next().unwrap().clone();
    let leaving = pods.iter().find(|pod| name.ends_with(&pod.name())).unwrap();
    leaving.declare(PodStatus::NotReady).unwrap();
    collect_until(&mut traffic, "the other answers", |r| {
        r.failed() == 0 && r.answers.len() == 1 && !r.answers.contains_key(&name)
    });
    leaving.declare(PodStatus::Ready).unwrap();
    let node = lab.node("east-1").unwrap();
    node.wait_frontend(SERVICE, PORT, "has both again", |f| f.serving() == 2)
        .unwrap();
    let kept = at_least(&mut traffic, 1000);
    assert_eq!((kept.failed(), kept.answers.len()), (0, 1), "{kept:?}");
    assert!(!kept.answers.contains_key(&name), "it does not go back");
    manifests
        .write_objects(
            "backend.yaml",
            &[service(&[("service.cilium.io/global", "true")])],
        )
        .unwrap();
    collect_until(&mut traffic, "both answer", |r| r.answers.len() == 2);
    ledger.balance_with(&mut traffic);
    let mut again = client(&lab, "east/client", "east-1");
    again.rate(2000.0).unwrap();
    collect_until(&mut again, "both answer new clients", |r| {
        r.failed() == 0 && r.answers.len() == 2
    });
    again.pause().unwrap();
    ledger.balance(Told::by_client(traffic.total()).and(Told::by_client(again.total())));
}

const DNS: u16 = 53;
const NAMES: u64 = 50;
const RESOLVES_TO: [u8; 4] = [192, 0, 2, 7];

/// As each of its ways of asking goes: over both families, by datagrams and by TCP.
#[test]
fn the_system_s_resolver_asks_a_service() {
    let lab = running("dns", ALONE);
    let answered = backends(&lab).map(|pod| answer_queries(&pod));
    let manifests = lab.cluster("east").unwrap().manifests();
    let object = named_service("dns", DNS, DNS, &[]);
    manifests.write_objects("dns.yaml", &[object]).unwrap();
    let node = lab.node("east-1").unwrap();
    node.wait_frontend("production/dns", DNS, "has both", |f| f.serving() == 2)
        .unwrap();
    for v6 in [false, true] {
        for (protocol, option) in [("UDP", "attempts:1"), ("TCP", "use-vc")] {
            let connects = || -> u64 {
                let all = node.frontends_of("production/dns", DNS).unwrap();
                let ours =
                    |f: &&Frontend| f.protocol == protocol && f.address.unwrap().is_ipv6() == v6;
                let counts = all.iter().filter(ours).flat_map(|f| &f.backends);
                counts.filter_map(|backend| backend.connects).sum()
            };
            let server = node.frontend("production/dns", DNS, v6).unwrap();
            let server = server.target().unwrap().ip();
            let (before, queries) = (connects(), queries(&answered));
            resolve(&lab, &format!("nameserver {server}\noptions {option}\n"));
            let (connects, queries) = (connects() - before, since(&answered, &queries));
            let told = format!("{server} by {protocol}: {connects} connects, {queries:?}");
            // Each query is a socket of its own.
            assert_eq!(queries.iter().sum::<u64>(), connects, "{told}");
            assert!(
                connects >= NAMES && queries.iter().all(|n| *n > 0),
                "{told}"
            );
        }
    }
    expect_all_translated(&lab);
}

fn queries(answered: &[Arc<AtomicU64>; 2]) -> [u64; 2] {
    answered
        .each_ref()
        .map(|count| count.load(Ordering::Relaxed))
}

fn since(answered: &[Arc<AtomicU64>; 2], before: &[u64; 2]) -> [u64; 2] {
    let now = queries(answered);
    [now[0] - before[0], now[1] - before[1]]
}

/// Has the client's C library look for names, by a `resolv.conf` of its own, whatever the host's says.
fn resolve(lab: &Lab, resolv: &str) {
    let etc = tempfile::tempdir().unwrap();
    std::fs::write(etc.path().join("resolv.conf"), resolv).unwrap();
    std::fs::write(etc.path().join("nsswitch.conf"), "hosts: dns\n").unwrap();
    let script = format!(
        "mount --bind {} /etc && for i in $(seq {NAMES}); do getent ahostsv4 name-$i.example || exit 1; done",
        etc.path().display()
    );
    let pod = lab.pod("east/client").unwrap();
    let mut command: Command = pod.command("/usr/bin/unshare").unwrap();
    let output = command
        .args(["--mount", "sh", "-c", &script])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{resolv}{said}{output:?}");
    let found = said.lines().filter(|line| line.starts_with("192.0.2.7 "));
    assert!(found.count() as u64 >= NAMES, "{resolv}{said}");
}

/// A name server that knows one address for every name, and no other record. Gives how many queries it has answered.
fn answer_queries(pod: &Pod<'_>) -> Arc<AtomicU64> {
    let any = (Ipv6Addr::UNSPECIFIED, DNS);
    let bind = || Ok::<_, std::io::Error>((UdpSocket::bind(any)?, TcpListener::bind(any)?));
    let (socket, listener) = pod.netns().run(bind).unwrap().unwrap();
    let answered = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&answered);
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            if let Some(answer) = answer(&query[..len]) {
                count.fetch_add(1, Ordering::Relaxed);
                // A client that is gone already did not want the answer.
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    let count = Arc::clone(&answered);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // As above.
            let _ = answer_stream(&mut stream, &count);
        }
    });
    answered
}

/// RFC 1035, 4.2.2: each message behind its length.
fn answer_stream(stream: &mut TcpStream, count: &AtomicU64) -> std::io::Result<()> {
    loop {
        let mut len = [0; 2];
        stream.read_exact(&mut len)?;
        let mut query = vec![0; u16::from_be_bytes(len).into()];
        stream.read_exact(&mut query)?;
        let Some(answer) = answer(&query) else {
            return Ok(());
        };
        count.fetch_add(1, Ordering::Relaxed);
        let mut message = u16::try_from(answer.len()).unwrap().to_be_bytes().to_vec();
        message.extend(answer);
        stream.write_all(&message)?;
    }
}

/// RFC 1035, 4.1: the question comes back, and for type A one record after it.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let end = HEADER + query.get(HEADER..)?.iter().position(|byte| *byte == 0)? + 1 + 4;
    let question = query.get(HEADER..end)?;
    let is_a = question[question.len() - 4..question.len() - 2] == [0, 1];
    let mut answer = query[..2].to_vec();
    // A response, recursion available; one question, one answer or none.
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        // Its name is the question's; class IN, 60 s, four bytes.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(RESOLVES_TO);
    }
    Some(answer)
}
