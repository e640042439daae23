//! The demo: one service in two clusters, told as a story in which every number is measured and every claim is checked.

mod explore;
mod killed;
mod steps;
mod voice;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use isthmus_tests::client::Report;
use isthmus_tests::{
    Frontend, KernelCounts, Lab, LabName, LabSpec, Node, Programs, Requests, Traffic,
};

use crate::commands::{complain, remove_on_signal};
use voice::Voice;

const LAB: &str = "demo";
const SERVICE: &str = "production/backend";
const PORT: u16 = 8080;
const MANIFEST: &str = "service-backend.yaml";
/// The manifest as it is in the repository, so that the demo runs from any directory.
const MANIFEST_TEXT: &str = include_str!("../manifests/service-backend.yaml");
const WORLD: &str = r"
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
links: [{between: [east, west]}]
";
/// Requests a second.
const RATE: u32 = 2000;
/// How long each stretch of traffic is watched.
const STRETCH: Duration = Duration::from_secs(2);

/// The lab with its client, and what has been counted.
struct Story {
    lab: Lab,
    client: Traffic,
    frontend: Frontend,
    kernel: KernelCounts,
    /// Requests since `kernel` began to count.
    uncompared: u64,
    all: Report,
    /// Failures at the killed backends, in steps 2 and 3.
    of_killed: u64,
    voice: Voice,
}

pub(crate) fn run(programs: Programs, keep: bool, json: bool) -> Result<()> {
    let start = Instant::now();
    let mut story = Story::begin(programs, Voice::new(json))?;
    if let Err(error) = story.tell() {
        // The logs go with the lab: what they end with is told now.
        complain(&anyhow!(
            "what the lab's processes said last:\n{}",
            story.lab.last_words()
        ));
        return Err(error);
    }
    story.end(start, keep)
}

impl Story {
    fn begin(programs: Programs, mut voice: Voice) -> Result<Self> {
        let start = Instant::now();
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        voice.headline(&format!(
            "Isthmus demo: 2 clusters x 2 nodes, real kernel {}. Touches only its own namespaces, cgroups and pins.",
            kernel.trim()
        ));
        let lab = Lab::build(LAB, &LabSpec::parse(WORLD)?, programs)?;
        remove_on_signal(&LAB.parse::<LabName>()?)?;
        for cluster in lab.clusters() {
            cluster.manifests().write(MANIFEST, MANIFEST_TEXT)?;
        }
        lab.start().with_context(|| lab.last_words())?;
        for node in lab.nodes() {
            node.wait_frontend(SERVICE, PORT, "has all four backends", |f| f.serving() == 4)?;
        }
        voice.timed(
            "lab",
            "east (id 1) and west (id 2), linked over mTLS",
            start.elapsed(),
        );
        let node = lab.node("east-1")?;
        let frontend = node.frontend(SERVICE, PORT, false)?;
        let target = format!("{}={SERVICE}", frontend.target()?);
        let client = lab.pod("east/client")?.traffic(&Requests::to(&target)?)?;
        let kernel = node.count_from_here(&frontend)?;
        Ok(Self {
            client,
            frontend,
            kernel,
            lab,
            uncompared: 0,
            all: Report::default(),
            of_killed: 0,
            voice,
        })
    }

    fn tell(&mut self) -> Result<()> {
        self.one_service_in_two_clusters()?;
        let killed = self.agents_and_backends_are_killed()?;
        self.backends_return(&killed)?;
        self.local_backends_leave_and_return()?;
        self.the_wire_is_cut()?;
        self.the_wire_is_mended()
    }

    fn end(mut self, start: Instant, keep: bool) -> Result<()> {
        for node in self.lab.nodes() {
            let untranslated = node.untranslated()?;
            ensure!(
                untranslated == 0,
                "{}: {untranslated} packets to the service left untranslated",
                node.name()
            );
        }
        self.client.stop()?;
        if !keep {
            self.lab
                .down()
                .context("the demo went well, but its lab could not be removed")?;
        } else {
            self.voice
                .commands(&explore::lines(&self.lab, &self.frontend)?);
            self.lab.keep()?;
        }
        ensure!(
            self.all.failed() == self.of_killed,
            "{} requests failed, {} of them at the backends that were killed",
            self.all.failed(),
            self.of_killed
        );
        let why = ", all at the killed backends";
        self.voice.end(&self.all, why, start.elapsed(), keep)
    }

    /// The node where the client lives: its kernel translates.
    fn here(&self) -> Result<Node<'_>> {
        self.lab.node("east-1")
    }

    /// Traffic goes on from here, and what was before is forgotten.
    fn traffic(&mut self) -> Result<()> {
        self.client.rate(f64::from(RATE))?;
        let before = self.client.mark()?;
        self.tally(&before);
        Ok(())
    }

    /// A stretch of traffic, all of it over at the end.
    fn stretch(&mut self) -> Result<Report> {
        self.client.rate(f64::from(RATE))?;
        // The length of a measurement, not a wait for anything.
        std::thread::sleep(STRETCH);
        self.rest()
    }

    /// Ends the traffic for now, nothing is left under way.
    fn rest(&mut self) -> Result<Report> {
        let report = self.client.pause()?;
        self.tally(&report);
        Ok(report)
    }

    fn tally(&mut self, report: &Report) {
        self.uncompared += report.requests;
        self.all = std::mem::take(&mut self.all).and(report);
    }

    /// Waits until traffic shows something, and gives all that happened meanwhile.
    fn until(&mut self, what: &str, shown: impl FnMut(&Report) -> bool) -> Result<Report> {
        self.until_within(Duration::from_secs(10), what, shown)
    }

    fn until_within(
        &mut self,
        limit: Duration,
        what: &str,
        mut shown: impl FnMut(&Report) -> bool,
    ) -> Result<Report> {
        let start = Instant::now();
        let mut sum = Report::default();
        loop {
            let report = self.client.mark()?;
            self.tally(&report);
            let done = shown(&report);
            sum = sum.and(&report);
            if done {
                return Ok(sum);
            }
            ensure!(
                start.elapsed() < limit,
                "waited {limit:?} in vain: {what}; {sum:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The client's count and the kernel's must be one. Traffic must rest.
    fn compare_with_kernel(&mut self) -> Result<u64> {
        let counted = self.here()?.counted(&self.kernel, &self.frontend)?;
        self.expect_counted(counted)?;
        self.kernel = self.here()?.count_from_here(&self.frontend)?;
        Ok(counted)
    }

    fn expect_counted(&mut self, counted: u64) -> Result<()> {
        let sent = std::mem::take(&mut self.uncompared);
        ensure!(
            counted == sent,
            "the client made {sent} requests, the kernel sent {counted} to backends"
        );
        Ok(())
    }
}

/// All requests were answered, by the service that was asked for.
fn expect_no_failure(report: &Report) -> Result<()> {
    ensure!(
        report.failed() == 0,
        "{} requests failed: {:?} {:?}",
        report.failed(),
        report.failures,
        report.told
    );
    ensure!(
        report.wrong == 0,
        "{} requests were answered by another service",
        report.wrong
    );
    Ok(())
}
