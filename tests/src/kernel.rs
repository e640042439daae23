//! What the whole machine holds: to prove that a lab leaves nothing, and that programs stay where they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::host::run;
use crate::layout::{PIN_ROOT, STATE_ROOT};
use crate::netns;

/// Names or ids of everything that a lab makes, by kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holdings {
    pub kinds: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Holdings {
    /// Looks at the machine. `cgroup2` is its mount.
    pub fn now(cgroup2: &Path) -> Result<Self> {
        let kinds = BTreeMap::from([
            ("BPF program", bpf_ids("prog")?),
            ("BPF map", bpf_ids("map")?),
            ("BPF link", bpf_ids("link")?),
            ("pin", names_in(Path::new(PIN_ROOT), "")?),
            ("cgroup", names_in(cgroup2, "isthmus-")?),
            (
                "network namespace",
                netns::list("isthmus-")?
                    .iter()
                    .map(|n| n.name().to_owned())
                    .collect(),
            ),
            ("lab", names_in(Path::new(STATE_ROOT), "")?),
        ]);
        Ok(Self { kinds })
    }
    /// What is here and was not in `before`.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> Vec<String> {
        let more = self.kinds.iter().flat_map(|(kind, all)| {
            all.difference(&before.kinds[kind])
                .map(move |name| format!("{kind} {name}"))
        });
        more.collect()
    }
}

fn bpf_ids(kind: &str) -> Result<BTreeSet<String>> {
    let objects = bpftool(&[kind, "show"])?;
    let ids = objects
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|o| o["id"].as_u64());
    Ok(ids.map(|id| id.to_string()).collect())
}

/// `bpftool -j …`, as JSON.
pub fn bpftool(arguments: &[&str]) -> Result<Value> {
    // A link that somebody is making just now has an id and cannot be had yet: then the whole list fails with EAGAIN.
    let mut tries = 20;
    let text = loop {
        match run(Command::new("bpftool").arg("-j").args(arguments)) {
            Err(error) if tries > 0 && format!("{error:#}").contains("temporarily unavailable") => {
                tries -= 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            said => {
                break said
                    .context("`bpftool` shows what the kernel holds: apt-get install bpftool")?;
            }
        }
    };
    match text.trim() {
        "" => Ok(Value::Null),
        text => {
            serde_json::from_str(text).with_context(|| format!("bpftool {}", arguments.join(" ")))
        }
    }
}

/// The bytes of a map's row.
pub fn map_row(map: u32, key: &[u8]) -> Result<Vec<u8>> {
    let map = map.to_string();
    let key: Vec<String> = key.iter().map(u8::to_string).collect();
    let mut arguments = vec!["map", "lookup", "id", &map, "key"];
    arguments.extend(key.iter().map(String::as_str));
    let row = bpftool(&arguments)?;
    bytes(&row["value"]).with_context(|| format!("bpftool shows no value of map {map}: {row}"))
}

/// Key and value of all rows of a map, as bytes.
pub fn map_rows(map: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let map = map.to_string();
    let rows = bpftool(&["map", "dump", "id", &map])?;
    let row = |row: &Value| Some((bytes(&row["key"])?, bytes(&row["value"])?));
    let rows = rows.as_array().map(|rows| rows.iter().map(row).collect());
    rows.flatten()
        .with_context(|| format!("bpftool dumps map {map} in another shape than bytes"))
}

fn bytes(shown: &Value) -> Option<Vec<u8>> {
    let byte = |v: &Value| u8::from_str_radix(v.as_str()?.trim_start_matches("0x"), 16).ok();
    shown.as_array()?.iter().map(byte).collect()
}

/// Entries of a directory, hidden ones left out; none if it is not there.
fn names_in(dir: &Path, prefix: &str) -> Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.with_context(|| dir.display().to_string())?,
    };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    Ok(names
        .filter(|n| n.starts_with(prefix) && !n.starts_with('.'))
        .collect())
}
