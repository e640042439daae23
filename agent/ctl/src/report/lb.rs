//! `bpf lb list`: the load balancer's maps as the kernel holds them, to compare with `bpftool map dump`.

mod text;

#[cfg(test)]
mod tests;

use isthmus_abi::{Ring as RingWord, Slot as SlotWord, TierHead};
use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::Node;
use crate::output::{Report, Style};

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerMaps {
    pub node: Node,
    /// Rows of `frontends4` and `frontends6`.
    pub frontends: Vec<Frontend>,
    /// Rows of `rings` that are not 0, with their rows of `slots`.
    pub rings: Vec<Ring>,
    /// Rows of `backends` that are not free.
    pub backends: Vec<Backend>,
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
    /// Index into `rings`.
    pub service: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ring {
    /// Its index in `rings`.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Its index in `backends`.
    pub id: u32,
    pub address: String,
    pub port: u32,
    pub protocol: String,
    pub cluster_id: u32,
    /// Index into `rings`.
    pub service: u32,
    /// Counts the lives of this id.
    pub generation: u32,
    /// Connects that were sent there in this life.
    pub connects: u64,
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
        let backends = answer.backends.into_iter().map(|row| Backend {
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
        let mut oddities = Vec::new();
        let rings = answer.rings.iter().map(|row| Ring::new(row, &mut oddities));
        let mut maps = Self {
            node: answer.node.into(),
            frontends: frontends.collect(),
            rings: rings.collect(),
            backends: backends.collect(),
            counters: counters.collect(),
            oddities: Vec::new(),
        };
        maps.frontends.sort_by(|a, b| {
            let order = |f: &Frontend| (f.service, f.scope, f.address.clone(), f.port);
            order(a).cmp(&order(b))
        });
        maps.rings.sort_by_key(|ring| ring.service);
        maps.backends.sort_by_key(|backend| backend.id);
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
