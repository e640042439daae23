//! G2, new connections beside kube-proxy: socket to close over TCP, with our programs, and through nftables rules of the shape
//! that kube-proxy writes in that mode, each in a network namespace of its own.

use std::fmt::Write as _;
use std::fs::File;

use anyhow::{Context, Result, ensure};
use isthmus_core::model::Protocol;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

use super::arena::{Arena, SERVICE_CIDR, prepare_namespace};
use super::machine::{interleaved, pin};
use super::sheet::{Row, Sheet, Target, Unit};
use super::stats::{Random, Rounds, column};
use super::tax::calls::{Caller, TIMED, WARM};
use super::tax::expect_bare;
use super::tax::fleet::{Fleet, SERVICE_PORT, Scale, Variant, backend, service_address};
use crate::netns::{feed, ip_batch};

const ROUNDS: usize = 320;
const LOADS: usize = 8;
const SCALE: Scale = Scale::of(10_000);
/// What ours adds over what the peer adds.
const OF_PEER: f64 = 1.0 / 25.0;
/// Our whole cycle over that without programs: the inverse of a rate's share.
const OF_BARE: f64 = 1.0 / 0.985;
/// Of batches, as in G1.
const AT: f64 = 0.1;

/// Places in a round.
const BARE: usize = 0;
const OURS: usize = 1;
const PEER: usize = 2;

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let rounds = batches.unwrap_or(ROUNDS).max(2);
    let loads = LOADS.min(rounds / 2);
    let arena = Arena::enter()?;
    let cpu = pin()?;
    let peer = Peer::build()?;
    let caller = Caller::new(Protocol::Tcp)?;
    let mut random = Random::new(2026);
    let mut cycles = Rounds::default();
    let mut discarded = 0;
    for load in 0..loads {
        expect_bare()?;
        let share = (load + 1) * rounds / loads - load * rounds / loads;
        let fleet = Fleet::build(&arena, SCALE, Protocol::Tcp)?;
        let before = fleet.sent();
        let mut made = 0;
        let table = interleaved::<3>(&cpu, share, &mut discarded, |place| {
            let variant = if place == BARE {
                Variant::Bare
            } else {
                Variant::Ours
            };
            let targets = fleet.targets(variant, true, &mut random, WARM + TIMED);
            if place == PEER {
                return Ok(peer.inside(|caller| caller.batch(&targets))?.cycle);
            }
            let _links = fleet.attach(variant)?;
            if place == OURS {
                made += targets.len();
            }
            Ok(caller.batch(&targets)?.cycle)
        })?;
        let sent = fleet.sent() - before;
        ensure!(
            sent == made as u64,
            "{made} connects were made to services, {sent} translated"
        );
        cycles.push_load(table);
    }
    Ok(Sheet {
        title: "TCP socket, connect, accept, close: what is added to it, by us and by nftables in kube-proxy's shape",
        method: format!(
            "{rounds} rounds of interleaved batches of {TIMED} connections of fresh sockets to random ones of 10,000 services with 4 \
             backends each, in one process, over {loads} loads of the programs, pinned to {cpu}; health on, its tracepoints \
             attached with our other programs, for our batches alone; the peer's rules, a verdict map, a chain for each service and endpoint, DNAT and the masquerade chain, \
             stand in a namespace of their own; both ends in one thread on loopback; figures are the 10th percentile of the batches, \
             [95% bootstrap interval over loads and rounds]; {discarded} rounds were thrown away for stolen time"
        ),
        rows: rows(&cycles),
        raw: json!({"variants": ["bare", "ours", "nftables"], "unit": "nanoseconds; loads of rounds of variants", "cycle": cycles}),
    })
}

fn rows(cycles: &Rounds) -> Vec<Row> {
    let at = |rounds: &[&[f64]], place| column(rounds, place, AT);
    let added = |rounds: &[&[f64]], place| at(rounds, place) - at(rounds, BARE);
    vec![
        Row::new(
            "added",
            cycles.estimate(|rounds| added(rounds, OURS)),
            Unit::Nanoseconds,
        )
        .beside(
            "nftables",
            cycles.estimate(|rounds| added(rounds, PEER)).value,
            cycles.estimate(|rounds| added(rounds, OURS) / added(rounds, PEER)),
        )
        .at_most(Target::Ratio(OF_PEER)),
        Row::new(
            "whole",
            cycles.estimate(|rounds| at(rounds, OURS)),
            Unit::Nanoseconds,
        )
        .beside(
            "no program",
            cycles.estimate(|rounds| at(rounds, BARE)).value,
            cycles.estimate(|rounds| at(rounds, OURS) / at(rounds, BARE)),
        )
        .at_most(Target::Ratio(OF_BARE)),
    ]
}

/// A second namespace, with rules, and the way back.
struct Peer {
    home: File,
    namespace: File,
    caller: Caller,
}

impl Peer {
    fn build() -> Result<Self> {
        const OWN: &str = "/proc/thread-self/ns/net";
        let home = File::open(OWN)?;
        unshare(CloneFlags::CLONE_NEWNET).context("a second network namespace")?;
        let namespace = File::open(OWN)?;
        prepare_namespace()?;
        // A service's address needs a way out before it is another's.
        ip_batch(&format!("route add {SERVICE_CIDR} dev lo\n"))?;
        feed(
            std::process::Command::new("nft").args(["-f", "-"]),
            &kube_proxy(SCALE)?,
        )?;
        // Closed connections are not kept: the peer pays for none but its own.
        for state in ["time_wait", "close", "last_ack"] {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{state}");
            std::fs::write(&path, "1").with_context(|| path.clone())?;
        }
        let caller = Caller::new(Protocol::Tcp)?;
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        Ok(Self {
            home,
            namespace,
            caller,
        })
    }

    fn inside<T>(&self, work: impl FnOnce(&Caller) -> Result<T>) -> Result<T> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
        let done = work(&self.caller);
        setns(&self.home, CloneFlags::CLONE_NEWNET)?;
        done
    }
}

/// What kube-proxy writes in nftables mode: a verdict map of services, a random endpoint of each, DNAT; marked connections
/// are masqueraded. Here for what the node itself connects to.
fn kube_proxy(scale: Scale) -> Result<String> {
    let (mut chains, mut services) = (String::new(), Vec::new());
    for service in 0..scale.services {
        let mut endpoints = Vec::new();
        for nth in 0..scale.each {
            let at = backend(service * scale.each + nth);
            writeln!(
                chains,
                "chain endpoint-{service}-{nth} {{ ip saddr {} jump mark-for-masquerade; meta l4proto tcp dnat to {at}; }}",
                at.ip()
            )?;
            endpoints.push(format!("{nth} : goto endpoint-{service}-{nth}"));
        }
        writeln!(
            chains,
            "chain service-{service} {{ numgen random mod {} vmap {{ {} }}; }}",
            scale.each,
            endpoints.join(", ")
        )?;
        services.push(format!(
            "{} . tcp . {SERVICE_PORT} : goto service-{service}",
            service_address(service)
        ));
    }
    Ok(format!(
        "table ip peer {{
chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
{chains}map services {{
type ipv4_addr . inet_proto . inet_service : verdict
elements = {{ {} }}
}}
chain services {{ ip daddr . meta l4proto . th dport vmap @services; }}
chain output {{ type nat hook output priority -100; jump services; }}
chain masquerading {{ meta mark and 0x4000 == 0 return; meta mark set meta mark xor 0x4000; masquerade fully-random; }}
chain postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}\n",
        services.join(", ")
    ))
}
