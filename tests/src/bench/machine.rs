//! What the figures were taken on, and how quiet it was meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub kernel: String,
    pub cpu: String,
    pub cpus: usize,
    pub clock: String,
    pub mitigations: BTreeMap<String, String>,
    /// No instruction counter is used: times are of the clock.
    pub instructions_counted: bool,
    pub seconds: f64,
    /// Share of all CPUs' time that a hypervisor took.
    pub steal: f64,
    /// Share of the time in which some task waited for a CPU (PSI); ours too.
    pub waiting: f64,
    pub load_average: String,
}

impl Machine {
    /// A line for people. The file has more.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "  Linux {}, {} x {}; {:.1} s, of which tasks waited for a CPU {:.0} % and {:.2} % was stolen\n",
            self.kernel,
            self.cpus,
            self.cpu,
            self.seconds,
            self.waiting * 100.0,
            self.steal * 100.0
        )
    }
}

/// Begins at the start of a benchmark.
#[derive(Debug)]
pub struct Observation {
    start: Instant,
    steal: Ticks,
    waited: u64,
}

impl Observation {
    pub fn begin() -> Result<Self> {
        Ok(Self {
            start: Instant::now(),
            steal: Ticks::read("cpu")?,
            waited: waited(),
        })
    }

    pub fn end(self) -> Result<Machine> {
        let steal = Ticks::read("cpu")?;
        let seconds = self.start.elapsed().as_secs_f64();
        let all = (steal.all - self.steal.all).max(1);
        let cpuinfo = read("/proc/cpuinfo");
        let models: Vec<&str> = cpuinfo
            .lines()
            .filter_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, model)| model)
            .collect();
        Ok(Machine {
            kernel: read("/proc/sys/kernel/osrelease"),
            cpu: (*models.first().unwrap_or(&"unknown")).to_owned(),
            cpus: models.len(),
            clock: read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            mitigations: mitigations(),
            instructions_counted: false,
            seconds,
            steal: share(steal.stolen - self.steal.stolen, all),
            waiting: share(waited() - self.waited, 1_000_000) / seconds,
            load_average: read("/proc/loadavg"),
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of a run, far below 2^52"
)]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn mitigations() -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let said = fs::read_to_string(entry.path()).ok()?;
            Some((
                entry.file_name().into_string().ok()?,
                said.trim().to_owned(),
            ))
        })
        .collect()
}

/// Microseconds in which some task waited for a CPU; 0 without PSI.
fn waited() -> u64 {
    let text = read("/proc/pressure/cpu");
    let total = text.lines().find(|line| line.starts_with("some"));
    total
        .and_then(|line| line.split("total=").nth(1)?.trim().parse().ok())
        .unwrap_or(0)
}

/// A line of `/proc/stat`, in clock ticks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticks {
    all: u64,
    pub stolen: u64,
}

impl Ticks {
    /// `cpu` for all, `cpu1` for one.
    pub fn read(cpu: &str) -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Self::parse(&text, cpu).with_context(|| format!("/proc/stat has no line {cpu}"))
    }

    fn parse(text: &str, cpu: &str) -> Option<Self> {
        let fields = |line: &str| {
            let mut words = line.split_whitespace();
            (words.next()? == cpu)
                .then(|| words.filter_map(|w| w.parse().ok()).collect::<Vec<u64>>())
        };
        let ticks = text.lines().find_map(fields)?;
        // user nice system idle iowait irq softirq steal; guest time is in user's already.
        Some(Self {
            all: ticks.iter().take(8).sum(),
            stolen: *ticks.get(7)?,
        })
    }
}

/// Binds the calling thread to the last CPU that it may use, and names it as `/proc/stat` does.
pub fn pin() -> Result<String> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("sched_getaffinity")?;
    let last = (0..CpuSet::count())
        .rev()
        .find(|&cpu| allowed.is_set(cpu).unwrap_or(false))
        .context("this thread may use no CPU")?;
    let mut only = CpuSet::new();
    only.set(last)?;
    sched_setaffinity(this, &only).context("sched_setaffinity")?;
    Ok(format!("cpu{last}"))
}

/// Rounds of `N` variants on one CPU. Each variant comes first, last and after each other as often. As many rounds as are
/// wanted are thrown away, at most, because time was stolen in them; `discarded` counts those.
pub fn interleaved<const N: usize>(
    cpu: &str,
    rounds: usize,
    discarded: &mut usize,
    mut batch: impl FnMut(usize) -> Result<f64>,
) -> Result<Vec<Vec<f64>>> {
    let (mut table, mut spare) = (Vec::new(), rounds);
    while table.len() < rounds {
        let stolen = Ticks::read(cpu)?.stolen;
        let mut round = vec![0.0; N];
        for turn in 0..N {
            let place = (turn + table.len()) % N;
            round[place] = batch(place)?;
        }
        if spare > 0 && Ticks::read(cpu)?.stolen != stolen {
            spare -= 1;
            *discarded += 1;
            continue;
        }
        table.push(round);
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_ticks_are_the_eighth_field() {
        let text = "cpu  10 1 5 100 2 0 3 7 4 0\ncpu1 5 0 2 50 1 0 1 6 4 0\nintr 1";
        assert_eq!(
            Ticks::parse(text, "cpu1"),
            Some(Ticks { all: 65, stolen: 6 })
        );
        assert_eq!(
            Ticks::parse(text, "cpu"),
            Some(Ticks {
                all: 128,
                stolen: 7
            })
        );
        assert_eq!(Ticks::parse(text, "cpu2"), None);
    }
}
