//! Other deaths of a backend than a kill: how long until the kernel leaves it out, and what connects it costs. Beside them a
//! backend that is only slow, and is to keep its connects.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::{Value, json};

use super::death::{ADDRESS, BACKENDS, PORT, SERVICE, backend, count, stage, wait_for_backends};
use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Estimate, quantile, quantile_estimate};
use crate::client::{BROKEN_OFF, NO_ANSWER, monotonic};
use crate::lab::{Lab, Node};
use crate::manifests::PodStatus;
use crate::network::LONG_QUEUES;
use crate::pod::Pod;
use crate::traffic::{Requests, Traffic};
use crate::wait::wait_for;

const DEATHS: usize = 10;
const RATE: f64 = 200.0;
/// Enough that connects that wait for an answer keep nobody from making the next ones.
const WORKERS: usize = 128;
/// Longer than the kernel tries with one retransmission: 1 s, then 2 s.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest wait for an ejection.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long traffic goes on before a death, and after the ejection.
const STRETCH: Duration = Duration::from_millis(300);
/// How long after it has accepted a connection a slow backend answers.
const LATE: Duration = Duration::from_millis(300);
/// How long traffic goes on with a slow backend: a hundred connects to it.
const WATCH: Duration = Duration::from_secs(5);

/// How a backend dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Closed,
    Unreachable,
    Hole,
    Stopped,
}

impl Way {
    const ALL: [Self; 4] = [Self::Closed, Self::Unreachable, Self::Hole, Self::Stopped];

    fn name(self) -> &'static str {
        match self {
            Self::Closed => "its port resets",
            Self::Unreachable => "its host is unreachable (ICMP)",
            Self::Hole => "its packets vanish",
            Self::Stopped => "it accepts no more, its queue full",
        }
    }

    /// From a backend on this machine ICMP comes while `connect` still holds the socket. The kernel takes that for a hint; a
    /// client that polls takes it for its connect's failure, and that is not counted. So these connects block.
    fn requests(self, requests: Requests) -> Requests {
        if self == Self::Unreachable {
            requests.blocking()
        } else {
            requests
        }
    }

    /// Before there is traffic.
    fn prepare(self, pod: &Pod<'_>) -> Result<()> {
        if self == Self::Stopped {
            // A queue that is soon full; `listen` asks for its size.
            pod.netns().sysctl(&[("net/core/somaxconn", "4")])?;
            replace_server(pod, Duration::ZERO)?;
        }
        Ok(())
    }

    fn begin(self, pod: &Pod<'_>) -> Result<()> {
        let verdict = match self {
            Self::Closed => "reject with tcp reset",
            Self::Unreachable => "reject with icmpx type host-unreachable",
            Self::Hole => "drop",
            Self::Stopped => return pod.signal_server(Signal::SIGSTOP),
        };
        pod.netns().nft(&format!(
            "table inet gate {{ chain in {{ type filter hook input priority 0\ntcp dport {PORT} {verdict}\n}}\n}}\n"
        ))
    }

    fn end(self, pod: &Pod<'_>) -> Result<()> {
        match self {
            Self::Stopped => {
                pod.netns().sysctl(&[LONG_QUEUES])?;
                replace_server(pod, Duration::ZERO)
            }
            _ => pod.netns().nft("delete table inet gate\n"),
        }
    }
}

/// What one death cost.
struct Death {
    /// Until the kernel left it out, in milliseconds; looked at every few.
    out: f64,
    failed: u64,
}

/// What a backend that is only slow kept.
#[derive(Serialize)]
struct Slow {
    /// Of all connects, in percent.
    share: f64,
    requests: u64,
    /// Of them, to whichever backend.
    failed: u64,
    /// Of whichever backend.
    ejections: u64,
}

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let deaths = batches.unwrap_or(DEATHS).max(2);
    let lab = stage()?;
    let client = lab.pod("east/client")?;
    client
        .netns()
        .sysctl(&[("net/ipv4/tcp_syn_retries", "1")])?;
    let requests = Requests::to(&format!("{ADDRESS}={SERVICE}"))?;
    let requests = requests.workers(WORKERS).timeout(PATIENCE);
    let mut rows = Vec::new();
    let mut raw = serde_json::Map::new();
    for way in Way::ALL {
        let mut traffic = client.traffic(&way.requests(requests.clone()))?;
        let all = repeated(&lab, deaths, way.name(), |pod| {
            death(&lab, &mut traffic, pod, way)
        })?;
        traffic.stop()?;
        let out: Vec<f64> = all.iter().map(|death| death.out).collect();
        let failed: Vec<f64> = all.iter().map(|death| count(death.failed)).collect();
        raw.insert(way.name().to_owned(), json!({"out": out, "failed": failed}));
        rows.extend(rows_of_deaths(way, out, failed));
    }
    let mut traffic = client.traffic(&requests)?;
    let name = format!("it answers {} ms late", LATE.as_millis());
    let all = repeated(&lab, deaths, &name, |pod| slow(&lab, &mut traffic, pod))?;
    rows.extend(rows_of_slow(&name, &all));
    raw.insert(name, json!(all));
    traffic.stop()?;
    lab.down()?;
    Ok(Sheet {
        title: "deaths of one backend of ten: how long until the kernel leaves it out, and what that costs; a slow one, that it keeps",
        method: format!(
            "{deaths} deaths each way; one client made {RATE:.0} TCP connects a second, a tenth of them to the dying backend, and its kernel \
             retransmits a SYN once (after 1 s; it gives up after 3 s); connects that were under way when it was left out are counted, the agents live; \
             the unreachable host answers each SYN by ICMP, on this one machine while `connect` still holds the socket: a hint, of which the \
             retransmission makes an error; these connects block, since one that polls fails by the hint and is not counted; \
             {deaths} backends were slow, one at a time, for {} s each: shares are of the kernel's counts, failures those of all requests, \
             connects or answers; [95% bootstrap interval]",
            WATCH.as_secs()
        ),
        rows,
        raw: Value::Object(raw),
    })
}

/// Of as many backends, one after the other.
fn repeated<T>(
    lab: &Lab,
    times: usize,
    name: &str,
    mut once: impl FnMut(&str) -> Result<T>,
) -> Result<Vec<T>> {
    let one = |nth: usize| {
        let pod = backend(nth % BACKENDS);
        once(&pod).with_context(|| format!("{name}, {nth}: {pod}\n{}", lab.last_words()))
    };
    (0..times).map(one).collect()
}

fn rows_of_deaths(way: Way, out: Vec<f64>, failed: Vec<f64>) -> [Row; 4] {
    [
        Row::new(
            format!("{}: left out after, p50", way.name()),
            quantile_estimate(&out, 0.5),
            Unit::Milliseconds,
        ),
        Row::new(
            "the same, most",
            Estimate::exact(quantile(out, 1.0)),
            Unit::Milliseconds,
        ),
        Row::new(
            "connects that failed, p50",
            quantile_estimate(&failed, 0.5),
            Unit::Count,
        ),
        Row::new(
            "the same, most",
            Estimate::exact(quantile(failed, 1.0)),
            Unit::Count,
        ),
    ]
}

fn rows_of_slow(name: &str, all: &[Slow]) -> [Row; 4] {
    let shares: Vec<f64> = all.iter().map(|slow| slow.share).collect();
    let other = |share: f64| (100.0 - share) / count(BACKENDS as u64 - 1);
    let ratios: Vec<f64> = shares.iter().map(|share| share / other(*share)).collect();
    let sum = |of: fn(&Slow) -> u64| Estimate::exact(count(all.iter().map(of).sum()));
    [
        Row::new(
            format!("{name}: share of connects that it kept, p50"),
            quantile_estimate(&shares, 0.5),
            Unit::Percent,
        )
        .beside(
            "each of the rest",
            other(quantile(shares.clone(), 0.5)),
            quantile_estimate(&ratios, 0.5),
        ),
        Row::new(
            "the same, least",
            Estimate::exact(quantile(shares, 0.0)),
            Unit::Percent,
        ),
        Row::new(
            "requests that failed, in all",
            sum(|slow| slow.failed),
            Unit::Count,
        )
        .at_most(Target::Ours(0.0)),
        Row::new(
            "times that the kernel left a backend out",
            sum(|slow| slow.ejections),
            Unit::Count,
        )
        .at_most(Target::Ours(0.0)),
    ]
}

fn death(lab: &Lab, traffic: &mut Traffic, pod: &str, way: Way) -> Result<Death> {
    let node = lab.node("east-1")?;
    let pod = lab.pod(pod)?;
    let at = pod.addresses().first().copied();
    let at = at.context("a backend that serves nothing")?;
    way.prepare(&pod)?;
    let health = node.health_of(&node.frontend(SERVICE, 80, false)?)?;
    traffic.rate(RATE)?;
    // The length of a measurement, not a wait for anything.
    std::thread::sleep(STRETCH);
    let warm = traffic.mark()?;
    ensure!(warm.failed() == 0, "failures before the death: {warm:?}");
    let begin = Instant::now();
    way.begin(&pod)?;
    let left_out = wait_for("the backend is left out", DEADLINE, || {
        Ok(health.backend(at)?.is_out().then_some(()))
    });
    if let Err(error) = left_out {
        let (kernel, report) = (health.backend(at)?, traffic.pause()?);
        return Err(error.context(format!("{kernel:?} {report:?}")));
    }
    let out = begin.elapsed();
    std::thread::sleep(STRETCH);
    let report = traffic.pause()?;
    ensure!(report.wrong == 0, "answered by another service: {report:?}");
    way.end(&pod)?;
    declare_anew(node, &pod)?;
    Ok(Death {
        out: out.as_secs_f64() * 1e3,
        // What was established, and got no answer or broke off, is no connect that failed.
        failed: report.failed() - report.failed_by(NO_ANSWER) - report.failed_by(BROKEN_OFF),
    })
}

fn slow(lab: &Lab, traffic: &mut Traffic, pod: &str) -> Result<Slow> {
    let node = lab.node("east-1")?;
    let pod = lab.pod(pod)?;
    let at = pod.addresses().first().copied();
    let at = at.context("a backend that serves nothing")?;
    replace_server(&pod, LATE)?;
    let health = node.health_of(&node.frontend(SERVICE, 80, false)?)?;
    let (backend, service) = (health.backend(at)?, health.service()?);
    let begin = monotonic();
    traffic.rate(RATE)?;
    // The length of a measurement, not a wait for anything.
    std::thread::sleep(WATCH);
    let report = traffic.pause()?;
    ensure!(report.wrong == 0, "answered by another service: {report:?}");
    let connects = health.backend(at)?.since(&backend).connects;
    let ejections = health.service()?.ejections - service.ejections;
    let answers = report.answers.get(&format!("{SERVICE} {}", pod.name()));
    let answers = answers.with_context(|| format!("it answered nobody: {report:?}"))?;
    ensure!(
        u128::from(answers.first - begin) >= LATE.as_nanos(),
        "it was not slow: {answers:?}, asked from {begin} on"
    );
    ensure!(
        report.failed() > 0 || answers.count == connects,
        "the kernel counted {connects} connects: {report:?}"
    );
    replace_server(&pod, Duration::ZERO)?;
    declare_anew(node, &pod)?;
    Ok(Slow {
        share: count(connects) / count(report.requests) * 100.0,
        requests: report.requests,
        failed: report.failed(),
        ejections,
    })
}

/// By one that answers so late.
fn replace_server(pod: &Pod<'_>, delay: Duration) -> Result<()> {
    pod.kill_server()?;
    pod.start_slow_server(delay)
}

/// As another Pod it is another backend, against which nothing is held.
fn declare_anew(node: Node<'_>, pod: &Pod<'_>) -> Result<()> {
    pod.declare(PodStatus::NotReady)?;
    wait_for_backends(node, BACKENDS - 1)?;
    pod.declare(PodStatus::Ready)?;
    wait_for_backends(node, BACKENDS)
}
