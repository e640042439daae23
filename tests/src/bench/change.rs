//! G16, change to kernel: from the rename that puts a manifest in place until a connect sees it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::machine::pin;
use super::node::{
    BACKENDS_EACH, Node, all_backends, backend, backend_of, head_yaml, pod_yaml, selecting_yaml,
    service_address, slice_yaml,
};
use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Random, quantile_estimate};

const CHANGES: usize = 400;
const SERVICES: u32 = 10_000;
/// Longest pause between two changes: they must not keep step with anything of the agent's.
const PAUSE_MICROS: usize = 20_000;
const P50: f64 = 2.0;
const P99: f64 = 10.0;
/// Cilium 1.20.0-dev, an EndpointSlice through Kubernetes' API, median, on another machine of two CPUs.
const CILIUM_P50: f64 = 262.0;

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let changes = batches.unwrap_or(CHANGES).max(2);
    let mut node = Node::start(SERVICES)?;
    node.until_served(Instant::now(), 0..SERVICES)?;
    let cpu = pin()?;
    let slices = slice_changes(&mut node, SERVICES, changes)?;
    let pods = pod_changes(&mut node, changes)?;
    let rows = [("EndpointSlice", &slices), ("Pod", &pods)]
        .into_iter()
        .flat_map(|(what, times)| {
            let row = |name: &str, q| {
                let name = format!("local {what} change until a connect sees it, {name}");
                Row::new(name, quantile_estimate(times, q), Unit::Milliseconds)
            };
            [
                row("p50", 0.5)
                    .recorded("Cilium, recorded", CILIUM_P50)
                    .at_most(Target::Ours(P50)),
                row("p99", 0.99).at_most(Target::Ours(P99)),
                row("max", 1.0),
            ]
        });
    Ok(Sheet {
        title: "from a manifest's change until connects see it",
        method: format!(
            "{changes} changes of each kind, one at a time with random pauses, {SERVICES} services of {BACKENDS_EACH} backends in as many \
             files; from before the rename(2) to the return of the first connect that is sent elsewhere; the client spins on {cpu}; \
             [95% bootstrap interval]; Cilium's figure has an API server in it and was not measured here"
        ),
        rows: rows.collect(),
        raw: json!({"unit": "milliseconds", "endpoint_slice": slices, "pod": pods}),
    })
}

/// A service whose one endpoint is replaced by another, again and again.
pub(super) fn slice_changes(node: &mut Node, service: u32, changes: usize) -> Result<Vec<f64>> {
    const FILE: &str = "changing.yaml";
    let address = service_address(service);
    let [one, other] = [backend(service, 0), backend(service, 1)];
    node.put("changing-service.yaml", &head_yaml(service))?;
    let since = node.put(FILE, &slice_yaml(service, &[one]))?;
    node.until(since, || backend_of(address) == Some(one))?;
    let mut random = Random::new(16);
    let mut times = Vec::with_capacity(changes);
    for change in 0..changes {
        let wanted = if change % 2 == 0 { other } else { one };
        pause(&mut random);
        let since = node.put(FILE, &slice_yaml(service, &[wanted]))?;
        times.push(millis(
            node.until(since, || backend_of(address) == Some(wanted))?,
        ));
    }
    Ok(times)
}

/// A Pod that becomes ready and unready in turn; without it its service has no backend.
fn pod_changes(node: &mut Node, changes: usize) -> Result<Vec<f64>> {
    const FILE: &str = "pod.yaml";
    let service = SERVICES + 1;
    let address = service_address(service);
    let pod = all_backends(service)[0];
    node.put("pod-service.yaml", &selecting_yaml(service))?;
    let since = node.put(FILE, &pod_yaml(service, true))?;
    node.until(since, || backend_of(address) == Some(pod))?;
    let mut random = Random::new(61);
    let mut times = Vec::with_capacity(changes);
    for change in 0..changes {
        let ready = change % 2 == 1;
        pause(&mut random);
        let since = node.put(FILE, &pod_yaml(service, ready))?;
        times.push(millis(
            node.until(since, || backend_of(address).is_some() == ready)?,
        ));
    }
    Ok(times)
}

pub(super) fn pause(random: &mut Random) {
    let micros = u64::try_from(random.below(PAUSE_MICROS)).unwrap_or(0);
    std::thread::sleep(Duration::from_micros(micros));
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
