//! A datapath with services in its maps, and the sets of programs that are compared.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use isthmus_abi::{
    BackendFailuresRow, BackendHealthRow, BackendRow, Frontend4Key, FrontendValue, HealthState,
    NetPort, Ring, ScopeProtocol, Slot, backend_state, health_kind,
};
use isthmus_agent::datapath::{Datapath, DatapathConfig, HookKind, MapSizes, MappedArray, cleanup};
use isthmus_core::model::{Address, Protocol};
use isthmus_core::table::Tables;
use isthmus_test_programs::{CONNECT4, GETPEERNAME4, Program};

use crate::bench::arena::{Arena, BACKENDS, SERVICE_CIDR};
use crate::bench::stats::Random;

/// How much is in the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scale {
    pub services: u32,
    /// Backends of each.
    pub each: u32,
}

impl Scale {
    /// Of four backends each.
    #[must_use]
    pub const fn of(services: u32) -> Self {
        Self { services, each: 4 }
    }

    /// The agent's defaults, or as much as is needed.
    fn sizes(self) -> MapSizes {
        let room = |default: u32, wanted: u32| default.max(wanted.next_power_of_two());
        let backends = self.services * self.each;
        MapSizes {
            services: room(65536, self.services),
            backends: room(65536, backends),
            ring_slots: room(262_144, backends),
            affinity: 65536,
        }
    }
}

/// Services answer here, their backends on another port: a connection that was not translated is refused.
pub const SERVICE_PORT: u16 = 80;
pub const BACKEND_PORT: u16 = 8080;
/// What runs in `connect(2)` during a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// No program.
    Bare,
    /// A program that lets every call pass.
    Trivial,
    /// One that only asks for what the carrier must know of a socket.
    Asking,
    /// Ours, but no row is found for any socket, and nothing is on the tracepoints.
    Forgetful,
    /// Ours, but nothing is on the tracepoints: no failure is heard of.
    Deaf,
    Ours,
}

impl Variant {
    /// Of connects that the tracepoints never see.
    pub const ORDERLY: [Self; 5] = [
        Self::Bare,
        Self::Trivial,
        Self::Asking,
        Self::Forgetful,
        Self::Ours,
    ];
    pub const ALL: [Self; 6] = [
        Self::Bare,
        Self::Trivial,
        Self::Asking,
        Self::Forgetful,
        Self::Deaf,
        Self::Ours,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Trivial => "trivial",
            Self::Asking => "asking",
            Self::Forgetful => "forgetful",
            Self::Deaf => "deaf",
            Self::Ours => "ours",
        }
    }

    /// Clients name the service and are sent to a backend; otherwise they name the backend themselves.
    #[must_use]
    pub fn translates(self) -> bool {
        matches!(self, Self::Forgetful | Self::Deaf | Self::Ours)
    }
}

#[derive(Debug)]
pub struct Fleet<'a> {
    arena: &'a Arena,
    scale: Scale,
    trivial: Vec<Program>,
    asking: Vec<Program>,
    forgetful: Vec<Program>,
    ours: Vec<Program>,
    connects: MappedArray<BackendHealthRow>,
    failures: MappedArray<BackendFailuresRow>,
}

impl<'a> Fleet<'a> {
    /// Loads every program anew and fills new maps.
    pub fn build(arena: &'a Arena, scale: Scale, protocol: Protocol) -> Result<Self> {
        let config = DatapathConfig {
            bpffs: arena.pins().to_owned(),
            cgroup: Some(arena.cgroup().to_owned()),
            sizes: scale.sizes(),
            service_cidrs: vec![SERVICE_CIDR.parse()?],
            translate_pods: true,
            refuse_unknown_port: true,
            refuse_errno: nix::libc::ECONNREFUSED.cast_unsigned(),
            passive_health: true,
        };
        let datapath = Datapath::open(&config)?;
        fill(&mut datapath.tables()?, scale, protocol)?;
        let asking =
            Program::asking(CONNECT4).context("a program that asks for cookie and MPTCP socket")?;
        let fleet = Self {
            arena,
            scale,
            trivial: vec![Program::trivial(CONNECT4)?],
            asking: vec![asking],
            forgetful: Program::forgetful(datapath.plan())?,
            ours: Program::ours(datapath.plan())?,
            connects: datapath.array::<BackendHealthRow>()?,
            failures: datapath.array::<BackendFailuresRow>()?,
        };
        // Programs hold their maps; the pins have done their work.
        drop(datapath);
        cleanup(arena.pins())?;
        Ok(fleet)
    }

    fn programs(&self, variant: Variant) -> &[Program] {
        match variant {
            Variant::Bare => &[],
            Variant::Trivial => &self.trivial,
            Variant::Asking => &self.asking,
            Variant::Forgetful => &self.forgetful,
            Variant::Deaf | Variant::Ours => &self.ours,
        }
    }

    /// Puts a variant's programs on their hooks until the links are dropped; ours on the tracepoints too.
    pub fn attach(&self, variant: Variant) -> Result<Vec<OwnedFd>> {
        let links = self
            .programs(variant)
            .iter()
            .filter(|program| variant == Variant::Ours || program.hook() != HookKind::Tracepoint)
            .map(|program| program.attach(self.arena.cgroup_fd()));
        Ok(links.collect::<Result<_, _>>()?)
    }

    /// The same for `getpeername(2)` alone.
    pub fn attach_getpeername(&self, variant: Variant) -> Result<Vec<OwnedFd>> {
        let cgroup = self.arena.cgroup_fd();
        if variant == Variant::Trivial {
            return Ok(vec![Program::trivial(GETPEERNAME4)?.attach(cgroup)?]);
        }
        let readers = self
            .programs(variant)
            .iter()
            .filter(|program| program.hook() == HookKind::Cgroup(GETPEERNAME4));
        Ok(readers
            .map(|program| program.attach(cgroup))
            .collect::<Result<_, _>>()?)
    }

    /// Where the clients of a batch connect to: to random ones of all services, or all to one; on average to the same
    /// backends whatever the variant.
    pub fn targets(
        &self,
        variant: Variant,
        wide: bool,
        random: &mut Random,
        count: usize,
    ) -> Vec<SocketAddrV4> {
        let Scale { services, each } = self.scale;
        let mut draw = |n: u32| u32::try_from(random.below(n as usize)).unwrap_or(0);
        (0..count)
            .map(|_| {
                let service = if wide { draw(services) } else { services / 2 };
                if variant.translates() {
                    SocketAddrV4::new(service_address(service), SERVICE_PORT)
                } else {
                    backend(service * each + draw(each))
                }
            })
            .collect()
    }

    /// Connections that our programs sent to backends.
    #[must_use]
    pub fn sent(&self) -> u64 {
        (0..self.scale.services * self.scale.each)
            .map(|id| self.connects.get(id).connects)
            .sum()
    }

    /// Of those, the ones that our programs saw refused.
    #[must_use]
    pub fn refused(&self) -> u64 {
        (0..self.scale.services * self.scale.each)
            .map(|id| self.failures.get(id).refused)
            .sum()
    }

    /// Backends that were closed to a client, and not ejected.
    #[must_use]
    pub fn closed(&self) -> usize {
        let rows = (0..self.scale.services * self.scale.each).map(|id| self.connects.get(id));
        rows.filter(|row| row.closed != 0 && HealthState(row.state).kind() == health_kind::SUSPECT)
            .count()
    }
}

#[must_use]
pub fn service_address(service: u32) -> Ipv4Addr {
    // From 10.96.1.0 on.
    Ipv4Addr::from(0x0a60_0100 + service)
}

/// Beyond so many backends, several stand at one address: what is measured are their rows.
const ADDRESSES: u32 = 1 << 17;

#[must_use]
pub fn backend(id: u32) -> SocketAddrV4 {
    let address = BACKENDS.0 + 256 + id % ADDRESSES;
    SocketAddrV4::new(Ipv4Addr::from(address), BACKEND_PORT)
}

/// In the order in which an agent writes: nothing leads to a row that is not there yet.
fn fill(tables: &mut Tables, scale: Scale, protocol: Protocol) -> Result<()> {
    let Scale { services, each } = scale;
    for service in 0..services {
        for id in service * each..(service + 1) * each {
            let at = backend(id);
            let row = BackendRow {
                address: Address::from(std::net::IpAddr::from(*at.ip())).words(),
                port: NetPort::from_host(at.port()).net(),
                cluster: 1,
                service,
                generation: 1,
                state: backend_state::LIVE,
                protocol: u8::try_from(protocol.abi())?,
                reserved: [0; 2],
            };
            tables.backends.put(id, row)?;
            tables.slots.put(id, Slot::new(id, service))?;
        }
        tables
            .rings
            .put(service, Ring::new(service * each, 1, each))?;
        let address = u32::from(service_address(service)).to_be();
        for (port, scope_protocol, service) in [
            (SERVICE_PORT, protocol.abi(), service),
            (0, ScopeProtocol::ADDRESS_ONLY, u32::MAX),
        ] {
            let key = Frontend4Key {
                address,
                port: NetPort::from_host(port),
                scope_protocol: ScopeProtocol::new(0, scope_protocol),
            };
            tables.frontends4.put(
                key,
                FrontendValue {
                    service,
                    reserved: 0,
                },
            )?;
        }
    }
    Ok(())
}
