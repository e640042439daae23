//! G13a, a backend's death: killed under load with the agents of both clusters dead, until no connect fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Estimate, quantile, quantile_estimate};
use crate::client::{BROKEN_OFF, REFUSED, Report, monotonic};
use crate::lab::{Lab, Node};
use crate::manifests::PodStatus;
use crate::process::Programs;
use crate::spec::{ClusterSpec, LabSpec, LinkSpec, PodSpec};
use crate::traffic::{Requests, Traffic};

const KILLS: usize = 100;
pub(super) const BACKENDS: usize = 10;
/// The first half of them is the first cluster's.
const CLUSTERS: [&str; 2] = ["east", "west"];
/// A little more than the 20,000 a second that are to be made, since no client makes all that it is asked for.
const RATE: f64 = 21_000.0;
const WORKERS: usize = 2;
/// How long traffic goes on before the kill, and after it.
const STRETCH: Duration = Duration::from_millis(150);
/// Of connect times.
const QUANTILES: [f64; 5] = [0.01, 0.1, 0.5, 0.9, 0.99];
const FAILED: f64 = 3.0;
const P99: f64 = 5.0;
pub(super) const PORT: u16 = 8080;
pub(super) const ADDRESS: &str = "10.96.0.10:80";
pub(super) const SERVICE: &str = "bench/backend";
const MANIFEST: &str = "apiVersion: v1
kind: Service
metadata:
  name: backend
  namespace: bench
  annotations: {service.cilium.io/global: \"true\"}
spec:
  clusterIP: 10.96.0.10
  selector: {app: backend}
  ports:
  - {port: 80, targetPort: 8080}
";

/// The same backends, as kube-proxy in nftables mode would serve them.
const PEER: &str = "10.96.200.1:80";

/// What one death cost.
struct Death {
    /// Connects that failed; the kernel's count is the same.
    failed: u64,
    /// Connections that the backend had accepted, or had in its queue, when it died: their connects had succeeded.
    broken: u64,
    /// From the kill to the last failure, in milliseconds.
    from_kill: f64,
    /// From the first failure to the last.
    from_first: f64,
    requests: u64,
    seconds: f64,
    /// At [`QUANTILES`] of the connects that succeeded, in microseconds.
    connects: [f64; QUANTILES.len()],
}

/// The same death beside it, where nobody leaves the backend out before somebody writes the rules anew.
struct Peer {
    failed: u64,
    connects: [f64; QUANTILES.len()],
}

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let kills = batches.unwrap_or(KILLS).max(2);
    let lab = stage()?;
    let client = |target| -> Result<Traffic> {
        let requests = Requests::to(&format!("{target}={SERVICE}"))?.workers(WORKERS);
        lab.pod("east/client")?.traffic(&requests.timed())
    };
    let (mut ours, mut theirs) = (client(ADDRESS)?, client(PEER)?);
    let (mut deaths, mut peers) = (Vec::new(), Vec::new());
    for kill in 0..kills {
        let number = kill % BACKENDS;
        let of_both = death(&lab, &mut ours, number)
            .and_then(|death| Ok((death, peer(&lab, &mut theirs, number)?)));
        let (death, peer) =
            of_both.with_context(|| format!("kill {kill}\n{}", lab.last_words()))?;
        deaths.push(death);
        peers.push(peer);
    }
    ours.stop()?;
    theirs.stop()?;
    lab.down()?;
    Ok(sheet(&deaths, &peers))
}

/// A lab with the service and all of its backends.
pub(super) fn stage() -> Result<Lab> {
    let lab = Lab::build("bench", &spec(), Programs::beside_this_one()?)?;
    for cluster in lab.clusters() {
        cluster.manifests().write("service.yaml", MANIFEST)?;
    }
    lab.start()?;
    wait_for_backends(lab.node("east-1")?, BACKENDS)?;
    Ok(lab)
}

fn sheet(deaths: &[Death], peers: &[Peer]) -> Sheet {
    let values = |of: fn(&Death) -> f64| deaths.iter().map(of).collect::<Vec<_>>();
    let failed = values(|death| count(death.failed));
    let (from_kill, from_first) = (values(|d| d.from_kill), values(|d| d.from_first));
    let requests: u64 = deaths.iter().map(|death| death.requests).sum();
    let seconds: f64 = deaths.iter().map(|death| death.seconds).sum();
    let broken: u64 = deaths.iter().map(|death| death.broken).sum();
    let rate = count(requests) / seconds;
    let row =
        |what: &str, values: &[f64], q, unit| Row::new(what, quantile_estimate(values, q), unit);
    let most = quantile(failed.clone(), 1.0);
    let theirs = peers.iter().map(|peer| count(peer.failed)).collect();
    let theirs = quantile(theirs, 0.5);
    let connect = |(place, q): (usize, f64)| {
        let ours: Vec<f64> = deaths.iter().map(|death| death.connects[place]).collect();
        let theirs = peers.iter().map(|peer| peer.connects[place]).collect();
        let (ours, theirs) = (quantile_estimate(&ours, 0.5), quantile(theirs, 0.5));
        let what = format!("connects while it dies, p{:.0}", q * 100.0);
        Row::new(what, ours, Unit::Microseconds).beside(
            "nftables",
            theirs,
            ours.scaled(1.0 / theirs),
        )
    };
    let connects = QUANTILES.into_iter().enumerate().map(connect);
    let mut sheet = Sheet {
        title: "a backend of ten is killed: connects that fail until the kernel leaves it out",
        method: format!(
            "{} kills (-9) of one of {BACKENDS} backends, half of them another cluster's, each with the agents of both clusters killed before \
             and no manifest changed; one client of {WORKERS} threads \
             made {rate:.0} TCP connects a second ({RATE:.0} asked for), each of a fresh socket with an answer and a reset; the kernel's count \
             of refusals was the client's after each kill; between kills the agents were started and the Pod declared anew; beside it rules in kube-proxy's nftables shape, in the same run, which \
             nobody rewrites in the {} ms for which each death is watched; of each kill's percentiles, which leave out connects that failed, the median; \
             [95% bootstrap interval]",
            deaths.len(),
            STRETCH.as_millis()
        ),
        rows: vec![
            row("failed connects a kill, p50", &failed, 0.5, Unit::Count).beside(
                "nftables",
                theirs,
                quantile_estimate(&failed, 0.5).scaled(1.0 / theirs),
            ),
            row("failed connects a kill, p99", &failed, 0.99, Unit::Count)
                .at_most(Target::Ours(FAILED)),
            Row::new(
                "failed connects a kill, max",
                Estimate::exact(most),
                Unit::Count,
            ),
            row(
                "kill to last failure, p50",
                &from_kill,
                0.5,
                Unit::Milliseconds,
            ),
            row(
                "kill to last failure, p99",
                &from_kill,
                0.99,
                Unit::Milliseconds,
            )
            .at_most(Target::Ours(P99)),
            row(
                "first failure to last, p50",
                &from_first,
                0.5,
                Unit::Milliseconds,
            ),
            row(
                "first failure to last, p99",
                &from_first,
                0.99,
                Unit::Milliseconds,
            ),
            Row::new(
                "connections broken off by the kill, in all",
                Estimate::exact(count(broken)),
                Unit::Count,
            ),
            Row::new("connects a second", Estimate::exact(rate), Unit::Count),
        ],
        raw: json!({
            "unit": "milliseconds",
            "failed": failed,
            "from_kill": from_kill,
            "from_first": from_first,
            "broken": values(|death| count(death.broken)),
            "requests": requests,
            "peer_failed": peers.iter().map(|peer| peer.failed).collect::<Vec<_>>(),
        }),
    };
    sheet.rows.extend(connects);
    sheet
}

/// Kills the agents, then one backend, under traffic; then makes all as it was.
fn death(lab: &Lab, client: &mut Traffic, number: usize) -> Result<Death> {
    let node = lab.node("east-1")?;
    let pod = lab.pod(&backend(number))?;
    let at = pod.addresses().first().copied();
    let at = at.context("a backend that serves nothing")?;
    let health = node.health_of(&node.frontend(SERVICE, 80, false)?)?;
    let before = health.backend(at)?;
    client.rate(RATE)?;
    for node in lab.nodes() {
        node.kill_agent()?;
    }
    // The length of a measurement, not a wait for anything.
    std::thread::sleep(STRETCH);
    let warm = client.mark()?;
    ensure!(warm.failed() == 0, "failures before the kill: {warm:?}");
    let (begin, killed) = (Instant::now(), monotonic());
    pod.kill_server()?;
    std::thread::sleep(STRETCH);
    let report = client.pause()?;
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(report.wrong == 0, "answered by another service: {report:?}");
    let now = health.backend(at)?;
    let failed = refused(&report);
    let since = now.since(&before);
    let (counted, broken) = (since.refused, report.failed_by(BROKEN_OFF));
    ensure!(now.is_out(), "not ejected: {now:?} {report:?}");
    ensure!(
        counted == failed.len() as u64,
        "the kernel counted {counted} refusals: {report:?}"
    );
    ensure!(
        (since.unreachable, since.timed_out, since.unanswered) == (0, 0, 0)
            && report.failed() == counted + broken,
        "it failed otherwise than by refusals: {since:?} {report:?}"
    );
    pod.start_server()?;
    for node in lab.nodes() {
        node.start_agent(&[])?;
    }
    // As another Pod it is another backend, against which nothing is held.
    pod.declare(PodStatus::NotReady)?;
    wait_for_backends(node, BACKENDS - 1)?;
    pod.declare(PodStatus::Ready)?;
    wait_for_backends(node, BACKENDS)?;
    let last = failed.last().copied().unwrap_or(killed);
    let first = failed.first().copied().unwrap_or(last);
    Ok(Death {
        failed: counted,
        broken,
        from_kill: milliseconds(killed, last),
        from_first: milliseconds(first, last),
        requests: report.requests,
        seconds,
        connects: percentiles(&report),
    })
}

/// The same death under the peer's rules, which are there for it alone: they make the kernel track every connection.
fn peer(lab: &Lab, client: &mut Traffic, number: usize) -> Result<Peer> {
    let netns = lab.node("east-1")?.netns();
    netns.nft(&kube_proxy(lab)?)?;
    let pod = lab.pod(&backend(number))?;
    client.rate(RATE)?;
    // As long as ours.
    std::thread::sleep(STRETCH);
    let warm = client.mark()?;
    ensure!(warm.failed() == 0, "failures before the kill: {warm:?}");
    pod.kill_server()?;
    std::thread::sleep(STRETCH);
    let report = client.pause()?;
    pod.start_server()?;
    netns.nft("delete table ip peer\n")?;
    Ok(Peer {
        failed: report.failed_by(REFUSED),
        connects: percentiles(&report),
    })
}

/// What kube-proxy writes in nftables mode, in small: a verdict map of services, a random endpoint, DNAT.
fn kube_proxy(lab: &Lab) -> Result<String> {
    let (mut chains, mut endpoints) = (String::new(), Vec::new());
    for number in 0..BACKENDS {
        let pod = lab.pod(&backend(number))?;
        let address = pod.plan().addresses.v4;
        writeln!(
            chains,
            "chain endpoint-{number} {{ meta l4proto tcp dnat to {address}:{PORT}; }}"
        )?;
        endpoints.push(format!("{number} : goto endpoint-{number}"));
    }
    let (endpoints, (address, port)) = (
        endpoints.join(", "),
        PEER.split_once(':').context("ADDRESS:PORT")?,
    );
    Ok(format!(
        "table ip peer {{
{chains}chain backend {{ numgen random mod {BACKENDS} vmap {{ {endpoints} }}; }}
map services {{
type ipv4_addr . inet_proto . inet_service : verdict
elements = {{ {address} . tcp . {port} : goto backend }}
}}
chain prerouting {{ type nat hook prerouting priority dstnat; ip daddr . meta l4proto . th dport vmap @services; }}
}}\n"
    ))
}

fn percentiles(report: &Report) -> [f64; QUANTILES.len()] {
    let times = report.connect_times.iter().map(|time| count(*time) / 1e3);
    let times: Vec<f64> = times.collect();
    QUANTILES.map(|q| quantile(times.clone(), q))
}

/// When connects were refused, in order. A report tells the moments of its first failures only; far more of them would be
/// refused than are told here, and then the counts differ.
fn refused(report: &Report) -> Vec<u64> {
    let told = report.told.iter().filter(|f| f.error == REFUSED);
    let mut moments: Vec<u64> = told.map(|f| f.at).collect();
    moments.sort_unstable();
    moments
}

pub(super) fn wait_for_backends(node: Node<'_>, backends: usize) -> Result<()> {
    let what = format!("has {backends} backends");
    node.wait_frontend(SERVICE, 80, &what, |f| f.serving() == backends)
        .map(drop)
}

/// The name of a backend's pod, by its number among all.
pub(super) fn backend(number: usize) -> String {
    let half = BACKENDS / CLUSTERS.len();
    format!("{}/backend-{}", CLUSTERS[number / half], number % half + 1)
}

fn spec() -> LabSpec {
    let pod = |name: &str, count, serves| PodSpec {
        name: name.to_owned(),
        count,
        namespace: "bench".to_owned(),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        serves: Some(serves),
    };
    let served = BTreeMap::from([(PORT, SERVICE.to_owned())]);
    let half = u8::try_from(BACKENDS / CLUSTERS.len()).unwrap_or(u8::MAX);
    let cluster = |(id, name): (u16, &str)| ClusterSpec {
        name: name.to_owned(),
        id,
        region: None,
        nodes: 1,
        manifests: None,
        pods: vec![
            pod("backend", half, served.clone()),
            pod("client", 1, BTreeMap::new()),
        ],
    };
    LabSpec {
        clusters: (1..).zip(CLUSTERS).map(cluster).collect(),
        links: vec![LinkSpec {
            between: CLUSTERS.map(str::to_owned).into(),
            loss: 0.0,
        }],
    }
}

fn milliseconds(from: u64, to: u64) -> f64 {
    count(to.saturating_sub(from)) / 1e6
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts and times of a run, far below 2^52"
)]
pub(super) fn count(n: u64) -> f64 {
    n as f64
}
