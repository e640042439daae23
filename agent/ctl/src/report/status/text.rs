use super::{NodeStatus, Program, Source, judge};
use crate::output::{Paint, Style};
use crate::report::{Attention, attention_text};
use crate::table::{Cell, Table};
use crate::text::{bytes, clean, count, listed, or_dash, text_or_dash};

pub(super) fn render(status: &NodeStatus, wide: bool, style: Style) -> String {
    let mut out = clean(&status.node.headline());
    out.push_str(&format!(", up {}, ", status.node.uptime_seconds));
    out.push_str(&if status.not_ready_because.is_empty() {
        style.paint(Paint::Good, "ready")
    } else {
        style.paint(Paint::Bad, "not ready")
    });
    out.push('\n');
    for (name, line) in [
        ("Kernel", kernel_line(status)),
        ("Rows", reconcile_line(status)),
        ("Mesh", status.mesh.summary.clone()),
        ("Health", health_line(status)),
    ] {
        out.push_str(&format!("{name:<9}{}\n", clean(&line)));
    }
    for table in [sources(status), programs(status), maps(status, wide)] {
        if !table.is_empty() {
            out.push('\n');
            out.push_str(&table.render(style));
        }
    }
    if !status.attention.is_empty() {
        out.push('\n');
        out.push_str(&attention_text(&status.attention, style));
    }
    let faults = status
        .attention
        .iter()
        .filter(|a| Attention::is_fault(a))
        .count();
    if faults > 0 {
        let verb = if faults == 1 {
            "thing needs"
        } else {
            "things need"
        };
        out.push_str(&format!("{faults} {verb} attention\n"));
    }
    out
}

fn kernel_line(status: &NodeStatus) -> String {
    let kernel = &status.kernel;
    let proof = match kernel.cgroup_proved {
        Some(true) => "sockets there meet our hooks",
        Some(false) => "NO hook sees its sockets",
        None if kernel.cgroup_proof.is_empty() => "not proved yet",
        None => kernel.cgroup_proof.as_str(),
    };
    format!(
        "{}, cgroup {} ({proof}), pins in {}",
        text_or_dash(&kernel.release),
        text_or_dash(&kernel.cgroup),
        text_or_dash(&kernel.bpffs)
    )
}

fn reconcile_line(status: &NodeStatus) -> String {
    let rows = &status.reconcile;
    let failing = u64::try_from(rows.failing.len()).unwrap_or(u64::MAX);
    let failing = failing.saturating_add(rows.failing_not_listed);
    let mut line = match (rows.pending, failing) {
        (0, _) => "the kernel holds all that it should".to_owned(),
        (pending, 0) => format!("{pending} to be written"),
        (pending, failing) => format!("{pending} to be written, {failing} of them failing"),
    };
    line.push_str(&format!("; {}", count(rows.writes, "write")));
    if rows.failed_writes > 0 {
        line.push_str(&format!(", {} refused", rows.failed_writes));
    }
    if let Some(age) = rows.last_change_seconds {
        line.push_str(&format!(", the last {age} ago"));
    }
    if let Some(latency) = rows.last_latency_seconds {
        line.push_str(&format!(", {} after its cause", latency.fine()));
    }
    line
}

/// `passive health on; 1 backend ejected; 3 ejections, 6 connects refused so far`.
fn health_line(status: &NodeStatus) -> String {
    let Some(health) = &status.health else {
        return "not told by this agent".to_owned();
    };
    let mut line = format!(
        "passive health {}; ",
        if health.passive { "on" } else { "off" }
    );
    let states = [
        (health.ejected, "ejected"),
        (health.on_trial, "on trial"),
        (health.suspect, "suspect"),
    ];
    let some: Vec<String> = states
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, state)| format!("{number} {state}"))
        .collect();
    line.push_str(&if some.is_empty() {
        "no backend ejected".to_owned()
    } else {
        listed(&some)
    });
    line.push_str(&format!("; {} so far", count(health.ejections, "ejection")));
    line.push_str(&format!(", {} refused", count(health.refused, "connect")));
    for (number, what) in [
        (health.all_ejected, "drawn with all ejected"),
        (health.capped, "capped"),
    ] {
        if number > 0 {
            line.push_str(&format!(", {number} {what}"));
        }
    }
    line
}

fn sources(status: &NodeStatus) -> Table {
    let mut table = Table::new(&[
        "SOURCE",
        "STATE",
        "FILES",
        "SERVICES",
        "ENDPOINTS",
        "LAST CHANGE",
    ]);
    for source in &status.sources {
        let age = source.last_change_seconds;
        let age = age.map_or_else(|| "-".to_owned(), |age| format!("{age} ago"));
        table.row([
            source.name.as_str().into(),
            source_state(source),
            source.files.to_string().into(),
            source.services.to_string().into(),
            source.endpoints.to_string().into(),
            age.into(),
        ]);
    }
    table
}

fn source_state(source: &Source) -> Cell {
    match (&source.unreadable_because, source.complete) {
        (Some(_), _) => Cell::painted("unreadable", Paint::Bad),
        (None, true) => Cell::painted("complete", Paint::Good),
        (None, false) => Cell::painted("first list", Paint::Warn),
    }
}

/// Ours and others', hook by hook, in the order in which the kernel runs them.
fn programs(status: &NodeStatus) -> Table {
    let mut table = Table::new(&["PROGRAM", "HOOK", "ORDER", "PROGRAM ID", "LINK ID", "STATE"]);
    for program in &status.programs {
        let on_hook = program.foreign.len() + usize::from(program.position.is_some());
        let order = |position: Option<u32>| match position {
            Some(position) => format!("{position} of {on_hook}"),
            None => "-".to_owned(),
        };
        let mut rows = vec![(program.position, ours(program, order(program.position)))];
        for foreign in &program.foreign {
            let state = if foreign.hides_services {
                Cell::painted("foreign, hides services", Paint::Bad)
            } else {
                "foreign".into()
            };
            let cells = [
                foreign.name.as_deref().unwrap_or("-").into(),
                program.hook.as_str().into(),
                order(Some(foreign.position)).into(),
                foreign.program_id.to_string().into(),
                "-".into(),
                state,
            ];
            rows.push((Some(foreign.position), cells));
        }
        // A program that is missing has no position: it comes first, where it is seen.
        rows.sort_by_key(|(position, _)| *position);
        for (_, cells) in rows {
            table.row(cells);
        }
    }
    table
}

fn ours(program: &Program, order: String) -> [Cell; 6] {
    let state = match program.missing_because {
        Some(_) => Cell::painted("MISSING", Paint::Bad),
        None => Cell::painted("attached", Paint::Good),
    };
    [
        program.name.as_str().into(),
        program.hook.as_str().into(),
        order.into(),
        or_dash(program.program_id).into(),
        or_dash(program.link_id).into(),
        state,
    ]
}

fn maps(status: &NodeStatus, wide: bool) -> Table {
    let mut header = vec!["MAP", "MAP ID", "ENTRIES", "CAPACITY", "FILL", "MEMORY"];
    if wide {
        header.push("BYTES");
        header.push("RAISED BY");
    }
    let mut table = Table::new(&header);
    for map in &status.maps {
        let fill = judge::fill(map).map(|percent| format!("{percent}%"));
        let mut row: Vec<Cell> = vec![
            map.name.as_str().into(),
            or_dash(map.map_id).into(),
            or_dash(map.entries).into(),
            map.capacity.to_string().into(),
            or_dash(fill).into(),
            or_dash(map.memlock_bytes.map(bytes)).into(),
        ];
        if wide {
            row.push(or_dash(map.memlock_bytes).into());
            row.push(or_dash(map.flag.as_ref()).into());
        }
        table.row(row);
    }
    table
}
