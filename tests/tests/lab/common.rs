//! Lab files and small steps that several scenarios share.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isthmus_tests::client::Report;
use isthmus_tests::hostile::Behaviour;
use isthmus_tests::{Lab, LabSpec, Monitor, Node, Pod, Programs, Requests, Traffic, wait_for};
use serde_json::{Value, json};

pub(crate) const SERVICE: &str = "production/backend";
pub(crate) const PORT: u16 = 8080;
pub(crate) const AFFINITY: &str = "service.cilium.io/affinity";
/// Far more than anything here takes; reached only by what never comes.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// Two linked clusters of two nodes; `production/backend` is served in both, and each has a client.
pub(crate) const TWO_CLUSTERS: &str = r"
clusters:
  - name: east
    id: 1
    region: us-east
    nodes: 2
    pods:
      - {name: backend, count: 2, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
      - {name: client}
  - name: west
    id: 2
    region: us-west
    nodes: 2
    pods:
      - {name: backend, count: 2, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
      - {name: client}
links: [{between: [east, west]}]
";

/// The same with one node and one backend a cluster.
pub(crate) const TWO_SMALL: &str = r"
clusters:
  - name: east
    id: 1
    pods:
      - {name: backend, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
      - {name: client}
  - name: west
    id: 2
    pods:
      - {name: backend, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
      - {name: client}
links: [{between: [east, west]}]
";

/// One cluster of one node, with two backends and a client.
pub(crate) const ALONE: &str = r"
clusters:
  - name: east
    id: 1
    pods:
      - {name: backend, count: 2, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
      - {name: client}
";

/// Tells other threads that their work is over, also when the one that holds it panics.
pub(crate) struct SetAtEnd<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The world of a lab file, without agents.
pub(crate) fn world(name: &str, file: &str) -> Lab {
    let spec = LabSpec::parse(file).expect("a lab file");
    let programs = Programs::beside_this_one().expect("the binaries' directory");
    Lab::build(name, &spec, programs).unwrap_or_else(|e| panic!("no lab: {e:#}"))
}

/// The world of a lab file with the global service `production/backend` in every cluster, agents and mesh servers
/// running, and every node serving from every backend, over both families.
pub(crate) fn running(name: &str, file: &str) -> Lab {
    started(world(name, file), &[])
}

/// The same of a world that is there already; with flags for the agents.
pub(crate) fn started(lab: Lab, agent_flags: &[&str]) -> Lab {
    for cluster in lab.clusters() {
        cluster
            .manifests()
            .write_objects(
                "backend.yaml",
                &[service(&[("service.cilium.io/global", "true")])],
            )
            .unwrap();
    }
    lab.start_with(agent_flags, &[])
        .unwrap_or_else(|e| panic!("{e:#}\n{}", lab.last_words()));
    let backends = lab.pods().iter().filter(|p| p.serves()).count();
    for node in lab.nodes() {
        let all = |f: &isthmus_tests::Frontend| f.serving() == backends;
        node.wait_frontend(SERVICE, PORT, "has all backends", all)
            .unwrap();
    }
    lab
}

/// `production/backend`, dual-stack, with annotations.
pub(crate) fn service(annotations: &[(&str, &str)]) -> Value {
    named_service("backend", PORT, PORT, annotations)
}

pub(crate) fn named_service(
    name: &str,
    port: u16,
    target: u16,
    annotations: &[(&str, &str)],
) -> Value {
    let annotations: serde_json::Map<String, Value> = annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "production", "annotations": annotations},
        "spec": {
            "selector": {"app": "backend"},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"port": port, "targetPort": target, "protocol": "TCP", "name": "tcp"},
                      {"port": port, "targetPort": target, "protocol": "UDP", "name": "udp"}],
        },
    })
}

const NOBODY: &str = "production/nobody";

/// A monitor of a node that is seen to listen: a service without a backend refuses a client in `pod`, and that is told.
pub(crate) fn monitor(node: Node<'_>, pod: &Pod<'_>) -> Monitor {
    let mut nobody = named_service("nobody", PORT, PORT, &[]);
    nobody["spec"]["selector"]["app"] = "nobody".into();
    let manifests = node.cluster().manifests();
    manifests.write_objects("nobody.yaml", &[nobody]).unwrap();
    let frontend = node.wait_frontend(NOBODY, PORT, "is in the kernel", |f| {
        f.service_index.is_some()
    });
    let target = [frontend.unwrap().1.target().unwrap()];
    let monitor = node.monitor(&[]).unwrap();
    wait_for("the monitor tells", SOON, || {
        let account = pod.hostile(Behaviour::Connect, &target, 1, Duration::ZERO)?;
        assert_eq!(account.refused, 1, "{account:?}");
        Ok((!monitor.told().is_empty()).then_some(()))
    })
    .unwrap();
    monitor
}

/// `ADDRESS:PORT=SERVICE` of both families of `production/backend`, as a node translates them.
pub(crate) fn targets(node: Node<'_>) -> Vec<String> {
    let both = [false, true].map(|v6| node.frontend(SERVICE, PORT, v6).unwrap().target().unwrap());
    both.map(|t| format!("{t}={SERVICE}")).to_vec()
}

/// `status` of a node once it exits with `exit` and says `words`, for people.
pub(crate) fn wait_status(node: Node<'_>, exit: i32, words: &str) -> String {
    let what = format!("{}: `status` exits {exit} and says {words:?}", node.name());
    let (_, text) = wait_for(&what, SOON, || {
        let output = node.agentctl(&["status"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = output.status.code();
        anyhow::ensure!(
            code == Some(exit) && text.contains(words),
            "exit {code:?}\n{text}"
        );
        Ok(Some(text))
    })
    .unwrap();
    text
}

/// A client in a pod that asks for the service by IPv4 and IPv6 in turn.
pub(crate) fn client(lab: &Lab, pod: &str, node: &str) -> Traffic {
    let targets = targets(lab.node(node).unwrap());
    let requests = Requests::to_all(targets.iter().map(String::as_str)).unwrap();
    lab.pod(pod).unwrap().traffic(&requests).unwrap()
}

/// Clusters that answered.
pub(crate) fn clusters_in(report: &Report) -> Vec<&'static str> {
    ["east", "west"]
        .into_iter()
        .filter(|c| report.from_cluster(c) > 0)
        .collect()
}

/// Waits until only `wanted` clusters answer, and all of them, then expects the same of the next 200 requests.
pub(crate) fn expect_answers(traffic: &mut Traffic, wanted: &[&str], why: &str) {
    let settled = |report: &Report| {
        report.requests >= 50 && report.failed() == 0 && clusters_in(report) == wanted
    };
    collect_until(traffic, &format!("{why}: answers from {wanted:?}"), settled);
    let report = at_least(traffic, 200);
    assert_eq!(clusters_in(&report), wanted, "{why}: {report:?}");
    assert_eq!((report.failed(), report.wrong), (0, 0), "{why}: {report:?}");
}

/// Waits until a short stretch of traffic looks as wanted.
pub(crate) fn collect_until(traffic: &mut Traffic, what: &str, fits: impl Fn(&Report) -> bool) {
    wait_for(what, SOON, || {
        let report = at_least(traffic, 50);
        anyhow::ensure!(fits(&report), "{report:?}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Everything of the next `requests` requests, or a few more.
pub(crate) fn at_least(traffic: &mut Traffic, requests: u64) -> Report {
    traffic.mark().unwrap();
    let mut sum = Report::default();
    wait_for("requests are made", Duration::from_secs(60), || {
        sum = std::mem::take(&mut sum).and(&traffic.mark()?);
        Ok((sum.requests >= requests).then_some(()))
    })
    .unwrap();
    sum
}

/// No node of the lab saw a packet to a service's address leave untranslated.
pub(crate) fn expect_all_translated(lab: &Lab) {
    for node in lab.nodes() {
        assert_eq!(
            node.untranslated().unwrap(),
            0,
            "untranslated packets on {}",
            node.name()
        );
    }
}
