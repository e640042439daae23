//! What is wrong on this node, why, and what can be done.

use super::{
    EjectedBackend, FailingRow, MapUsage, NodeStatus, Problem, ProblemKind, Program, Source,
};
use crate::report::Attention;
use crate::text::{address_port, count};

/// A map fuller than this, in percent, is worth a line.
const NEARLY_FULL: u64 = 90;

pub(super) fn attention(status: &NodeStatus, mesh_is_bad: bool) -> Vec<Attention> {
    let mut found = Vec::new();
    let causes = status.not_ready_because.iter();
    found.extend(causes.map(|cause| Attention::fault("not ready", cause)));
    found.extend(of_kernel(status));
    found.extend(status.programs.iter().flat_map(of_program));
    found.extend(status.reconcile.failing.iter().map(of_failing));
    if status.reconcile.failing_not_listed > 0 {
        let more = status.reconcile.failing_not_listed;
        found.push(Attention::fault(
            "reconcile",
            format!("{more} more rows fail"),
        ));
    }
    found.extend(of_health(status));
    found.extend(status.sources.iter().flat_map(of_source));
    found.extend(status.maps.iter().filter_map(of_map));
    if mesh_is_bad {
        let cause = status.mesh.summary.as_str();
        found
            .push(Attention::fault("mesh", cause).way_out("agentctl clustermesh status says more"));
    }
    found.sort_by_key(|item| !item.is_fault());
    found
}

fn of_kernel(status: &NodeStatus) -> Option<Attention> {
    let kernel = &status.kernel;
    (kernel.cgroup_proved == Some(false)).then(|| {
        let cause = format!(
            "no hook sees sockets of {}: {}",
            kernel.cgroup, kernel.cgroup_proof
        );
        Attention::fault("cgroup", cause)
            .way_out("Give the cgroup2 root of the host in isthmus-agent --cgroup.")
    })
}

fn of_program(program: &Program) -> Vec<Attention> {
    let about = program.name.as_str();
    let mut found = Vec::new();
    if let Some(cause) = &program.missing_because {
        let cause = format!("not attached to {}: {cause}", program.hook);
        found.push(Attention::fault(about, cause));
    }
    for foreign in program
        .foreign
        .iter()
        .filter(|foreign| foreign.hides_services)
    {
        let name = foreign
            .name
            .as_deref()
            .unwrap_or("a program without a name");
        let id = foreign.program_id;
        let cause = format!(
            "{name} (program id {id}) runs before it on {}: addresses it changes are no longer services to us",
            program.hook
        );
        found.push(
            Attention::fault(about, cause)
                .way_out(format!("bpftool prog show id {id} says whose it is; turn that load balancer off, or attach it after ours.")),
        );
    }
    found
}

fn of_failing(row: &FailingRow) -> Attention {
    let (service, name) = (row.service.as_deref(), row.row.as_deref());
    let of = match (service, name) {
        (Some(service), Some(name)) => format!("{service}, {name}: "),
        (Some(one), None) | (None, Some(one)) => format!("{one}: "),
        (None, None) => String::new(),
    };
    let age = row.age_seconds;
    let again = match row.next_try_seconds {
        Some(next) => format!("again in {next}"),
        None => "again now".to_owned(),
    };
    let (error, tries) = (&row.error, count(row.tries, "time"));
    let cause = format!("{of}{error} (tried {tries} for {age}, {again})");
    Attention::fault(&row.table, cause)
}

/// A note: the kernel does what it should.
fn of_health(status: &NodeStatus) -> Vec<Attention> {
    let Some(health) = &status.health else {
        return Vec::new();
    };
    let mut found: Vec<Attention> = health.backends.iter().map(of_ejected).collect();
    if health.not_listed > 0 {
        let more = count(health.not_listed, "more backend");
        found.push(Attention::note("ejected", format!("{more} ejected")));
    }
    found
}

fn of_ejected(backend: &EjectedBackend) -> Attention {
    let service = match &backend.service {
        Some(service) => format!("{service} "),
        None => String::new(),
    };
    let place = address_port(&backend.address, backend.port);
    let state = backend
        .health
        .text()
        .unwrap_or_else(|| "healthy".to_owned());
    let cause = format!("{service}{place} ({}): {state}", backend.cluster);
    Attention::note("ejected", cause)
}

fn of_source(source: &Source) -> Vec<Attention> {
    let mut found = Vec::new();
    if let Some(cause) = &source.unreadable_because {
        let since = source.unreadable_seconds;
        let since = since.map_or_else(String::new, |age| format!(" for {age}"));
        let cause = format!("{} cannot be read{since}: {cause}", source.name);
        found.push(Attention::fault("source", cause));
    }
    found.extend(source.problems.iter().map(of_problem));
    for unknown in &source.unknown_kinds {
        let (number, api, kind) = (unknown.objects, &unknown.api_version, &unknown.kind);
        let cause =
            format!("{api} {kind}: {number} read and not used, this version knows no such kind");
        found.push(Attention::note("unknown", cause));
    }
    found
}

fn of_problem(problem: &Problem) -> Attention {
    let parts = [&problem.place, &problem.object, &problem.field];
    let mut cause = String::new();
    for part in parts.into_iter().flatten() {
        cause.push_str(part);
        cause.push_str(": ");
    }
    cause.push_str(&problem.message);
    // What this version does not do is no state that began some time ago.
    if let Some(age) = problem.age_seconds
        && problem.kind != ProblemKind::NotHandled
    {
        cause.push_str(&format!(" (for {age})"));
    }
    match problem.kind {
        ProblemKind::Broken => Attention::fault("broken", cause),
        ProblemKind::Conflict => Attention::fault("conflict", cause),
        ProblemKind::NotHandled => Attention::note("not handled", cause),
        ProblemKind::Unknown => Attention::note("problem", cause),
    }
}

fn of_map(map: &MapUsage) -> Option<Attention> {
    let percent = fill(map)?;
    if percent < NEARLY_FULL {
        return None;
    }
    let (entries, capacity) = (map.entries?, map.capacity);
    let cause = format!("{entries} of {capacity} entries used");
    let attention = Attention::note(&map.name, cause);
    Some(match &map.flag {
        Some(flag) => attention.way_out(format!("Raise {flag} and restart isthmus-agent.")),
        None => attention,
    })
}

/// In percent, rounded down.
pub(super) fn fill(map: &MapUsage) -> Option<u64> {
    map.entries?.saturating_mul(100).checked_div(map.capacity)
}
