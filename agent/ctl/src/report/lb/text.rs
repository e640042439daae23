use std::collections::{BTreeMap, BTreeSet};

use super::{BackendHealth, Frontend, LoadBalancerMaps, Ring, Tier};
use crate::output::Style;
use crate::report::health::{Failures, HealthState};
use crate::table::{Cell, Table};
use crate::text::{Seconds, address_port, clean, or_dash, shorten};

/// Characters of slot numbers beside the other columns; `-o wide` shows them all.
const SLOTS_WIDTH: usize = 32;

pub(super) fn render(maps: &LoadBalancerMaps, wide: bool, style: Style) -> String {
    let mut out = rows(maps, wide).render(style);
    for table in [backend_health(maps, wide), service_health(maps)] {
        if !table.is_empty() {
            out.push('\n');
            out.push_str(&table.render(style));
        }
    }
    if !maps.counters.is_empty() {
        out.push('\n');
        let mut table = Table::new(&["COUNTER", "VALUE"]);
        for counter in &maps.counters {
            table.row([
                counter.name.as_str().into(),
                counter.value.to_string().into(),
            ]);
        }
        out.push_str(&table.render(style));
    }
    if !maps.oddities.is_empty() {
        out.push('\n');
        for oddity in &maps.oddities {
            out.push_str(&format!("- {}\n", clean(oddity)));
        }
        out.push_str(
            "Maps change while they are read: look twice before you believe the lines above.\n",
        );
    }
    out
}

/// What programs hold of backends: of those with something to tell, or of all with `-o wide`.
fn backend_health(maps: &LoadBalancerMaps, wide: bool) -> Table {
    let mut table = Table::new(&[
        "BACKEND ID",
        "HEALTH",
        "TIME",
        "DOUBLINGS",
        "STATE WORD",
        "REFUSED",
        "UNREACHABLE",
        "UNANSWERED",
        "TIMED OUT",
        "SCORE",
        "ACCUSERS",
        "CLOSED TO",
    ]);
    for backend in &maps.backends {
        let health = &backend.health;
        let failures = health.failures;
        let plain = health.state == HealthState::Healthy && failures == Failures::default();
        if plain && !wide {
            continue;
        }
        table.row([
            backend.id.to_string().into(),
            state(health).into(),
            or_dash(health.time_seconds.map(time)).into(),
            health.doublings.to_string().into(),
            health.word.as_str().into(),
            failures.refused.to_string().into(),
            failures.unreachable.to_string().into(),
            failures.unanswered.to_string().into(),
            failures.timed_out.to_string().into(),
            health.score.to_string().into(),
            health.accusers.to_string().into(),
            health.closed.to_string().into(),
        ]);
    }
    table
}

fn state(health: &BackendHealth) -> String {
    match (health.state, health.client) {
        (HealthState::Healthy, _) => "healthy".to_owned(),
        (HealthState::Suspect, _) => "suspect".to_owned(),
        (HealthState::Ejected, _) => "ejected".to_owned(),
        (HealthState::Trial, Some(client)) => format!("trial of client {client}"),
        (HealthState::Trial, None) => "trial".to_owned(),
        (HealthState::Unknown, _) => "unknown".to_owned(),
    }
}

/// `3.1s ago`, `in 3.1s`.
fn time(seconds: Seconds) -> String {
    if seconds < Seconds::default() {
        format!("{} ago", seconds.negated())
    } else {
        format!("in {seconds}")
    }
}

fn service_health(maps: &LoadBalancerMaps) -> Table {
    let mut table = Table::new(&[
        "SERVICE",
        "STANDING",
        "REFUSED",
        "ALL EJECTED",
        "EJECTED",
        "ALLOWED",
        "AFFINITY",
        "PASSIVE HEALTH",
    ]);
    for service in &maps.services {
        let affinity = match service.affinity_seconds {
            0 => "-".to_owned(),
            seconds => format!("{seconds}s"),
        };
        table.row([
            service.service.to_string().into(),
            service.standing.to_string().into(),
            service.refused.to_string().into(),
            service.all_ejected.to_string().into(),
            service.ejected_total.to_string().into(),
            service.allowed_total.to_string().into(),
            affinity.into(),
            if service.no_passive_health {
                "off"
            } else {
                "on"
            }
            .into(),
        ]);
    }
    table
}

/// A row for each frontend, tier and backend; one of its own for a frontend without a ring, and for a backend that no
/// slot names.
fn rows(maps: &LoadBalancerMaps, wide: bool) -> Table {
    let mut header = vec![
        "FRONTEND",
        "SERVICE",
        "SPAN",
        "TIERS",
        "LEN",
        "TIER",
        "SLOTS",
        "BACKEND ID",
        "BACKEND",
        "CLUSTER ID",
        "CONNECTS",
    ];
    if wide {
        header.extend(["SCOPE", "GENERATION", "RING WORD"]);
    }
    let mut rows = Rows {
        maps,
        wide,
        table: Table::new(&header),
    };
    for frontend in &maps.frontends {
        rows.frontend(frontend);
    }
    let fronted: BTreeSet<u32> = maps.frontends.iter().map(|f| f.service).collect();
    for ring in &maps.rings {
        if !fronted.contains(&ring.service) {
            rows.ring(None, ring);
        }
    }
    let tiers = maps.rings.iter().flat_map(|ring| &ring.tiers);
    let slots = tiers.flat_map(|tier| &tier.slots);
    let named: BTreeSet<u32> = slots.map(|slot| slot.backend).collect();
    for backend in &maps.backends {
        if !named.contains(&backend.id) {
            rows.push(
                None,
                backend.service,
                None,
                None,
                Some((backend.id, "-".to_owned())),
            );
        }
    }
    rows.table
}

struct Rows<'a> {
    maps: &'a LoadBalancerMaps,
    wide: bool,
    table: Table,
}

impl Rows<'_> {
    fn frontend(&mut self, frontend: &Frontend) {
        // The row for the address alone is there to refuse unknown ports; it draws from no ring.
        match self
            .maps
            .ring(frontend.service)
            .filter(|_| frontend.port != 0)
        {
            Some(ring) => self.ring(Some(frontend), ring),
            None => self.push(Some(frontend), frontend.service, None, None, None),
        }
    }
    fn ring(&mut self, frontend: Option<&Frontend>, ring: &Ring) {
        let mut empty = true;
        for tier in &ring.tiers {
            for (backend, slots) in by_backend(tier) {
                empty = false;
                let slots = if self.wide {
                    slots
                } else {
                    shorten(&slots, SLOTS_WIDTH)
                };
                let place = Some((backend, slots));
                self.push(frontend, ring.service, Some(ring), Some(tier.number), place);
            }
        }
        if empty {
            self.push(frontend, ring.service, Some(ring), None, None);
        }
    }
    fn push(
        &mut self,
        frontend: Option<&Frontend>,
        service: u32,
        ring: Option<&Ring>,
        tier: Option<u32>,
        place: Option<(u32, String)>,
    ) {
        let (id, slots) = place.unzip();
        let backend = id.and_then(|id| self.maps.backend(id));
        let mut row: Vec<Cell> = vec![
            or_dash(frontend.map(name)).into(),
            service.to_string().into(),
            or_dash(ring.map(|ring| ring.span)).into(),
            or_dash(ring.map(|ring| ring.tiers.len())).into(),
            or_dash(ring.map(|ring| ring.len)).into(),
            or_dash(tier).into(),
            or_dash(slots).into(),
            or_dash(id).into(),
            or_dash(backend.map(|b| address_port(&b.address, b.port) + "/" + &b.protocol)).into(),
            or_dash(backend.map(|b| b.cluster_id)).into(),
            or_dash(backend.map(|b| b.connects)).into(),
        ];
        if self.wide {
            row.extend([
                or_dash(frontend.map(|frontend| frontend.scope)).into(),
                or_dash(backend.map(|b| b.generation)).into(),
                or_dash(ring.map(|ring| &ring.word)).into(),
            ]);
        }
        self.table.row(row);
    }
}

/// `10.96.71.4:8080/TCP`, and `10.96.71.4` for the row of the address alone.
fn name(frontend: &Frontend) -> String {
    if frontend.port == 0 {
        return frontend.address.clone();
    }
    let place = address_port(&frontend.address, frontend.port);
    format!("{place}/{}", frontend.protocol)
}

/// Slot numbers of each backend, as ranges: `17,19-21`.
pub(super) fn by_backend(tier: &Tier) -> BTreeMap<u32, String> {
    let mut ranges: BTreeMap<u32, Vec<(u32, u32)>> = BTreeMap::new();
    for slot in &tier.slots {
        let ranges = ranges.entry(slot.backend).or_default();
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(slot.index) => *last = slot.index,
            _ => ranges.push((slot.index, slot.index)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let written = ranges.into_iter().map(|(backend, ranges)| {
        let ranges: Vec<String> = ranges.iter().map(text).collect();
        (backend, ranges.join(","))
    });
    written.collect()
}
