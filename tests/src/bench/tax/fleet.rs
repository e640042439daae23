//! A datapath with services in its maps, and the sets of programs that are compared.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use isthmus_abi::{
    BackendHealthRow, BackendRow, Frontend4Key, FrontendValue, NetPort, Ring, ScopeProtocol, Slot,
    backend_state,
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
    /// Ours, but no row is found for any socket.
    Forgetful,
    Ours,
}

impl Variant {
    pub const ALL: [Self; 5] = [
        Self::Bare,
        Self::Trivial,
        Self::Asking,
        Self::Forgetful,
        Self::Ours,
    ];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Trivial => "trivial",
            Self::Asking => "asking",
            Self::Forgetful => "forgetful",
            Self::Ours => "ours",
        }
    }

    /// Clients name the service and are sent to a backend; otherwise they name the backend themselves.
    fn translates(self) -> bool {
        matches!(self, Self::Forgetful | Self::Ours)
    }
}

#[derive(Debug)]
pub struct Fleet<'a> {
    arena: &'a Arena,
    scale: Scale,
    /// In the order of [`Variant::ALL`].
    programs: [Vec<Program>; 5],
    connects: MappedArray<BackendHealthRow>,
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
        let programs = [
            Vec::new(),
            vec![Program::trivial(CONNECT4)?],
            vec![
                Program::asking(CONNECT4)
                    .context("a program that asks for cookie and MPTCP socket")?,
            ],
            Program::forgetful(datapath.plan())?,
            Program::ours(datapath.plan())?,
        ];
        let connects = datapath.array::<BackendHealthRow>()?;
        // Programs hold their maps; the pins have done their work.
        drop(datapath);
        cleanup(arena.pins())?;
        Ok(Self {
            arena,
            scale,
            programs,
            connects,
        })
    }

    /// Puts a variant's programs on their hooks until the links are dropped; ours on the tracepoints too.
    pub fn attach(&self, variant: Variant) -> Result<Vec<OwnedFd>> {
        let programs = &self.programs[variant as usize];
        let links = programs
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
        let readers = self.programs[variant as usize]
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
