//! Other deaths of a backend than a kill: how long until the kernel leaves it out, and what connects it costs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::death::{ADDRESS, BACKENDS, PORT, SERVICE, backend, stage, wait_for_backends};
use super::sheet::{Row, Sheet, Unit};
use super::stats::{Estimate, quantile, quantile_estimate};
use crate::client::{BROKEN_OFF, NO_ANSWER};
use crate::lab::Lab;
use crate::manifests::PodStatus;
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

/// How a backend dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Closed,
    Hole,
    Stopped,
}

impl Way {
    const ALL: [Self; 3] = [Self::Closed, Self::Hole, Self::Stopped];

    fn name(self) -> &'static str {
        match self {
            Self::Closed => "its port resets",
            Self::Hole => "its packets vanish",
            Self::Stopped => "it accepts no more, its queue full",
        }
    }

    /// Before there is traffic.
    fn prepare(self, pod: &Pod<'_>) -> Result<()> {
        if self == Self::Stopped {
            // A queue that is soon full; `listen` asks for its size.
            pod.netns().sysctl(&[("net/core/somaxconn", "4")])?;
            pod.kill_server()?;
            pod.start_server()?;
        }
        Ok(())
    }

    fn begin(self, pod: &Pod<'_>) -> Result<()> {
        let verdict = match self {
            Self::Closed => "reject with tcp reset",
            Self::Hole => "drop",
            Self::Stopped => return pod.signal_server(Signal::SIGSTOP),
        };
        pod.netns().nft(&format!(
            "table inet gate {{ chain in {{ type filter hook input priority 0\ntcp dport {PORT} {verdict}\n}}\n}}\n"
        ))
    }

    fn end(self, pod: &Pod<'_>) -> Result<()> {
        match self {
            Self::Stopped => pod.signal_server(Signal::SIGCONT),
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

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let deaths = batches.unwrap_or(DEATHS).max(2);
    let lab = stage()?;
    let client = lab.pod("east/client")?;
    client
        .netns()
        .sysctl(&[("net/ipv4/tcp_syn_retries", "1")])?;
    let requests = Requests::to(&format!("{ADDRESS}={SERVICE}"))?;
    let mut traffic = client.traffic(&requests.workers(WORKERS).timeout(PATIENCE))?;
    let mut rows = Vec::new();
    let mut raw = serde_json::Map::new();
    for way in Way::ALL {
        let mut all = Vec::new();
        for nth in 0..deaths {
            let pod = backend(nth % BACKENDS);
            let death = death(&lab, &mut traffic, &pod, way);
            all.push(
                death.with_context(|| {
                    format!("{}, {nth}: {pod}\n{}", way.name(), lab.last_words())
                })?,
            );
        }
        let out: Vec<f64> = all.iter().map(|death| death.out).collect();
        let failed: Vec<f64> = all
            .iter()
            .map(|death| super::death::count(death.failed))
            .collect();
        raw.insert(way.name().to_owned(), json!({"out": out, "failed": failed}));
        rows.extend([
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
        ]);
    }
    traffic.stop()?;
    lab.down()?;
    Ok(Sheet {
        title: "deaths of one backend of ten: how long until the kernel leaves it out, and what that costs",
        method: format!(
            "{deaths} deaths each way; one client made {RATE:.0} TCP connects a second, a tenth of them to the dying backend, and its kernel \
             retransmits a SYN once (after 1 s; it gives up after 3 s); connects that were under way when it was left out are counted, the agents live; \
             [95% bootstrap interval]"
        ),
        rows,
        raw: Value::Object(raw),
    })
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
    // As another Pod it is another backend, against which nothing is held.
    pod.declare(PodStatus::NotReady)?;
    wait_for_backends(node, BACKENDS - 1)?;
    pod.declare(PodStatus::Ready)?;
    wait_for_backends(node, BACKENDS)?;
    Ok(Death {
        out: out.as_secs_f64() * 1e3,
        // What was established, and got no answer or broke off, is no connect that failed.
        failed: report.failed() - report.failed_by(NO_ANSWER) - report.failed_by(BROKEN_OFF),
    })
}
