//! Steps 2 and 3: agents and backends are killed, and come back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use isthmus_tests::client::{REFUSED, Report, monotonic};
use isthmus_tests::{KernelHealth, Pod};
use serde_json::json;

use super::voice::{kinds, thousands};
use super::{Story, expect_no_failure};

const BACKENDS: [&str; 2] = ["east/backend-1", "east/backend-2"];
/// Between the blows.
const BREATH: Duration = Duration::from_millis(500);
/// Refusals that eject a backend.
const REFUSALS: usize = 3;
/// More than the longest first ejection, and the one after a trial that came too early.
const RETURN: Duration = Duration::from_secs(20);

/// What was killed, and what the kernel held of it before.
pub(super) struct Killed {
    health: KernelHealth,
    /// Refusals there before anything was killed.
    refused: BTreeMap<SocketAddr, u64>,
    /// Refusals that the client counted since.
    told: u64,
}

impl Story {
    pub(super) fn agents_and_backends_are_killed(&mut self) -> Result<Killed> {
        self.voice.step(
            2,
            "Both agents in east are killed, then both local backends (kill -9, no manifest changes)",
        );
        let links = self.here()?.kernel_links()?;
        let programs: usize = links.values().map(Vec::len).sum();
        ensure!(
            programs > 0,
            "the kernel shows no program of ours on east-1's cgroup"
        );
        let health = self.here()?.health_of(&self.frontend)?;
        let before = health.backends()?;
        let mut killed = Killed {
            refused: before.iter().map(|(at, row)| (*at, row.refused)).collect(),
            health,
            told: 0,
        };
        self.traffic()?;
        let begin = Instant::now();
        for node in self.lab.cluster("east")?.nodes() {
            node.kill_agent()?;
        }
        // The length of a measurement, not a wait for anything.
        std::thread::sleep(2 * BREATH);
        let mut whole = self.marked()?;
        expect_no_failure(&whole)?;
        let what = "agents east-1 and east-2 are killed";
        self.voice
            .moment(Duration::ZERO, what, "traffic: no failure");
        for backend in BACKENDS {
            whole = whole.and(&self.backend_is_killed(backend, &mut killed, begin)?);
        }
        let rest = self.rest()?;
        expect_no_failure(&rest)?;
        whole = whole.and(&rest);
        let counted = self.kernel.take()?;
        self.expect_counted(counted)?;
        self.voice.traffic(
            begin.elapsed().as_secs_f64(),
            &whole,
            &format!("kernel counted the same {} in all", thousands(counted)),
        );
        self.agents_are_started(begin, &links)?;
        for backend in BACKENDS {
            let row = killed.health.backend(address(&self.lab.pod(backend)?)?)?;
            ensure!(row.is_out(), "{backend} came back with the agents: {row:?}");
        }
        self.show(&["service", "list"], 0)?;
        Ok(killed)
    }

    /// One backend's end, and what the client and the kernel say of it.
    fn backend_is_killed(
        &mut self,
        backend: &str,
        killed: &mut Killed,
        begin: Instant,
    ) -> Result<Report> {
        let at = address(&self.lab.pod(backend)?)?;
        let (moment, clock) = (begin.elapsed(), monotonic());
        self.lab.pod(backend)?.kill_server()?;
        let is_out = |_: &Report| killed.health.backend(at).is_ok_and(|row| row.is_out());
        let mut report = self.until(&format!("{backend} is ejected"), is_out)?;
        std::thread::sleep(BREATH);
        report = report.and(&self.marked()?);
        ensure!(report.wrong == 0, "answered by another service: {report:?}");

        let refused = report.failed_by(REFUSED);
        let counted = killed.health.backend(at)?.refused - killed.refused[&at];
        ensure!(
            counted == refused,
            "the client was refused {refused} times, the kernel counted {counted}: {report:?}"
        );
        let refusals = report.told.iter().filter(|f| f.error == REFUSED);
        let ejection = refusals.map(|f| f.at).nth(REFUSALS - 1);
        let ejection =
            ejection.with_context(|| format!("ejected after {refused} refusals: {report:?}"))?;
        // Connections that the backend had accepted died with it: no connect, and no failure of one.
        let broken = match report.failed() - refused {
            0 => String::new(),
            n => format!(", {n} broken off"),
        };
        let took = milliseconds(clock, ejection);
        self.voice.moment_with(
            moment,
            &format!("backend {backend} is killed"),
            &format!("{refused} refused{broken}, ejected by the kernel after {took:.1} ms"),
            json!({
                "backend": backend, "failures": kinds(&report), "ejectedMilliseconds": took,
                "kernel": {"refused": counted},
            }),
        );
        killed.told += refused;
        self.of_killed += report.failed();
        if let Some(first) = report.first_of("west") {
            let text = format!(
                "first answer from west, {:.1} ms after the last local backend died",
                milliseconds(clock, first)
            );
            let after = Duration::from_nanos(first.saturating_sub(clock));
            self.voice.moment(moment + after, &text, "");
        }
        Ok(report)
    }

    fn agents_are_started(
        &mut self,
        begin: Instant,
        links: &BTreeMap<String, Vec<u32>>,
    ) -> Result<()> {
        self.traffic()?;
        let moment = begin.elapsed();
        for node in self.lab.cluster("east")?.nodes() {
            node.spawn_agent(&[])?;
        }
        for node in self.lab.cluster("east")?.nodes() {
            node.wait_agent_ready()?;
        }
        let writes = self.here()?.writes()?;
        let report = self.rest()?;
        expect_no_failure(&report)?;
        ensure!(
            self.here()?.kernel_links()? == *links,
            "the links of east-1 are not those from before the kill"
        );
        let programs: usize = links.values().map(Vec::len).sum();
        let rows = if writes == 1 { "row" } else { "rows" };
        let effect = format!(
            "adopted {programs} links on the cgroup, wrote {writes} {rows}, {} failed",
            report.failed()
        );
        self.voice
            .moment(moment, "both agents are started", &effect);
        Ok(())
    }

    pub(super) fn backends_return(&mut self, killed: &Killed) -> Result<()> {
        self.voice.step(3, "The local backends return");
        self.traffic()?;
        let (begin, clock) = (Instant::now(), monotonic());
        for backend in BACKENDS {
            self.lab.pod(backend)?.start_server()?;
        }
        self.voice
            .moment(Duration::ZERO, "both are listening again", "");
        let mut answered = BTreeMap::new();
        let at = |backend: &str| address(&self.lab.pod(backend)?);
        let at = BACKENDS.map(at).into_iter().collect::<Result<Vec<_>>>()?;
        // A trial's success is known by the connects that follow it.
        let is_in = |at: &SocketAddr| killed.health.backend(*at).is_ok_and(|row| !row.is_out());
        let mut seen = |report: &Report| {
            for backend in BACKENDS {
                let name = format!("{} {backend}", super::SERVICE);
                if let Some(answers) = report.answers.get(&name) {
                    answered.entry(backend).or_insert(answers.first);
                }
            }
            answered.len() == BACKENDS.len() && at.iter().all(is_in)
        };
        let back = self.until_within(RETURN, "both local backends answer", &mut seen)?;
        let mut answered: Vec<_> = answered.into_iter().collect();
        answered.sort_by_key(|(_, first)| *first);
        for (backend, first) in &answered {
            let after = Duration::from_nanos(first.saturating_sub(clock));
            let what = format!("trial of {backend} succeeds");
            self.voice.moment(after, &what, "readmitted by the kernel");
        }
        let rest = self.rest()?;
        let back = back.and(&rest);
        // A trial that came before the listener is refused too, and counted.
        let refused = back.failed_by(REFUSED);
        self.of_killed += refused;
        let mut counted = 0;
        for backend in BACKENDS {
            let at = address(&self.lab.pod(backend)?)?;
            let row = killed.health.backend(at)?;
            ensure!(!row.is_out(), "{backend} answers, and is ejected: {row:?}");
            counted += row.refused - killed.refused[&at];
        }
        ensure!(
            killed.told + refused == counted && back.failed() == refused,
            "the client was refused {} times, the kernel counted {counted}: {back:?}",
            killed.told + refused
        );
        self.voice.traffic(
            begin.elapsed().as_secs_f64(),
            &back,
            &format!("refused in both steps: {counted}, by the client and the kernel"),
        );
        self.stretch_at_home()
    }

    /// What happened since the last report, while traffic goes on.
    fn marked(&mut self) -> Result<Report> {
        let report = self.client.mark()?;
        self.tally(&report);
        Ok(report)
    }
}

/// Where a pod's one server listens.
fn address(pod: &Pod<'_>) -> Result<SocketAddr> {
    let all = pod.addresses();
    all.first()
        .copied()
        .with_context(|| format!("{} serves nothing", pod.name()))
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
fn milliseconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e6
}
