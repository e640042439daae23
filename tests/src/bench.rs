//! The budgets that this version can be held against, measured on the machine at hand.
//!
//! Each is a ratio, or a time beside a limit, of one run. A benchmark prints its rows and says `pass`, `short`, or `undecided`
//! where the interval spans the target; it is no test, and a figure that falls short is no failure. All batches and the
//! machine go to a file.

pub mod arena;
mod change;
mod death;
mod deaths;
mod failover;
mod flat;
mod footprint;
pub mod machine;
mod node;
mod peer;
mod scale;
pub mod sheet;
pub mod stats;
mod tax;
mod way;

use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde_json::json;

use machine::{Machine, Observation};
use sheet::Sheet;

/// Measures budgets on this machine. Needs root, cgroup2 and BPF; the agent and the lab's programs beside this one.
#[derive(Clone, Debug, Parser)]
#[command(name = "isthmus-bench", version)]
pub struct Options {
    /// Which; all unless named
    #[arg(value_enum, ignore_case = true)]
    pub budgets: Vec<Budget>,
    /// Print JSON, without the raw batches
    #[arg(long)]
    pub json: bool,
    /// Rounds of each row (G1, G2, G3, G9), repetitions (G8, G18), changes (G12, G16, scale), deaths (G13a, deaths), switches (G17)
    #[arg(long, value_name = "N")]
    pub batches: Option<usize>,
    /// Where rows, raw batches and the machine are written, a file for each budget
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Budget {
    /// Connect tax: what our programs add to connect(), and each part of it; where it fails too
    #[value(name = "G1")]
    G1,
    /// New connections, beside nftables in kube-proxy's shape
    #[value(name = "G2")]
    G2,
    /// Flat in scale: 100,000 services and 1,000,000 backends beside 10 services
    #[value(name = "G3")]
    G3,
    /// A service from decoded rows to the kernel
    #[value(name = "G8")]
    G8,
    /// One backend's change, in a large service and in a small one
    #[value(name = "G9")]
    G9,
    /// Memory and times with 100,000 endpoints of another cluster
    #[value(name = "G12")]
    G12,
    /// A backend is killed with no agent alive: connects that fail
    #[value(name = "G13a")]
    G13a,
    /// Other deaths than a kill, as distributions; a slow backend
    #[value(name = "deaths")]
    Deaths,
    /// From a manifest's change until connects see it
    #[value(name = "G16")]
    G16,
    /// Failover by declaration, to another cluster
    #[value(name = "G17")]
    G17,
    /// The agent's memory, and a backlog of services
    #[value(name = "G18")]
    G18,
    /// Memory and times with 10,000 services and 100,000 endpoints in files
    #[value(name = "scale")]
    Scale,
}

impl Budget {
    fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn measure(self, batches: Option<usize>) -> Result<Sheet> {
        match self {
            Self::G1 => tax::run(batches),
            Self::G2 => peer::run(batches),
            Self::G3 => flat::run(batches),
            Self::G8 => way::services(batches),
            Self::G9 => way::churn(batches),
            Self::G12 => scale::mesh(batches),
            Self::G13a => death::run(batches),
            Self::Deaths => deaths::run(batches),
            Self::G16 => change::run(batches),
            Self::G17 => failover::run(batches),
            Self::G18 => footprint::run(batches),
            Self::Scale => scale::files(batches),
        }
    }
}

/// Measures what was asked for, prints it, and writes it down.
///
/// # Errors
/// If something could not be measured; figures that fall short are none.
pub fn run(options: &Options) -> Result<()> {
    let all = Budget::value_variants();
    let budgets = if options.budgets.is_empty() {
        all
    } else {
        &options.budgets
    };
    let mut summaries = Vec::new();
    for budget in budgets {
        let name = budget.name();
        let (sheet, machine) = measured(*budget, options.batches).with_context(|| name.clone())?;
        let summary = sheet.summary(&name, &machine);
        let mut whole = summary.clone();
        whole["raw"] = sheet.raw.clone();
        write(&options.out, &name, &serde_json::to_string(&whole)?)?;
        if options.json {
            summaries.push(summary);
        } else {
            say(&format!("{}{}\n", sheet.text(&name), machine.text()))?;
        }
    }
    if options.json {
        say(&serde_json::to_string_pretty(&json!(summaries))?)?;
    }
    Ok(())
}

/// Each budget has a thread of its own: namespaces and CPUs that it chose end with it.
fn measured(budget: Budget, batches: Option<usize>) -> Result<(Sheet, Machine)> {
    let measure = move || {
        let observation = Observation::begin()?;
        let sheet = budget.measure(batches)?;
        Ok((sheet, observation.end()?))
    };
    std::thread::spawn(measure)
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// What is written belongs to whoever owns the directory above, though root writes it.
fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let missing: Vec<&Path> = dir
        .ancestors()
        .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
        .collect();
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let file = dir.join(format!("{name}.json"));
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    let first = missing.last().copied().unwrap_or(&file);
    let above = match first.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let owner = std::fs::metadata(above)?;
    for path in missing.into_iter().chain([file.as_path()]) {
        chown(path, Some(owner.uid()), Some(owner.gid()))?;
    }
    Ok(())
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}
