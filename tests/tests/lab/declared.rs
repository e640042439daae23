//! What a Service and its Pods declare: their own node only, unready addresses, graceful ends; on real connects.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use isthmus_tests::{Pod, PodStatus};
use serde_json::{Value, json};

use super::books::Ledger;
use super::common::{
    ALONE, PORT, SERVICE, TWO_CLUSTERS, client, collect_until, expect_all_translated,
    named_service, running, service,
};

const RATE: f64 = 2000.0;
const ECHO: u16 = 7000;

/// `production/backend`, global, with more in its spec.
fn declared(spec: &[(&str, Value)]) -> Value {
    let mut object = service(&[("service.cilium.io/global", "true")]);
    for (key, value) in spec {
        object["spec"][*key] = value.clone();
    }
    object
}

#[test]
fn connections_stay_on_their_node_where_the_service_says_so() {
    let lab = running("node", TWO_CLUSTERS);
    let manifests = lab.cluster("east").unwrap().manifests();
    let ledger = Ledger::open(lab.node("east-1").unwrap(), SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(RATE).unwrap();
    let local = || ("internalTrafficPolicy", json!("Local"));
    let write = |spec: &[(&str, Value)]| {
        manifests
            .write_objects("backend.yaml", &[declared(spec)])
            .unwrap();
    };
    let here = format!("{SERVICE} east/backend-1");
    write(&[local()]);
    collect_until(&mut traffic, "only this node's backend answers", |r| {
        r.failed() == 0 && r.answers.keys().eq([&here])
    });
    let elsewhere = lab.node("east-1").unwrap().frontend(SERVICE, PORT, false);
    let states: Vec<String> = elsewhere
        .unwrap()
        .backends
        .into_iter()
        .map(|backend| backend.state)
        .collect();
    assert_eq!(states, ["active", "elsewhere", "elsewhere", "elsewhere"]);

    let pod = lab.pod("east/backend-1").unwrap();
    pod.declare(PodStatus::NotReady).unwrap();
    collect_until(&mut traffic, "without one, connects are refused", |r| {
        r.answered() == 0 && r.failures.keys().eq(["refused"])
    });
    write(&[local(), ("publishNotReadyAddresses", json!(true))]);
    collect_until(
        &mut traffic,
        "the unready one answers if it is published",
        |r| r.failed() == 0 && r.answers.keys().eq([&here]),
    );
    write(&[]);
    collect_until(&mut traffic, "all others answer", |r| {
        r.failed() == 0 && r.answers.len() == 3 && !r.answers.contains_key(&here)
    });
    ledger.balance_with(&mut traffic);
    expect_all_translated(&lab);
}

#[test]
fn a_terminating_backend_keeps_its_flows_and_gets_no_new_ones() {
    let lab = running("graceful", ALONE);
    let pods = ["east/backend-1", "east/backend-2"].map(|name| lab.pod(name).unwrap());
    for pod in &pods {
        echo(pod);
    }
    let manifests = lab.cluster("east").unwrap().manifests();
    let object = named_service("echo", ECHO, ECHO, &[]);
    manifests.write_objects("echo.yaml", &[object]).unwrap();
    let node = lab.node("east-1").unwrap();
    let (_, frontend) = node
        .wait_frontend("production/echo", ECHO, "has both", |f| f.serving() == 2)
        .unwrap();
    let mut flow = Flow::open(
        &lab.pod("east/client").unwrap(),
        &frontend.target().unwrap().ip().to_string(),
    );
    let first = flow.ask();
    let (leaving, staying) = match pods.iter().position(|pod| pod.name() == first) {
        Some(0) => (&pods[0], &pods[1]),
        Some(1) => (&pods[1], &pods[0]),
        _ => panic!("answered by {first}"),
    };
    let ledger = Ledger::open(node, SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(RATE).unwrap();
    let only = |pod: &Pod<'_>| {
        let name = format!("{SERVICE} {}", pod.name());
        move |r: &isthmus_tests::client::Report| r.failed() == 0 && r.answers.keys().eq([&name])
    };
    leaving.declare(PodStatus::Terminating).unwrap();
    collect_until(
        &mut traffic,
        "only the ready one gets connects",
        only(staying),
    );
    assert_eq!(flow.ask(), first, "its flow goes on");
    staying.declare(PodStatus::NotReady).unwrap();
    collect_until(
        &mut traffic,
        "with nothing ready left, it serves",
        only(leaving),
    );
    staying.declare(PodStatus::Ready).unwrap();
    leaving.withdraw().unwrap();
    collect_until(&mut traffic, "it is gone for new ones", only(staying));
    assert_eq!(flow.ask(), first, "and its flow goes on to its end");
    ledger.balance_with(&mut traffic);
}

/// Answers each line with the pod's name, in the pod's namespace, until the test ends.
fn echo(pod: &Pod<'_>) {
    let listener = pod
        .netns()
        .run(|| TcpListener::bind(("0.0.0.0", ECHO)))
        .unwrap()
        .unwrap();
    let name = pod.name();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let name = name.clone();
            std::thread::spawn(move || answer_lines(stream.unwrap(), &name));
        }
    });
}

fn answer_lines(stream: TcpStream, name: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut stream = stream;
    while let Some(Ok(_)) = lines.next() {
        if writeln!(stream, "{name}").is_err() {
            return;
        }
    }
}

/// One long connection of a pod.
struct Flow {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Flow {
    fn open(pod: &Pod<'_>, address: &str) -> Self {
        let script = format!(
            "exec 3<>/dev/tcp/{address}/{ECHO}; while read line; do echo \"$line\" >&3; read -u 3 answer; echo \"$answer\"; done"
        );
        let mut command = pod.command("/bin/bash").unwrap();
        command.args(["-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Self {
            ask: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Who is at the other end.
    fn ask(&mut self) -> String {
        writeln!(self.ask, "who").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim_end().to_owned()
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
