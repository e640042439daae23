//! G18, the agent's size and load: its resident memory with many services, and how soon a backlog is in the kernel.

use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::machine::pin;
use super::node::{
    BACKENDS_EACH, Memory, Node, all_backends, backend_of, service_address, service_yaml,
};
use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Estimate, quantile_estimate};

const REPETITIONS: usize = 40;
const SERVICES: u32 = 10_000;
const BACKLOG: u32 = 1000;
const MEGABYTES: f64 = 40.0;
const MILLISECONDS: f64 = 20.0;
/// Cilium 1.20.0-dev with as many services, recorded on another machine of two CPUs.
const CILIUM_MEGABYTES: f64 = 305.0;

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let repetitions = batches.unwrap_or(REPETITIONS).max(2);
    let (empty, full, start) = sizes()?;
    let backlogs = backlogs(repetitions)?;
    let megabytes = |bytes: u64| Estimate::exact(mega(bytes));
    let backlog = |name: &str, q| {
        let name =
            format!("{BACKLOG} services put in place at once, until connects reach all, {name}");
        Row::new(name, quantile_estimate(&backlogs, q), Unit::Milliseconds)
    };
    let rows = vec![
        Row::new(
            format!("resident, {SERVICES} services x {BACKENDS_EACH}"),
            megabytes(full.resident),
            Unit::Megabytes,
        )
        .recorded("Cilium, recorded", CILIUM_MEGABYTES)
        .at_most(Target::Ours(MEGABYTES)),
        Row::new(
            "of that, anonymous",
            megabytes(full.anonymous),
            Unit::Megabytes,
        ),
        Row::new(
            "of that, program and touched rows of maps",
            megabytes(full.file),
            Unit::Megabytes,
        ),
        Row::new(
            "resident, no service",
            megabytes(empty.resident),
            Unit::Megabytes,
        ),
        backlog("p50", 0.5).at_most(Target::Ours(MILLISECONDS)),
        backlog("min", 0.0),
        Row::new(
            format!(
                "agent's start with {SERVICES} services in as many files, until connects reach all"
            ),
            Estimate::exact(start),
            Unit::Milliseconds,
        ),
    ];
    Ok(Sheet {
        title: "the agent's memory, and how soon a backlog is in the kernel",
        method: format!(
            "memory is VmRSS of the agent, once every service was reached; megabytes are 10^6 bytes; a backlog is one YAML file of \
             {BACKLOG} Services with an EndpointSlice of {BACKENDS_EACH} endpoints each, {repetitions} times; its time is from before the \
             rename(2), so it has the reading and parsing of the file in it; [95% bootstrap interval]"
        ),
        rows,
        raw: json!({
            "memory_bytes": {"no_service": empty, "full": full},
            "start_milliseconds": start,
            "backlog_milliseconds": backlogs,
        }),
    })
}

/// Memory without and with services, and the time of a start with them in milliseconds.
fn sizes() -> Result<(Memory, Memory, f64)> {
    let mut node = Node::start(1)?;
    node.until_served(Instant::now(), 0..1)?;
    let empty = node.memory()?;
    drop(node);
    let mut node = Node::start(SERVICES)?;
    let start = node.until_served(Instant::now(), 0..SERVICES)?;
    Ok((empty, node.memory()?, start.as_secs_f64() * 1e3))
}

fn backlogs(repetitions: usize) -> Result<Vec<f64>> {
    const FILE: &str = "backlog.yaml";
    let mut node = Node::start(1)?;
    node.until_served(Instant::now(), 0..1)?;
    pin()?;
    let documents: Vec<String> = (1..=BACKLOG)
        .map(|service| service_yaml(service, &all_backends(service)))
        .collect();
    let text = documents.join("---\n");
    let mut times = Vec::with_capacity(repetitions);
    for _ in 0..repetitions {
        let since = node.put(FILE, &text)?;
        times.push(node.until_served(since, 1..BACKLOG + 1)?.as_secs_f64() * 1e3);
        let since = node.remove(FILE)?;
        for service in 1..=BACKLOG {
            node.until(since, || backend_of(service_address(service)).is_none())?;
        }
    }
    Ok(times)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a process' memory, far below 2^52 bytes"
)]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
