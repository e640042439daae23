//! G17, failover by declaration: the last ready local backend is declared unready, and the other cluster answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Estimate, quantile_estimate};
use crate::client::{Report, monotonic};
use crate::lab::Lab;
use crate::manifests::PodStatus;
use crate::process::Programs;
use crate::spec::{ClusterSpec, LabSpec, LinkSpec, PodSpec};
use crate::traffic::{Requests, Traffic};
use crate::wait::wait_for;

const SWITCHES: usize = 60;
const RATE: f64 = 20_000.0;
/// Connected sockets that the client has open at a time, in each worker.
const BATCH: usize = 20;
const WORKERS: usize = 2;
const P99: f64 = 5.0;
/// Cilium 1.20.0-dev, median, recorded on another machine of two CPUs.
const CILIUM_P50: f64 = 243.0;
const PORT: u16 = 5353;
const ADDRESS: &str = "10.96.0.10:53";
const SERVICE: &str = "bench/backend";
const MANIFEST: &str = "apiVersion: v1
kind: Service
metadata:
  name: backend
  namespace: bench
  annotations: {service.cilium.io/global: \"true\", service.cilium.io/affinity: local}
spec:
  clusterIP: 10.96.0.10
  selector: {app: backend}
  ports:
  - {protocol: UDP, port: 53, targetPort: 5353}
";
/// Longest wait for a switch.
const DEADLINE: Duration = Duration::from_secs(10);

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let switches = batches.unwrap_or(SWITCHES).max(2);
    let lab = Lab::build("bench", &spec(), Programs::beside_this_one()?)?;
    for cluster in lab.clusters() {
        cluster.manifests().write("service.yaml", MANIFEST)?;
    }
    lab.start()?;
    // Ready agents may not have heard of the peer yet, and without its backend there is nothing to fail over to.
    let node = lab.node("east-1")?;
    wait_for("east knows west's backend", DEADLINE, || {
        let frontends = node.frontends()?;
        let mut backends = frontends.iter().flat_map(|frontend| &frontend.backends);
        Ok(backends
            .any(|backend| backend.cluster == "west" && backend.backend_id.is_some())
            .then_some(()))
    })?;
    let local = lab.pod("east/backend")?;
    let requests = Requests::to(&format!("{ADDRESS}={SERVICE}"))?
        .udp(BATCH)
        .workers(WORKERS);
    let mut client = Client::start(lab.pod("east/client")?.traffic(&requests)?)?;
    let (mut away, mut back) = (Vec::new(), Vec::new());
    for _ in 0..switches {
        away.push(client.switch("west", || local.declare(PodStatus::NotReady))?);
        back.push(client.switch("east", || local.declare(PodStatus::Ready))?);
    }
    let all = client.stop()?;
    lab.expect_all_alive()?;
    lab.down()?;
    let row = |name: &str, times: &[f64], q| {
        Row::new(name, quantile_estimate(times, q), Unit::Milliseconds)
    };
    Ok(Sheet {
        title: "the last local backend is declared unready: the other cluster answers",
        method: format!(
            "{switches} switches there and back between two clusters with real mesh servers, affinity local, one backend each; one client \
             made {:.0} UDP connects a second, each of a fresh socket with a request and an answer, {} at a time; from before the Pod's file \
             is written and renamed, which is earlier than its reading; [95% bootstrap interval]; Cilium's figure was not measured here",
            all.rate,
            WORKERS * BATCH
        ),
        rows: vec![
            row("first answer of the other cluster, p50", &away, 0.5)
                .recorded("Cilium, recorded", CILIUM_P50),
            row("first answer of the other cluster, p99", &away, 0.99).at_most(Target::Ours(P99)),
            row("first answer of the other cluster, max", &away, 1.0),
            row(
                "first answer of the own cluster after its return, p50",
                &back,
                0.5,
            ),
            Row::new(
                format!("failed connects of {}", all.requests),
                Estimate::exact(count(all.failed)),
                Unit::Count,
            )
            .at_most(Target::Ours(0.0)),
            Row::new("connects a second", Estimate::exact(all.rate), Unit::Count),
        ],
        raw: json!({
            "unit": "milliseconds",
            "away": away,
            "back": back,
            "requests": all.requests,
            "failures": all.failures,
            "wrong": all.wrong,
        }),
    })
}

fn spec() -> LabSpec {
    let pod = |name: &str, serves| PodSpec {
        name: name.to_owned(),
        count: 1,
        namespace: "bench".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        serves: Some(serves),
    };
    let cluster = |name: &str, id| ClusterSpec {
        name: name.to_owned(),
        id,
        region: None,
        nodes: 1,
        manifests: None,
        pods: vec![
            pod("backend", BTreeMap::from([(PORT, SERVICE.to_owned())])),
            pod("client", BTreeMap::new()),
        ],
    };
    LabSpec {
        clusters: vec![cluster("east", 1), cluster("west", 2)],
        links: vec![LinkSpec {
            between: ("east".to_owned(), "west".to_owned()),
            loss: 0.0,
        }],
    }
}

/// The client, and all that it said.
struct Client {
    traffic: Traffic,
    started: Instant,
    requests: u64,
    wrong: u64,
    failures: BTreeMap<String, u64>,
}

struct Total {
    requests: u64,
    failed: u64,
    wrong: u64,
    failures: BTreeMap<String, u64>,
    rate: f64,
}

impl Client {
    /// Counts from when both clusters' rows are known, and only the own one answers.
    fn start(traffic: Traffic) -> Result<Self> {
        let mut client = Self {
            traffic,
            started: Instant::now(),
            requests: 0,
            wrong: 0,
            failures: BTreeMap::new(),
        };
        #[expect(clippy::cast_precision_loss, reason = "a small constant")]
        client.traffic.rate(RATE / BATCH as f64)?;
        client.wait_for_only("east")?;
        client.started = Instant::now();
        (client.requests, client.wrong) = (0, 0);
        client.failures.clear();
        Ok(client)
    }

    fn report(&mut self) -> Result<Report> {
        let report = self.traffic.mark()?;
        self.add(&report);
        Ok(report)
    }

    fn add(&mut self, report: &Report) {
        self.requests += report.requests;
        self.wrong += report.wrong;
        for (error, count) in &report.failures {
            *self.failures.entry(error.clone()).or_default() += count;
        }
    }

    /// Does what moves the service to `cluster`, and tells after how many milliseconds that cluster answered first.
    /// Returns when nobody else answers any more.
    fn switch(&mut self, cluster: &str, change: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.report()?;
        let before = monotonic();
        change()?;
        let deadline = Instant::now() + DEADLINE;
        let first = loop {
            if let Some(first) = self.report()?.first_of(cluster) {
                break first;
            }
            ensure!(
                Instant::now() < deadline,
                "{cluster} did not answer in {DEADLINE:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        };
        self.wait_for_only(cluster)?;
        let nanoseconds = first
            .checked_sub(before)
            .with_context(|| format!("{cluster} answered before it should"))?;
        Ok(count(nanoseconds) / 1e6)
    }

    fn wait_for_only(&mut self, cluster: &str) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let report = self.report()?;
            if report.answered() > 0 && report.from_cluster(cluster) == report.answered() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "not only {cluster} answers after {DEADLINE:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(mut self) -> Result<Total> {
        let report = self.traffic.pause()?;
        let seconds = self.started.elapsed().as_secs_f64();
        self.add(&report);
        Ok(Total {
            requests: self.requests,
            failed: self.failures.values().sum(),
            wrong: self.wrong,
            rate: count(self.requests) / seconds,
            failures: self.failures,
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and times of a run, far below 2^52"
)]
fn count(n: u64) -> f64 {
    n as f64
}
