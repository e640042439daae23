//! `bpf lb list`: the load balancer's maps as the kernel holds them, to compare with `bpftool map dump`.

mod text;

#[cfg(test)]
mod tests;

use isthmus_abi::{
    HealthState as HealthWord, Ring as RingWord, Slot as SlotWord, TICK_SHIFT, TierHead,
    health_kind, service_flags,
};
use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::Node;
use super::health::{Failures, HealthState};
use crate::output::{Report, Style};
use crate::text::Seconds;

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerMaps {
    pub node: Node,
    /// Rows of `frontends4` and `frontends6`.
    pub frontends: Vec<Frontend>,
    /// Rings of `services` that are not 0, with their rows of `slots`.
    pub rings: Vec<Ring>,
    /// Rows of `backends` that are not free, with those of `backend_failures`.
    pub backends: Vec<Backend>,
    /// What else `services` holds of those that a ring or a frontend names.
    pub services: Vec<Service>,
    /// Rows of `counters`, each summed over the CPUs.
    pub counters: Vec<Counter>,
    /// What does not fit together. Maps change while they are read: look twice.
    pub oddities: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    pub address: String,
    /// 0 in the row that marks an address as a service's own, whatever the port.
    pub port: u32,
    pub protocol: String,
    /// 0 is the node's own network; others are cluster ids.
    pub scope: u32,
    /// Index into `services`.
    pub service: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ring {
    /// Its index in `services`.
    pub service: u32,
    /// The row as it is: 16 hexadecimal digits.
    pub word: String,
    /// The span's first row in `slots`.
    pub span: u32,
    /// Slots of the first tier.
    pub len: u32,
    pub tiers: Vec<Tier>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tier {
    /// From 0.
    pub number: u32,
    /// Its first row in `slots`.
    pub first: u32,
    pub slots: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// Its index in `slots`.
    pub index: u32,
    /// Index into `backends`.
    pub backend: u32,
    /// The service that may draw it.
    pub service: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Its index in `backends`.
    pub id: u32,
    pub address: String,
    pub port: u32,
    pub protocol: String,
    pub cluster_id: u32,
    /// Index into `services`.
    pub service: u32,
    /// Counts the lives of this id.
    pub generation: u32,
    /// Connects that were sent there in this life.
    pub connects: u64,
    pub health: BackendHealth,
}

/// What programs hold of a backend.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendHealth {
    /// The state as it is: 16 hexadecimal digits.
    pub word: String,
    pub state: HealthState,
    /// How long ago, or until, what the state's time says: since it is suspect (negative), until an ejection or a trial is
    /// over (negative if it is). Null for a healthy one.
    pub time_seconds: Option<Seconds>,
    /// Ejections since the last success but one.
    pub doublings: u32,
    /// The client of a trial.
    pub client: Option<u32>,
    /// Of this life.
    pub failures: Failures,
    /// What counts against it since the last verified success; 15 eject. 0 while it is out.
    pub score: u32,
    /// Clients whose failures make up the score.
    pub accusers: u32,
    /// Clients to which it is closed now.
    pub closed: u32,
}

/// What programs hold of a service, and how far they may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Service {
    /// Its index in `services`.
    pub service: u32,
    /// Clients that were seen established at any of its backends, in this epoch or the last.
    pub standing: u32,
    /// Connects that the datapath refused.
    pub refused: u64,
    /// Draws that found every backend ejected.
    pub all_ejected: u64,
    /// Ejections, but for those after a failed trial.
    pub ejected_total: u64,
    /// A backend is ejected only while `ejectedTotal` is below this.
    pub allowed_total: u64,
    /// Seconds that a client keeps its backend; 0 is no affinity.
    pub affinity_seconds: u32,
    /// Failures eject nobody.
    pub no_passive_health: bool,
    /// The row's flags as they are.
    pub flags: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counter {
    /// Its index in `counters`.
    pub number: u32,
    pub name: String,
    pub value: u64,
}

impl LoadBalancerMaps {
    pub fn new(answer: proto::DumpLbResponse) -> Self {
        let frontends = answer.frontends.into_iter().map(|row| Frontend {
            address: row.address,
            port: row.port,
            protocol: row.protocol,
            scope: row.scope,
            service: row.service,
        });
        let now = answer.now_ticks;
        let backends = answer.backends.into_iter().map(|row| Backend {
            health: BackendHealth::new(&row, now),
            id: row.id,
            address: row.address,
            port: row.port,
            protocol: row.protocol,
            cluster_id: row.cluster,
            service: row.service,
            generation: row.generation,
            connects: row.connects,
        });
        let counters = answer.counters.into_iter().map(|row| Counter {
            number: row.number,
            name: row.name,
            value: row.value,
        });
        let services = answer.services.into_iter().map(|row| Service {
            service: row.service,
            standing: row.standing,
            refused: row.refused,
            all_ejected: row.all_ejected,
            ejected_total: row.ejected_total,
            allowed_total: row.allowed_total,
            affinity_seconds: row.affinity_seconds,
            no_passive_health: row.flags & service_flags::NO_PASSIVE_HEALTH != 0,
            flags: row.flags,
        });
        let mut oddities = Vec::new();
        let rings = answer.rings.iter().map(|row| Ring::new(row, &mut oddities));
        let mut maps = Self {
            node: answer.node.into(),
            frontends: frontends.collect(),
            rings: rings.collect(),
            backends: backends.collect(),
            services: services.collect(),
            counters: counters.collect(),
            oddities: Vec::new(),
        };
        maps.frontends.sort_by(|a, b| {
            let order = |f: &Frontend| (f.service, f.scope, f.address.clone(), f.port);
            order(a).cmp(&order(b))
        });
        maps.rings.sort_by_key(|ring| ring.service);
        maps.backends.sort_by_key(|backend| backend.id);
        maps.services.sort_by_key(|service| service.service);
        maps.oddities = oddities;
        maps.find_oddities();
        maps
    }
    fn ring(&self, service: u32) -> Option<&Ring> {
        let at = self
            .rings
            .binary_search_by_key(&service, |ring| ring.service);
        at.ok().and_then(|at| self.rings.get(at))
    }
    fn backend(&self, id: u32) -> Option<&Backend> {
        let at = self
            .backends
            .binary_search_by_key(&id, |backend| backend.id);
        at.ok().and_then(|at| self.backends.get(at))
    }
    /// Slots that lead nowhere, or to somebody else.
    fn find_oddities(&mut self) {
        let mut found = Vec::new();
        for ring in &self.rings {
            let service = ring.service;
            for slot in ring.tiers.iter().flat_map(|tier| &tier.slots) {
                let (index, id) = (slot.index, slot.backend);
                if slot.service != service {
                    let other = slot.service;
                    found.push(format!(
                        "slot {index} of service {service} names service {other}"
                    ));
                    continue;
                }
                match self.backend(id) {
                    None => found.push(format!(
                        "slot {index} of service {service} names backend {id}, which is free"
                    )),
                    Some(backend) if backend.service != service => found.push(format!(
                        "slot {index} of service {service} names backend {id} of service {}",
                        backend.service
                    )),
                    Some(_) => {}
                }
            }
        }
        self.oddities.append(&mut found);
    }
}

impl BackendHealth {
    fn new(row: &proto::LbBackend, now: u64) -> Self {
        let word = HealthWord(row.health_word);
        let state = match word.kind() {
            health_kind::HEALTHY => HealthState::Healthy,
            health_kind::SUSPECT => HealthState::Suspect,
            health_kind::EJECTED => HealthState::Ejected,
            _ => HealthState::Trial,
        };
        #[expect(clippy::cast_precision_loss, reason = "48 bits of ticks fit")]
        let seconds = |ticks: u64| ticks as f64 * f64::from(1_u32 << TICK_SHIFT) / 1e9;
        let time = || match word.time().checked_sub(now) {
            Some(left) => seconds(left),
            None => -seconds(now - word.time()),
        };
        Self {
            word: format!("{:016x}", row.health_word),
            state,
            time_seconds: (state != HealthState::Healthy).then(|| Seconds::new(time())),
            doublings: match state {
                HealthState::Ejected | HealthState::Trial => word.doublings(),
                _ => 0,
            },
            client: (state == HealthState::Trial).then(|| word.mark()),
            failures: row.failures.unwrap_or_default().into(),
            score: row.score,
            accusers: row.accusers,
            closed: row.closed,
        }
    }
}

impl Ring {
    fn new(row: &proto::LbRing, oddities: &mut Vec<String>) -> Self {
        let word = RingWord(row.word);
        let span = word.span();
        let heads = u32::from(word.tiers()).saturating_sub(1);
        let at = |offset: u32| {
            let offset = usize::try_from(offset).ok()?;
            row.slots.get(offset).copied()
        };
        let mut tiers = Vec::new();
        for number in 0..u32::from(word.tiers()) {
            let head = match number.checked_sub(1) {
                None => Some(TierHead::new(heads, word.len())),
                Some(place) => at(place).map(TierHead),
            };
            let Some(head) = head else {
                let service = row.service;
                oddities.push(format!(
                    "ring of service {service}: the head of tier {number} was not read"
                ));
                continue;
            };
            let offsets = head.offset()..head.offset().saturating_add(head.len());
            let slots: Vec<Slot> = offsets
                .map_while(|offset| Some((offset, SlotWord(at(offset)?))))
                .map(|(offset, slot)| Slot {
                    index: span.saturating_add(offset),
                    backend: slot.backend(),
                    service: slot.service(),
                })
                .collect();
            if u32::try_from(slots.len()) != Ok(head.len()) {
                let (service, len, read) = (row.service, head.len(), slots.len());
                oddities.push(format!(
                    "ring of service {service}: tier {number} has {len} slots, {read} were read"
                ));
            }
            tiers.push(Tier {
                number,
                first: span.saturating_add(head.offset()),
                slots,
            });
        }
        Self {
            service: row.service,
            word: format!("{:016x}", row.word),
            span,
            len: word.len(),
            tiers,
        }
    }
}

impl Report for LoadBalancerMaps {
    const KIND: &'static str = "LoadBalancerMaps";

    fn text(&self, wide: bool, style: Style) -> String {
        text::render(self, wide, style)
    }
    fn is_bad(&self) -> bool {
        false
    }
}
