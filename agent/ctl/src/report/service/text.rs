use super::{Backend, BackendState, Frontend, Rules, ServiceList};
use crate::output::{Paint, Style};
use crate::report::health::{Health, HealthState};
use crate::table::{Cell, Table};
use crate::text::{Seconds, address_port, clean, listed, or_dash};

pub(super) fn render(list: &ServiceList, wide: bool, style: Style) -> String {
    let mut header = vec![
        "SERVICE", "FRONTEND", "TYPE", "AFFINITY", "BACKEND", "CLUSTER", "NODE",
    ];
    if wide {
        header.extend([
            "ZONE",
            "PORT NAME",
            "TIER",
            "SHARE",
            "CONNECTS",
            "BACKEND ID",
            "RULES",
        ]);
    }
    header.push("STATE");
    let mut table = Table::new(&header);
    for frontend in &list.frontends {
        if frontend.backends.is_empty() {
            table.row(row(frontend, None, wide));
        }
        for backend in &frontend.backends {
            table.row(row(frontend, Some(backend), wide));
        }
    }
    if table.is_empty() {
        return "No services.\n".to_owned();
    }
    let mut out = table.render(style);
    for remark in &list.remarks {
        out.push_str(&clean(remark));
        out.push('\n');
    }
    out
}

fn row(frontend: &Frontend, backend: Option<&Backend>, wide: bool) -> Vec<Cell> {
    let mut cells: Vec<Cell> = vec![
        frontend.service.as_str().into(),
        place(frontend).into(),
        frontend.service_type.as_str().into(),
        frontend.affinity.as_str().into(),
        or_dash(backend.map(|b| address_port(&b.address, b.port))).into(),
        or_dash(backend.map(|b| &b.cluster)).into(),
        or_dash(backend.and_then(|b| b.node.as_ref())).into(),
    ];
    if wide {
        let share = backend.and_then(|b| b.tier_share);
        cells.extend([
            or_dash(backend.and_then(|b| b.zone.as_ref())).into(),
            or_dash(frontend.port_name.as_ref()).into(),
            or_dash(backend.and_then(tier)).into(),
            or_dash(share.map(|share| format!("{:.1}%", share * 100.0))).into(),
            or_dash(backend.and_then(|b| b.connects)).into(),
            or_dash(backend.and_then(|b| b.backend_id)).into(),
            or_dash(rules(frontend.rules)).into(),
        ]);
    }
    cells.push(match (unserved(frontend), backend) {
        (Some(problem), _) => Cell::painted(format!("not served: {problem}"), Paint::Warn),
        (None, Some(backend)) => Cell::painted(&backend.state_text, paint(backend)),
        (None, None) => Cell::painted("no backend", Paint::Warn),
    });
    cells
}

/// Why no connection meets this frontend; none if they do.
fn unserved(frontend: &Frontend) -> Option<&str> {
    let problem = frontend.problem.as_deref();
    problem.filter(|_| frontend.service_index.is_none())
}

/// `sticky 10800s, this node only, never ejected`; none where each connection is drawn from all backends that do not fail.
fn rules(rules: Rules) -> Option<String> {
    let words = [
        rules
            .session_affinity_seconds
            .map(|seconds| format!("sticky {seconds}s")),
        rules.node_only.then(|| "this node only".to_owned()),
        (!rules.passive_health).then(|| "never ejected".to_owned()),
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// `10.96.71.4:8080/TCP`.
fn place(frontend: &Frontend) -> String {
    let address = frontend.address.as_deref().unwrap_or("-");
    format!(
        "{}/{}",
        address_port(address, frontend.port),
        frontend.protocol
    )
}

fn tier(backend: &Backend) -> Option<String> {
    let number = backend.tier?;
    Some(match &backend.tier_name {
        Some(name) => format!("{number} ({name})"),
        None => number.to_string(),
    })
}

fn paint(backend: &Backend) -> Paint {
    if backend.state != BackendState::NotReady {
        match backend.health.map(|health| health.state) {
            Some(HealthState::Ejected) => return Paint::Bad,
            Some(HealthState::Trial | HealthState::Suspect) => return Paint::Warn,
            Some(HealthState::Healthy | HealthState::Unknown) | None => {}
        }
    }
    match backend.state {
        BackendState::Active if backend.preferred => Paint::Good,
        BackendState::Active | BackendState::Elsewhere => Paint::Plain,
        BackendState::Terminating | BackendState::Stale | BackendState::Unknown => Paint::Warn,
        BackendState::NotReady => Paint::Bad,
    }
}

/// `active (preferred)`, `not ready 8s: Pod condition`, `ejected 1.9s: refused x3, trial in 3.1s`.
pub(super) fn state(
    state: BackendState,
    age: Option<Seconds>,
    reason: Option<&str>,
    health: Option<Health>,
    preferred: bool,
) -> String {
    // What no connection goes to has no health that matters; elsewhere it stands in the place of `active`, or behind.
    let health = health
        .filter(|_| state != BackendState::NotReady)
        .and_then(|health| health.text());
    let mut text = match state {
        BackendState::Active => "active",
        BackendState::Terminating => "terminating",
        BackendState::NotReady => "not ready",
        BackendState::Stale => "stale",
        BackendState::Elsewhere => "other node",
        BackendState::Unknown => "unknown",
    }
    .to_owned();
    if state != BackendState::Active {
        if let Some(age) = age {
            text.push_str(&format!(" {age}"));
        }
        if let Some(reason) = reason {
            text.push_str(&format!(": {reason}"));
        }
    }
    match health {
        Some(health) if state == BackendState::Active => text = health,
        Some(health) => text.push_str(&format!("; {health}")),
        None => {}
    }
    if preferred {
        text.push_str(" (preferred)");
    }
    text
}

/// What a reader would not expect of this frontend: nobody serves it, or others do.
pub(super) fn remark(frontend: &Frontend) -> Option<String> {
    let name = &frontend.service;
    let backends = &frontend.backends;
    if unserved(frontend).is_some() {
        return None;
    }
    if let Some(problem) = &frontend.problem {
        return Some(format!("{name}: {problem}"));
    }
    let serving: Vec<&Backend> = backends
        .iter()
        .filter(|backend| backend.preferred)
        .collect();
    let elsewhere = |backend: &Backend| backend.state == BackendState::Elsewhere;
    if serving.is_empty() && backends.iter().any(elsewhere) {
        return Some(format!(
            "{name} has no backend on this node, and internalTrafficPolicy is Local: connections from here are refused."
        ));
    }
    if serving.is_empty() {
        return Some(format!(
            "{name} has no backend that can take connections: they are refused."
        ));
    }
    let mut clusters: Vec<String> = serving.iter().map(|b| b.cluster.clone()).collect();
    clusters.sort();
    clusters.dedup();
    let clusters = listed(&clusters);
    if serving
        .iter()
        .all(|backend| backend.state == BackendState::Stale)
    {
        return Some(format!(
            "{name} is served by {clusters} alone, not heard for a while: nothing else is left."
        ));
    }
    let is_out = |backend: &Backend| backend.health.is_some_and(|health| health.is_out());
    if serving.iter().all(|backend| is_out(backend)) {
        return Some(format!(
            "{name}: every backend is ejected; connections are spread over {clusters} as if none were."
        ));
    }
    let local: Vec<&Backend> = backends.iter().filter(|backend| backend.local).collect();
    let able = local
        .iter()
        .filter(|backend| backend.state == BackendState::Active && !is_out(backend));
    let (able, all) = (able.count(), local.len());
    let remote_only = serving.iter().all(|backend| !backend.local);
    (remote_only && all > 0 && able == 0).then(|| {
        let noun = if all == 1 { "backend" } else { "backends" };
        format!(
            "{name} is served by {clusters}: {able} of {all} local {noun} can take connections."
        )
    })
}
