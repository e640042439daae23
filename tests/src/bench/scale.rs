//! 10,000 services with 100,000 endpoints, the maps' sizes raised for them: from files, and from another cluster.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::change::{millis, pause, slice_changes};
use super::machine::pin;
use super::node::{
    AGENT_HTTP, Beginning, Memory, Node, backend, backend_of, gauge, global, head_yaml, put,
    samples, service_address, service_file, service_yaml,
};
use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Estimate, Random, quantile_estimate};
use crate::host::run as run_command;
use crate::process::{Process, Programs};
use crate::wait::wait_for;

const SERVICES: u32 = 10_000;
const EACH: u32 = 10;
const ENDPOINTS: f64 = (SERVICES * EACH) as f64;
const CHANGES: usize = 200;
/// Longest wait for all rows.
const LOADED: Duration = Duration::from_secs(120);
/// One backend more than the endpoints, for the service that changes; a span has room to grow.
const FLAGS: [&str; 4] = [
    "--lb-backends-max",
    "131072",
    "--lb-ring-slots-max",
    "524288",
];
/// G16, a local change; G11, a remote one.
const LOCAL: (f64, f64) = (2.0, 10.0);
const REMOTE: (f64, f64) = (1.0, 5.0);
/// G12, for each remote endpoint.
const RESIDENT_BYTES: f64 = 160.0;
const KERNEL_BYTES: f64 = 112.0;

const EAST_HTTP: &str = "127.0.0.1:9971";
const WEST_HTTP: &str = "127.0.0.1:9972";
const EAST: &str = "127.0.0.1:4260";
const WEST: &str = "127.0.0.1:4261";

fn beginning(each: u32) -> Beginning {
    Beginning {
        services: SERVICES,
        each,
        global: each == 0,
        flags: FLAGS.map(str::to_owned).to_vec(),
    }
}

/// All from files.
pub fn files(batches: Option<usize>) -> Result<Sheet> {
    let changes = batches.unwrap_or(CHANGES).max(2);
    let mut node = Node::start_beside(&beginning(EACH), |_, _| Ok(Vec::new()))?;
    let loaded = node.until_served(Instant::now(), 0..SERVICES)?;
    let all = all_in_the_kernel(&node)?;
    let (memory, maps) = (node.memory()?, node.gauge(MAP_MEMORY)?);
    let cpu = pin()?;
    let before = node.cpu()?;
    let times = slice_changes(&mut node, SERVICES, changes)?;
    let each = per_change(node.cpu()? - before, changes);
    let mut rows = vec![
        time(
            "agent's start until connects reach all services".to_owned(),
            loaded,
        ),
        time(
            "until every endpoint is in the kernel".to_owned(),
            loaded + all,
        ),
    ];
    rows.extend(sizes(memory, maps));
    rows.extend(latencies("local EndpointSlice change", &times, LOCAL));
    rows.push(Row::new(
        "agent's CPU for one change",
        Estimate::exact(each),
        Unit::Microseconds,
    ));
    Ok(Sheet {
        title: "10,000 services with 100,000 endpoints, from files",
        method: format!(
            "a real agent with {}, {SERVICES} files of a Service and an EndpointSlice of {EACH} endpoints; memory is VmRSS; {changes} changes \
             of the one endpoint of one more service, one at a time with random pauses, the client spins on {cpu}; [95% bootstrap interval]",
            FLAGS.join(" ")
        ),
        rows,
        raw: json!({"memory_bytes": memory, "maps_bytes": maps, "change_milliseconds": times}),
    })
}

/// The same services without an endpoint here, and all endpoints of another cluster.
pub fn mesh(batches: Option<usize>) -> Result<Sheet> {
    let changes = batches.unwrap_or(CHANGES).max(2);
    // Without the other cluster's rows: what they add is the difference.
    let node = Node::start_beside(&beginning(0), |_, _| Ok(Vec::new()))?;
    wait_for("the agent programs all services", LOADED, || {
        let services = node.gauge("isthmus_services")?;
        Ok((services >= f64::from(SERVICES)).then_some(()))
    })?;
    let without = node.memory()?;
    drop(node);

    let tls = tempfile::tempdir().context("a directory for certificates")?;
    certificates(&Programs::beside_this_one()?, tls.path())?;
    let mut fed_beginning = beginning(0);
    fed_beginning.flags.extend(agent_flags(tls.path()));
    let mut fed = None;
    let mut node = Node::start_beside(&fed_beginning, |programs, home| {
        let servers = Servers::start(programs, home, tls.path())?;
        fed = Some((servers.fed, servers.memory));
        Ok(servers.processes)
    })?;
    let loaded = node.until_served(Instant::now(), 0..SERVICES)?;
    let all = all_in_the_kernel(&node)?;
    let (fed, servers) = fed.context("the mesh servers were started")?;
    let (memory, maps) = (node.memory()?, node.gauge(MAP_MEMORY)?);
    let kernel = kernel_bytes(&node)?;
    let cpu = pin()?;
    let before = node.cpu()?;
    let times = remote_changes(&mut node, changes)?;
    let each = per_change(node.cpu()? - before, changes);
    let added = memory.resident.saturating_sub(without.resident);
    let mut rows = vec![
        time(
            "our mesh server's start until it holds all endpoints of the other".to_owned(),
            fed,
        ),
        time(
            "agent's start until connects reach all services".to_owned(),
            loaded,
        ),
        time(
            "until every endpoint is in the kernel".to_owned(),
            loaded + all,
        ),
    ];
    rows.extend(sizes(memory, maps));
    rows.extend([
        Row::new(
            "resident for each remote endpoint",
            Estimate::exact(bytes(added) / ENDPOINTS),
            Unit::Bytes,
        )
        .at_most(Target::Ours(RESIDENT_BYTES)),
        Row::new(
            "kernel memory for each",
            Estimate::exact(kernel),
            Unit::Bytes,
        )
        .at_most(Target::Ours(KERNEL_BYTES)),
        megabytes("our mesh server, resident", servers[0].resident),
        megabytes("the other's, resident", servers[1].resident),
    ]);
    rows.extend(latencies("remote EndpointSlice change", &times, REMOTE));
    rows.push(Row::new(
        "agent's CPU for one change",
        Estimate::exact(each),
        Unit::Microseconds,
    ));
    Ok(Sheet {
        title: "10,000 services with 100,000 endpoints of another cluster",
        method: format!(
            "a real agent with {}, its mesh server and another cluster's, over TLS; {SERVICES} global Services in files here and there, {EACH} \
             endpoints each there only; the agent starts when its mesh server holds all rows; memory is VmRSS, and what an endpoint adds is the \
             difference to the same agent without a mesh server; {changes} changes of one more service's one endpoint in the other's files; \
             the client spins on {cpu}; [95% bootstrap interval]",
            FLAGS.join(" ")
        ),
        rows,
        raw: json!({
            "memory_bytes": {"without": without, "with": memory, "servers": servers},
            "maps_bytes": maps,
            "change_milliseconds": times,
        }),
    })
}

const MAP_MEMORY: &str = "isthmus_map_memory_bytes";

/// How much longer it takes until every endpoint has its row.
fn all_in_the_kernel(node: &Node) -> Result<Duration> {
    let since = Instant::now();
    wait_for("all endpoints are in the kernel", LOADED, || {
        Ok((node.gauge("isthmus_backends")? >= ENDPOINTS).then_some(()))
    })?;
    Ok(since.elapsed())
}

/// What maps hold for a backend: its row in each map that has one, and its places in rings.
fn kernel_bytes(node: &Node) -> Result<f64> {
    let capacities = samples(AGENT_HTTP, "isthmus_map_capacity")?;
    let row = |(map, held): &(String, f64)| {
        let capacity = capacities.iter().find(|(other, _)| other == map);
        capacity.map_or(0.0, |(_, capacity)| held / capacity)
    };
    let places = node.gauge("isthmus_ring_slots")? / node.gauge("isthmus_backends")?;
    let maps = samples(AGENT_HTTP, MAP_MEMORY)?;
    let share = |map: &(String, f64)| match map.0.as_str() {
        "{map=\"slots\"}" => row(map) * places,
        name if name.starts_with("{map=\"backend") => row(map),
        _ => 0.0,
    };
    Ok(maps.iter().map(share).sum())
}

/// Two clusters' mesh servers, the first linked with the second.
struct Servers {
    processes: Vec<Process>,
    /// How long the first took to hold all rows of the second.
    fed: Duration,
    memory: [Memory; 2],
}

impl Servers {
    fn start(programs: &Programs, home: &Path, tls: &Path) -> Result<Self> {
        let manifests = home.join("west");
        let there = Beginning {
            each: EACH,
            global: true,
            ..beginning(EACH)
        };
        there.write(&manifests)?;
        let west = server(
            programs,
            home,
            tls,
            ("west", 2),
            &manifests,
            (WEST, WEST_HTTP),
        )?;
        let published = wait_for("the other's mesh server has read its files", LOADED, || {
            let told = gauge(WEST_HTTP, "isthmus_mesh_published_endpoints")?;
            Ok((told >= ENDPOINTS).then_some(()))
        });
        published?;
        let links = home.join("east-links");
        fs::create_dir(&links)?;
        fs::write(
            links.join("west.yaml"),
            format!(
                "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: ClusterLink\nmetadata: {{name: west}}\nspec: {{endpoints: [\"{WEST}\"]}}\n"
            ),
        )?;
        let since = Instant::now();
        let own = home.join("manifests");
        let east = server(programs, home, tls, ("east", 1), &own, (EAST, EAST_HTTP))?;
        wait_for("our mesh server holds the other's rows", LOADED, || {
            let held = gauge(EAST_HTTP, "isthmus_mesh_peer_endpoints")?;
            Ok((held >= ENDPOINTS).then_some(()))
        })?;
        Ok(Self {
            fed: since.elapsed(),
            memory: [Memory::of(east.pid())?, Memory::of(west.pid())?],
            processes: vec![east, west],
        })
    }
}

fn server(
    programs: &Programs,
    home: &Path,
    tls: &Path,
    (name, id): (&str, u16),
    manifests: &Path,
    (listen, http): (&str, &str),
) -> Result<Process> {
    let own = |what: &str| home.join(format!("{name}-{what}"));
    let mut command = Command::new(programs.find("isthmus-mesh")?);
    command.args(["--cluster-name", name, "--cluster-id", &id.to_string()]);
    command
        .arg("--source")
        .arg(format!("dir:{}", manifests.display()));
    command.arg("--state-dir").arg(own("state"));
    command.arg("--links").arg(own("links"));
    command.args(["--listen", listen, "--http", http]);
    command.args(tls_flags(&tls.join(name), "mesh"));
    Process::start(&format!("mesh {name}"), command, own("log"))
}

fn certificates(programs: &Programs, tls: &Path) -> Result<()> {
    for name in ["east", "west"] {
        let mut certs = Command::new(programs.find("agentctl")?);
        certs.args(["clustermesh", "certs", "--cluster", name]);
        certs.arg("--out").arg(tls.join(name));
        certs.arg("--ca").arg(tls.join("east"));
        run_command(&mut certs)?;
    }
    Ok(())
}

fn agent_flags(tls: &Path) -> Vec<String> {
    let mut flags = vec!["--mesh".to_owned(), EAST.to_owned()];
    flags.extend(tls_flags(&tls.join("east"), "agent"));
    flags
}

fn tls_flags(tls: &Path, who: &str) -> [String; 6] {
    let file = |name: &str| tls.join(name).display().to_string();
    [
        "--tls-ca".to_owned(),
        file("ca.crt"),
        "--tls-cert".to_owned(),
        file(&format!("{who}.crt")),
        "--tls-key".to_owned(),
        file(&format!("{who}.key")),
    ]
}

/// One more service, whose one endpoint in the other cluster is replaced again and again.
fn remote_changes(node: &mut Node, changes: usize) -> Result<Vec<f64>> {
    let (service, there) = (SERVICES, node.home().join("west"));
    let file = service_file(service);
    let address = service_address(service);
    let [one, other] = [backend(service, 0), backend(service, 1)];
    node.put("changing.yaml", &global(&head_yaml(service)))?;
    let text = |at: Ipv4Addr| global(&service_yaml(service, &[at]));
    let since = put(&there, &file, &text(one))?;
    node.until(since, || backend_of(address) == Some(one))?;
    let mut random = Random::new(11);
    let mut times = Vec::with_capacity(changes);
    for change in 0..changes {
        let wanted = if change % 2 == 0 { other } else { one };
        pause(&mut random);
        let since = put(&there, &file, &text(wanted))?;
        times.push(millis(
            node.until(since, || backend_of(address) == Some(wanted))?,
        ));
    }
    Ok(times)
}

fn time(what: String, time: Duration) -> Row {
    Row::new(what, Estimate::exact(millis(time)), Unit::Milliseconds)
}

fn sizes(memory: Memory, maps: f64) -> [Row; 3] {
    [
        megabytes("agent, resident", memory.resident),
        megabytes("of that, anonymous", memory.anonymous),
        Row::new(
            "kernel memory of all maps",
            Estimate::exact(maps / 1e6),
            Unit::Megabytes,
        ),
    ]
}

fn megabytes(what: &str, held: u64) -> Row {
    Row::new(what, Estimate::exact(bytes(held) / 1e6), Unit::Megabytes)
}

fn latencies(what: &str, times: &[f64], (p50, p99): (f64, f64)) -> [Row; 3] {
    let row = |name: &str, q| {
        let name = format!("{what} until a connect sees it, {name}");
        Row::new(name, quantile_estimate(times, q), Unit::Milliseconds)
    };
    [
        row("p50", 0.5).at_most(Target::Ours(p50)),
        row("p99", 0.99).at_most(Target::Ours(p99)),
        row("max", 1.0),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "a small count")]
fn per_change(time: Duration, changes: usize) -> f64 {
    time.as_secs_f64() * 1e6 / changes as f64
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a process' memory, far below 2^52 bytes"
)]
fn bytes(held: u64) -> f64 {
    held as f64
}
