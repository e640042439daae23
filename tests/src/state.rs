//! The register of labs: one directory each below [`STATE_ROOT`], made before anything else of the lab and removed after
//! everything else. So whatever a killed run left can be found and removed by its name alone.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::host::{Host, drop_empty_pin_root};
use crate::layout::{ClusterPlan, PIN_ROOT, STATE_ROOT, cgroup, state_dir};
use crate::netns;
use crate::pod::PodState;
use crate::spec::LabName;
use crate::wait::wait_until;

/// What is written of a lab once it is up, to reach it from another process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// It stays when its maker ends.
    pub(crate) kept: bool,
    pub(crate) clusters: Vec<ClusterPlan>,
    pub(crate) pods: Vec<PodState>,
    pub(crate) links: Vec<(String, String)>,
    pub(crate) programs: std::path::PathBuf,
}

impl Record {
    pub(crate) fn read(lab: &LabName) -> Result<Self> {
        let path = state_dir(lab).join("lab.json");
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(absent(lab, &labs()?)),
            text => text.with_context(|| path.display().to_string())?,
        };
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }
    pub(crate) fn write(&self, lab: &LabName) -> Result<()> {
        let dir = state_dir(lab);
        let half = dir.join(".lab.json");
        fs::write(&half, serde_json::to_string_pretty(self)?)?;
        fs::rename(half, dir.join("lab.json")).context("cannot write lab.json")
    }
}

/// The right to build labs: one run at a time on a machine. Given back when dropped, or when its holder dies.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl Turn {
    /// Waits for it; says on standard error whom it waits for.
    pub fn take(deadline: Duration) -> Result<Self> {
        let mut file = open_turn()?;
        if file.try_lock().is_err() {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            let _ = writeln!(
                std::io::stderr(),
                "another lab run ({}) has its turn; waiting",
                holder.trim()
            );
            wait_until("the other lab run ends", deadline, || {
                file.try_lock().is_ok()
            })
            .with_context(|| format!("{STATE_ROOT}/.turn is held by {}", holder.trim()))?;
        }
        file.set_len(0)?;
        file.rewind()?;
        write!(file, "pid {}", std::process::id())?;
        Ok(Self { _file: file })
    }
    /// Takes it only if nobody has it.
    pub(crate) fn try_take() -> Result<Option<Self>> {
        let file = open_turn()?;
        Ok(file.try_lock().is_ok().then_some(Self { _file: file }))
    }
}

fn open_turn() -> Result<File> {
    fs::create_dir_all(STATE_ROOT)?;
    let path = Path::new(STATE_ROOT).join(".turn");
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    options
        .open(&path)
        .with_context(|| path.display().to_string())
}

/// All labs that are registered, in whatever state.
pub fn labs() -> Result<Vec<LabName>> {
    let entries = match fs::read_dir(STATE_ROOT) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(STATE_ROOT)?,
    };
    let mut names: Vec<LabName> = entries
        .filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// Why a lab that was asked for by its name cannot be reached, with those that can.
fn absent(lab: &LabName, there: &[LabName]) -> Error {
    let names: Vec<&str> = there
        .iter()
        .map(LabName::as_str)
        .filter(|name| *name != lab.as_str())
        .collect();
    match (there.contains(lab), &names[..]) {
        (true, _) => anyhow!(
            "lab {lab} is not whole, being built or removed: `cargo xtask lab down {lab}` removes what is there"
        ),
        (_, []) => {
            anyhow!("there is no lab {lab}, nor any other: `cargo xtask lab up FILE` builds one")
        }
        (_, [other]) => anyhow!("there is no lab {lab}: {other} is there"),
        (_, [others @ .., last]) => {
            anyhow!(
                "there is no lab {lab}: {} and {last} are there",
                others.join(", ")
            )
        }
    }
}

/// # Errors
/// No lab of that name is registered, in whatever state.
pub fn must_be_there(lab: &LabName) -> Result<()> {
    let there = labs()?;
    if there.contains(lab) {
        return Ok(());
    }
    Err(absent(lab, &there))
}

/// Removes all labs that nobody keeps and says which. With a turn in hand nobody else can be building one.
pub fn sweep(host: &Host, _turn: &Turn) -> Result<Vec<LabName>> {
    let mut swept = Vec::new();
    for lab in labs()? {
        if Record::read(&lab).is_ok_and(|r| r.kept) {
            continue;
        }
        demolish(host, &lab)?;
        swept.push(lab);
    }
    Ok(swept)
}

/// Ends every process of a lab and removes all that carries its name. Works on half a lab, and on none.
pub fn demolish(host: &Host, lab: &LabName) -> Result<()> {
    let cgroup = Cgroup::new(host.cgroup2.join(cgroup(lab)));
    cgroup.kill()?;
    remove_pins(lab)?;
    let mut lines = String::new();
    for namespace in netns::list(&format!("isthmus-{lab}-"))? {
        lines.push_str(&format!("netns del {}\n", namespace.name()));
    }
    if !lines.is_empty() {
        netns::ip_batch(&lines)?;
    }
    cgroup.remove()?;
    match fs::remove_dir_all(state_dir(lab)) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).context("cannot remove the lab's files")
        }
        _ => Ok(()),
    }
}

/// With the last pin of a program, map or link the kernel lets it go.
fn remove_pins(lab: &LabName) -> Result<()> {
    let prefix = format!("{lab}-");
    let entries = match fs::read_dir(PIN_ROOT) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.context(PIN_ROOT)?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    drop_empty_pin_root();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    #[test]
    fn who_asks_for_a_lab_that_is_not_there_hears_which_are() {
        let lab = |name: &str| name.parse::<LabName>().unwrap();
        for (there, wanted) in [
            (&[][..], "nor any other: `cargo xtask lab up FILE`"),
            (&["demo"], "there is no lab typo: demo is there"),
            (
                &["a", "b", "c"],
                "there is no lab typo: a, b and c are there",
            ),
            (&["demo", "typo"], "`cargo xtask lab down typo` removes"),
        ] {
            let there: Vec<LabName> = there.iter().map(|name| lab(name)).collect();
            let said = absent(&lab("typo"), &there).to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }
}
