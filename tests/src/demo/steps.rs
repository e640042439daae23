//! The story's steps but for what is killed. Each checks what it says.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use isthmus_tests::client::monotonic;
use isthmus_tests::{PodStatus, wait_for};

use super::voice::thousands;
use super::{MANIFEST, RATE, SERVICE, STRETCH, Story, expect_no_failure};

const AFFINITY: &str = "service.cilium.io/affinity";

impl Story {
    pub(super) fn one_service_in_two_clusters(&mut self) -> Result<()> {
        self.voice.step(
            1,
            "One service in two clusters: tests/manifests/service-backend.yaml, unchanged",
        );
        let target = self.frontend.target()?;
        self.voice.note(&format!(
            "client in east -> {SERVICE} {target}, one connection per request, {}/s",
            thousands(RATE.into())
        ));
        let report = self.stretch()?;
        expect_no_failure(&report)?;
        let (east, west) = (report.from_cluster("east"), report.from_cluster("west"));
        ensure!(
            east.abs_diff(west) < report.requests / 5,
            "not shared evenly: east {east}, west {west}"
        );
        self.voice.traffic(
            STRETCH.as_secs_f64(),
            &report,
            "affinity none, as in Cilium",
        );

        self.traffic()?;
        self.until("traffic", |r| r.requests > 0)?;
        let written = monotonic();
        self.lab
            .cluster("east")?
            .manifests()
            .annotate(MANIFEST, AFFINITY, Some("local"))?;
        let turning = self.until("no answer from west", |r| {
            r.requests > 20 && r.from_cluster("west") == 0
        })?;
        expect_no_failure(&turning)?;
        let last = turning
            .last_of("west")
            .and_then(|last| last.checked_sub(written));
        self.voice.effect(
            "service.cilium.io/affinity: local",
            "last answer from west",
            last,
        );
        let turned = self.rest()?;
        expect_no_failure(&turned)?;
        self.stretch_at_home()
    }

    /// A stretch that local backends answer alone, without a failure; the kernel counted the same.
    pub(super) fn stretch_at_home(&mut self) -> Result<()> {
        let report = self.stretch()?;
        expect_no_failure(&report)?;
        ensure!(
            report.from_cluster("west") == 0,
            "west still answers: {report:?}"
        );
        let counted = self.compare_with_kernel()?;
        self.voice.traffic(
            STRETCH.as_secs_f64(),
            &report,
            &format!("kernel counted the same {} in all", thousands(counted)),
        );
        Ok(())
    }

    pub(super) fn local_backends_leave_and_return(&mut self) -> Result<()> {
        self.voice.step(
            4,
            "They leave again, as declared: one by its readiness, one with its pod, and return",
        );
        let gone = "production/backend east/backend-1";
        self.traffic()?;
        let written = monotonic();
        self.lab
            .pod("east/backend-1")?
            .declare(PodStatus::NotReady)?;
        let leaving = self.until("backend-1 is let alone", |r| {
            r.requests > 20 && !r.answers.contains_key(gone)
        })?;
        expect_no_failure(&leaving)?;
        let last = leaving
            .answers
            .get(gone)
            .and_then(|a| a.last.checked_sub(written));
        self.voice.effect(
            "east/backend-1 is not ready any more",
            "its last answer",
            last,
        );

        let written = monotonic();
        self.lab.pod("east/backend-2")?.withdraw()?;
        let leaving = self.until("answers from west", |r| {
            r.requests > 20 && r.from_cluster("east") == 0
        })?;
        expect_no_failure(&leaving)?;
        let first = leaving
            .first_of("west")
            .and_then(|first| first.checked_sub(written));
        self.voice.effect(
            "the pod of east/backend-2 is removed",
            "first answer from west",
            first,
        );
        self.lab.pod("east/backend-2")?.kill_server()?;
        let report = self.rest()?;
        expect_no_failure(&report)?;
        let report = self.stretch()?;
        expect_no_failure(&report)?;
        ensure!(
            report.from_cluster("east") == 0,
            "east still answers: {report:?}"
        );
        let counted = self.compare_with_kernel()?;
        self.voice.traffic(
            STRETCH.as_secs_f64(),
            &report,
            &format!("kernel counted the same {} in all", thousands(counted)),
        );

        self.lab.pod("east/backend-2")?.start_server()?;
        self.traffic()?;
        let written = monotonic();
        self.lab.pod("east/backend-1")?.declare(PodStatus::Ready)?;
        self.lab.pod("east/backend-2")?.declare(PodStatus::Ready)?;
        let returning = self.until("answers from east", |r| {
            r.requests > 20 && r.from_cluster("west") == 0
        })?;
        expect_no_failure(&returning)?;
        let first = returning
            .first_of("east")
            .and_then(|first| first.checked_sub(written));
        self.voice
            .effect("both are ready again", "first answer from east", first);
        expect_no_failure(&self.rest()?)?;
        self.compare_with_kernel()?;
        Ok(())
    }

    pub(super) fn the_wire_is_cut(&mut self) -> Result<()> {
        self.voice.step(
            5,
            "The wire between the clusters is cut (packets vanish silently)",
        );
        self.traffic()?;
        let start = Instant::now();
        self.lab.wire("east", "west")?.cut()?;
        let (_, peer) = self.here()?.wait_peer("west", "stale")?;
        let took = u64::try_from(start.elapsed().as_nanos()).ok();
        let ttl = peer
            .dropped_in_seconds
            .context("a stale peer without the time when it is dropped")?;
        self.voice.effect(
            "the wire is cut",
            &format!("west is stale (last resort now, dropped in {ttl:.0} s)"),
            took,
        );
        let report = self.rest()?;
        expect_no_failure(&report)?;
        let report = self.stretch()?;
        expect_no_failure(&report)?;
        let counted = self.compare_with_kernel()?;
        self.voice.traffic(
            STRETCH.as_secs_f64(),
            &report,
            &format!("kernel counted the same {} in all", thousands(counted)),
        );
        self.show(&["clustermesh", "status"], 1)?;
        self.show(&["service", "list"], 0)
    }

    pub(super) fn the_wire_is_mended(&mut self) -> Result<()> {
        self.voice.step(6, "The wire is mended");
        let before = self.here()?.peer("west")?;
        let start = Instant::now();
        self.lab.wire("east", "west")?.mend()?;
        let (_, peer) = self.here()?.wait_peer("west", "connected")?;
        let took = u64::try_from(start.elapsed().as_nanos()).ok();
        ensure!(
            peer.epoch == before.epoch,
            "west came back with another epoch: {before:?} {peer:?}"
        );
        let at = format!(
            "{}/{}",
            peer.epoch.as_deref().unwrap_or("-"),
            peer.revision.unwrap_or_default()
        );
        self.voice
            .effect("the wire is mended", &format!("west resumed at {at}"), took);
        wait_for(
            "`clustermesh status` exits 0",
            std::time::Duration::from_secs(10),
            || {
                Ok(self
                    .here()?
                    .agentctl(&["clustermesh", "status"])?
                    .status
                    .success()
                    .then_some(()))
            },
        )?;
        let total = u64::try_from(start.elapsed().as_nanos()).ok();
        self.voice
            .effect("", "agentctl clustermesh status exits 0", total);
        let report = self.stretch()?;
        expect_no_failure(&report)?;
        let counted = self.compare_with_kernel()?;
        self.voice.traffic(
            STRETCH.as_secs_f64(),
            &report,
            &format!("kernel counted the same {}", thousands(counted)),
        );
        Ok(())
    }

    /// Shows a command's real output, and checks its exit code.
    pub(super) fn show(&mut self, arguments: &[&str], exit: i32) -> Result<()> {
        let output = self.here()?.agentctl(arguments)?;
        let code = output.status.code().unwrap_or(-1);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let command = format!("agentctl {}", arguments.join(" "));
        self.voice.output(&command, code, &(text + &said));
        ensure!(code == exit, "{command} exits {code}, not {exit}");
        Ok(())
    }
}
