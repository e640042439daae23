//! G1, the connect tax: what our programs add to `connect(2)`, over what any hook adds.

pub(super) mod calls;
pub(super) mod fleet;
mod rows;

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::ops::{Add, Sub};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use isthmus_core::model::Protocol;
use serde_json::{Value, json};

use super::arena::{Arena, NOBODY_INSIDE, NOBODY_OUTSIDE};
use super::machine::{Ticks, pin};
use super::sheet::Sheet;
use super::stats::{Random, Rounds};
use crate::kernel::bpftool;
use calls::{Caller, Cost, Ending, TIMED, WARM, connected, getpeername_cost};
use fleet::{BACKEND_PORT, Fleet, Scale, Variant};

/// Rounds of each case unless asked otherwise.
const ROUNDS: usize = 320;
/// The programs are loaded this often: where they lie in memory moves their cost.
const LOADS: usize = 8;
const FEW: u32 = 10;
const MANY: u32 = 10_000;

/// What clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Destination {
    /// One service.
    Hot,
    /// A random one of all services, each time.
    Wide,
    /// No service, outside the service range.
    Outside,
    /// No service, inside the service range: the second look-up, whether the address is a service's.
    Inside,
    /// One service, and the client resets the connection: the kernel reports an error on both its ends.
    Reset,
    /// One service of which every backend refuses: each failure is held against its backend.
    Dead,
    /// A connected socket's `getpeername`.
    Getpeername,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Case {
    protocol: Protocol,
    services: u32,
    destination: Destination,
}

impl Case {
    fn name(self) -> String {
        let (protocol, services) = (
            if self.protocol == Protocol::Udp {
                "UDP"
            } else {
                "TCP"
            },
            self.services,
        );
        let shown = if services == MANY { "10,000" } else { "10" };
        match self.destination {
            Destination::Hot => format!("{protocol} connect, one of {shown} services"),
            Destination::Wide => format!("{protocol} connect, random among {shown} services"),
            Destination::Outside => format!("{protocol} connect, no service"),
            Destination::Inside => format!("{protocol} connect, no service but in --service-cidr"),
            Destination::Reset => format!("{protocol} socket to reset, one of {shown} services"),
            Destination::Dead => format!("{protocol} connect refused by one of {shown} services"),
            Destination::Getpeername => format!("getpeername, {protocol} socket of a service"),
        }
    }

    fn variants(self) -> &'static [Variant] {
        match self.destination {
            Destination::Hot | Destination::Wide => &Variant::ORDERLY,
            Destination::Reset | Destination::Dead => &Variant::ALL,
            _ => &[Variant::Bare, Variant::Trivial, Variant::Ours],
        }
    }

    /// The place of a variant in a round.
    fn place(self, variant: Variant) -> usize {
        let place = self.variants().iter().position(|v| *v == variant);
        place.unwrap_or(0)
    }

    /// What a load of the programs measures, by the fleet that serves it.
    fn fleets() -> [Vec<Self>; 5] {
        // In maps of its own: whether the client stands, and is believed, follows from what it did before.
        let dead = Self {
            protocol: Protocol::Tcp,
            services: MANY,
            destination: Destination::Dead,
        };
        [
            Self::of(Protocol::Tcp, FEW),
            Self::of(Protocol::Udp, FEW),
            Self::of(Protocol::Tcp, MANY),
            vec![dead],
            Self::of(Protocol::Udp, MANY),
        ]
    }

    /// Cases that one fleet serves.
    fn of(protocol: Protocol, services: u32) -> Vec<Self> {
        use Destination::{Getpeername, Hot, Inside, Outside, Reset, Wide};
        let destinations: &[Destination] = match (protocol, services) {
            (Protocol::Udp, MANY) => &[Hot, Wide, Outside, Inside, Getpeername],
            (_, MANY) => &[Hot, Reset, Wide, Outside, Inside],
            _ => &[Hot, Wide],
        };
        let case = |&destination| Self {
            protocol,
            services,
            destination,
        };
        destinations.iter().map(case).collect()
    }

    fn ending(self) -> Ending {
        match self.destination {
            Destination::Reset => Ending::Reset,
            Destination::Dead => Ending::Refused,
            _ => Ending::Closed,
        }
    }
}

/// All that was measured of a case.
#[derive(Debug)]
struct Measured {
    case: Case,
    /// Of `connect(2)`, or of `getpeername(2)`.
    call: Rounds,
    /// From `socket(2)` to the last `close(2)`.
    cycle: Rounds,
}

pub fn run(batches: Option<usize>) -> Result<Sheet> {
    let rounds = batches.unwrap_or(ROUNDS).max(2);
    let loads = LOADS.min(rounds / 2);
    let arena = Arena::enter()?;
    let mut bench = Bench {
        arena: &arena,
        cpu: pin()?,
        random: Random::new(2026),
        discarded: 0,
    };
    let mut measured: Vec<Measured> = Vec::new();
    for load in 0..loads {
        expect_bare()?;
        let share = (load + 1) * rounds / loads - load * rounds / loads;
        for cases in Case::fleets() {
            bench.fleet(&cases, share, &mut measured)?;
        }
    }
    let batch = format!(
        "{rounds} rounds of interleaved batches in one process, over {loads} loads of the programs, pinned to {}; a batch is {TIMED} \
         fresh sockets, after {WARM} untimed ones, with the programs attached for it alone; both ends in one thread on loopback; \
         its value is the median by the clock (two readings a call, in every variant alike), for this measures without an \
         instruction counter; ours are all programs, those on tracepoints too, and the outcome is what they cost without those; who is \
         refused is the only client of a service of which all four backends refuse, where nothing may be ejected: they are closed to \
         the client, so each draw looks at all of them and takes one all the same; a reset is by the client, and the kernel reports \
         it at both ends; figures are the 10th percentile of the batches, [95% bootstrap interval over loads and rounds]; \
         {} rounds were thrown away for stolen time",
        bench.cpu, bench.discarded
    );
    Ok(Sheet {
        title: "what our programs add to connect(), over what a trivial hook adds",
        method: batch,
        rows: rows::rows(&measured),
        raw: measured.iter().map(Measured::raw).collect(),
    })
}

/// A program on one of these hooks, in whatever cgroup, switches the hook on for the whole machine: then every connect
/// pays for the most part of it, and there is no "no program" to compare with.
pub(super) fn expect_bare() -> Result<()> {
    const HOOKS: [&str; 2] = ["cgroup_inet4_connect", "cgroup_inet4_getpeername"];
    let links = bpftool(&["link", "show"])?;
    let links = links.as_array().into_iter().flatten();
    let of_the_hooks = |link: &&Value| HOOKS.iter().any(|hook| link["attach_type"] == *hook);
    let cgroups: BTreeSet<u64> = links
        .filter(of_the_hooks)
        .filter_map(|link| link["cgroup_id"].as_u64())
        .collect();
    ensure!(
        cgroups.is_empty(),
        "programs hang on the connect hooks of {} cgroups of this machine, so the bare kernel cannot be measured: end labs \
         (`cargo xtask lab status`) and agents (`isthmus-agent cleanup`) first",
        cgroups.len()
    );
    Ok(())
}

struct Bench<'a> {
    arena: &'a Arena,
    /// As `/proc/stat` names it.
    cpu: String,
    random: Random,
    discarded: usize,
}

impl Bench<'_> {
    fn fleet(&mut self, cases: &[Case], rounds: usize, measured: &mut Vec<Measured>) -> Result<()> {
        let Some(&Case {
            protocol, services, ..
        }) = cases.first()
        else {
            return Ok(());
        };
        let scale = Scale::of(services);
        let fleet = Fleet::build(self.arena, scale, protocol)
            .with_context(|| format!("{services} services over {protocol:?}"))?;
        for &case in cases {
            let caller = Caller::ending(protocol, case.ending())?;
            let before = Counts::of(&fleet);
            let (call, cycle, made) = self.case(case, &fleet, &caller, rounds)?;
            let counted = Counts::of(&fleet) - before;
            ensure!(
                counted == made,
                "{}: {made:?} were made to services, {counted:?} counted",
                case.name()
            );
            let closed = if case.destination == Destination::Dead {
                scale.each as usize
            } else {
                0
            };
            ensure!(
                fleet.closed() == closed,
                "{}: {} backends are closed to the client, not {closed}",
                case.name(),
                fleet.closed()
            );
            let known = measured.iter().position(|m| m.case == case);
            let place = known.unwrap_or_else(|| {
                measured.push(Measured {
                    case,
                    call: Rounds::default(),
                    cycle: Rounds::default(),
                });
                measured.len() - 1
            });
            measured[place].call.push_load(call);
            measured[place].cycle.push_load(cycle);
        }
        Ok(())
    }

    /// Rounds of one case, and how many connects to services were made in them.
    #[expect(clippy::type_complexity, reason = "two tables of rounds, and counts")]
    fn case(
        &mut self,
        case: Case,
        fleet: &Fleet<'_>,
        caller: &Caller,
        rounds: usize,
    ) -> Result<(Vec<Vec<f64>>, Vec<Vec<f64>>, Counts)> {
        let variants = case.variants();
        let (mut calls, mut cycles, mut made) = (Vec::new(), Vec::new(), Counts::default());
        let mut spare = rounds;
        while calls.len() < rounds {
            let steal = Ticks::read(&self.cpu)?.stolen;
            let mut call = vec![0.0; variants.len()];
            let mut cycle = vec![0.0; variants.len()];
            for turn in 0..variants.len() {
                // Each variant comes first, last and after each other as often.
                let place = (turn + calls.len()) % variants.len();
                let cost = self.batch(case, variants[place], fleet, caller)?;
                (call[place], cycle[place]) = (cost.connect, cost.cycle);
                made = made + to_services(case, variants[place]);
            }
            if spare > 0 && Ticks::read(&self.cpu)?.stolen != steal {
                spare -= 1;
                self.discarded += 1;
                continue;
            }
            calls.push(call);
            cycles.push(cycle);
        }
        Ok((calls, cycles, made))
    }

    fn batch(
        &mut self,
        case: Case,
        variant: Variant,
        fleet: &Fleet<'_>,
        caller: &Caller,
    ) -> Result<Cost> {
        let count = WARM + TIMED;
        let nobody = |address: &str| -> Result<Vec<SocketAddrV4>> {
            Ok(vec![
                SocketAddrV4::new(address.parse()?, BACKEND_PORT);
                count
            ])
        };
        let targets = match case.destination {
            Destination::Getpeername => return self.getpeername(variant, fleet),
            Destination::Hot | Destination::Reset | Destination::Dead => {
                fleet.targets(variant, false, &mut self.random, count)
            }
            Destination::Wide => fleet.targets(variant, true, &mut self.random, count),
            Destination::Outside => nobody(NOBODY_OUTSIDE)?,
            Destination::Inside => nobody(NOBODY_INSIDE)?,
        };
        let links = fleet.attach(variant)?;
        let cost = caller.batch(&targets)?;
        drop(links);
        Ok(cost)
    }

    /// Of a socket that our programs translated.
    fn getpeername(&mut self, variant: Variant, fleet: &Fleet<'_>) -> Result<Cost> {
        let service = fleet.targets(Variant::Ours, false, &mut self.random, 1)[0];
        let socket: OwnedFd = {
            let _links = fleet.attach(Variant::Ours)?;
            connected(&service)?
        };
        let wanted = if variant == Variant::Ours {
            service
        } else {
            backend_of(&socket)?
        };
        let _links = fleet.attach_getpeername(variant)?;
        let cost = getpeername_cost(&socket, &wanted)?;
        Ok(Cost {
            connect: cost,
            cycle: cost,
        })
    }
}

/// The peer as the kernel has it, while no program shows another.
fn backend_of(socket: &OwnedFd) -> Result<SocketAddrV4> {
    let peer = rustix::net::getpeername(socket)?.context("a connected socket has a peer")?;
    Ok(SocketAddrV4::try_from(peer)?)
}

/// Connects to services, as our programs count them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Counts {
    translated: u64,
    /// Of those, where the tracepoints saw it.
    refused: u64,
}

impl Counts {
    fn of(fleet: &Fleet<'_>) -> Self {
        Self {
            translated: fleet.sent(),
            refused: fleet.refused(),
        }
    }
}

impl Add for Counts {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            translated: self.translated + other.translated,
            refused: self.refused + other.refused,
        }
    }
}

impl Sub for Counts {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            translated: self.translated - other.translated,
            refused: self.refused - other.refused,
        }
    }
}

/// What our programs must have counted of one batch.
fn to_services(case: Case, variant: Variant) -> Counts {
    use Destination::{Dead, Getpeername, Hot, Reset, Wide};
    let all = (WARM + TIMED) as u64;
    let translated = match case.destination {
        // Its socket is translated by ours, whatever is measured then.
        Getpeername => 1,
        Hot | Wide | Reset | Dead if variant.translates() => all,
        _ => 0,
    };
    let refused = match case.destination {
        Dead if variant == Variant::Ours => all,
        _ => 0,
    };
    Counts {
        translated,
        refused,
    }
}

impl Measured {
    fn raw(&self) -> Value {
        let variants: Vec<&str> = self.case.variants().iter().map(|v| v.name()).collect();
        json!({
            "case": self.case.name(),
            "variants": variants,
            "unit": "nanoseconds; loads of rounds of variants",
            "call": self.call,
            "cycle": self.cycle,
        })
    }
}
