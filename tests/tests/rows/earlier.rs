//! An upgrade from an earlier ABI: its programs stand on links that it pinned, over maps that it pinned, and sockets were
//! connected through them. The next agent takes the links over, and every socket goes on remembering its service.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_abi::{BackendRow, Slot, SocketRow, SpillKey};
use isthmus_agent::datapath::KernelHash;
use isthmus_core::model::Protocol;
use isthmus_core::table::TableBackend;
use isthmus_test_programs::Earlier;
use nix::{getsockopt_impl, libc, sockopt_impl};
use socket2::{Domain, Socket, Type};

use super::Row;
use super::connect::{Kind, connect, open, peer};
use super::world::{SERVICE_PORT, SERVICE4, SERVICE6, World};

/// The ABI before this one, and its programs, built from this repository when it was current; the paths of their
/// sources are blanked.
const ABI: u32 = 4;
const OBJECT: &[u8] = include_bytes!("../../fixtures/datapath-abi4.o");
const HOOKS: usize = 11;

/// Enough that some mostly meet in one row of `sockets`, and the older ones' records move to the hash.
const CROWD: usize = 3000;

pub fn rows() -> Vec<Row> {
    vec![(
        "an earlier ABI: its links are taken over, sockets that it connected still remember"
            .to_owned(),
        Box::new(upgrade),
    )]
}

/// A socket that was connected under it.
struct Old {
    kind: Kind,
    socket: Socket,
    /// The other end, of TCP.
    server: Option<TcpStream>,
}

fn upgrade(world: &mut World) -> anyhow::Result<()> {
    world.stop()?;
    let config = world.config();
    let cgroup = config.cgroup.context("the rows' cgroup")?;
    let earlier = Earlier::attach(OBJECT, ABI, &config.bpffs, &cgroup)?;
    fill(&earlier, world)?;
    let links = earlier.links().to_vec();
    ensure!(links.len() == HOOKS, "not all hooks: {links:?}");
    let old = connect_all(world)?;
    let crowd = (0..CROWD)
        .map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.connect(&SocketAddr::from((SERVICE4, SERVICE_PORT)).into())?;
            Ok(socket)
        })
        .collect::<std::io::Result<Vec<_>>>()?;

    let flow = UdpSocket::bind(("0.0.0.0", 0))?;
    flow.set_read_timeout(Some(Duration::from_secs(2)))?;
    flow.send_to(b"hello", (SERVICE4, SERVICE_PORT))?;
    expect_answer(world, &flow)?;

    // Its agent ends. What it left goes on.
    drop(earlier);
    expect_remembered(&old, &crowd).context("with no agent")?;

    // Asked under that ABI, answered under this one.
    flow.send_to(b"hello", (SERVICE4, SERVICE_PORT))?;
    world.start(|_| ())?;
    expect_answer(world, &flow).context("after the upgrade")?;
    expect_remembered(&old, &crowd).context("after the upgrade")?;
    tell_spilled(world, &crowd)?;
    expect_taken_over(world, &links)?;
    let left = std::fs::read_dir(config.bpffs)?.flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    ensure!(
        left.iter().all(|name| *name != *format!("v{ABI}-earlier")),
        "its maps stay: {left:?}"
    );
    carry(old)?;
    // The next connect of such a socket is its own, also where its record had moved.
    let backend = world.backend4;
    for (nth, socket) in crowd.iter().enumerate() {
        socket.connect(&backend.into())?;
        let seen = peer(socket)?;
        ensure!(seen == backend, "socket {nth} sees {seen}, not {backend}");
    }
    Ok(())
}

/// The datagram without a connect that this socket sent is answered, as its service's.
fn expect_answer(world: &World, flow: &UdpSocket) -> anyhow::Result<()> {
    world.answer_datagram(world.backend4, flow, b"there")?;
    let mut bytes = [0; 16];
    let (len, from) = flow.recv_from(&mut bytes).context("no answer")?;
    let service = SocketAddr::from((SERVICE4, SERVICE_PORT));
    ensure!(
        &bytes[..len] == b"there" && from == service,
        "{:?} from {from}, not {service}",
        &bytes[..len]
    );
    Ok(())
}

/// One socket of each kind and protocol.
fn connect_all(world: &World) -> anyhow::Result<Vec<Old>> {
    let mut old = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for kind in Kind::ALL {
            if kind.is_fast_open() || !kind.exists(protocol) {
                continue;
            }
            let socket = open(kind, protocol)?;
            connect(&socket, kind, kind.service())
                .with_context(|| format!("{protocol} {kind:?} under ABI {ABI}"))?;
            socket.set_nonblocking(false)?;
            let backend = kind.backend(world);
            let server = match protocol {
                Protocol::Tcp => Some(world.accept(backend)?),
                _ => None,
            };
            old.push(Old {
                kind,
                socket,
                server,
            });
        }
    }
    Ok(old)
}

fn expect_remembered(old: &[Old], crowd: &[Socket]) -> anyhow::Result<()> {
    for Old { kind, socket, .. } in old {
        let (seen, service) = (peer(socket)?, kind.service());
        ensure!(
            seen == service,
            "{kind:?} of ABI {ABI} sees {seen}, not {service}"
        );
    }
    let service = SocketAddr::from((SERVICE4, SERVICE_PORT));
    for (nth, socket) in crowd.iter().enumerate() {
        let seen = peer(socket)?;
        ensure!(
            seen == service,
            "socket {nth} of {CROWD} sees {seen}, not {service}"
        );
    }
    Ok(())
}

sockopt_impl!(Cookie, GetOnly, libc::SOL_SOCKET, libc::SO_COOKIE, u64);

/// Says how many of these sockets' records stand in the hash, where that ABI put them.
fn tell_spilled(world: &World, crowd: &[Socket]) -> anyhow::Result<()> {
    let cookies = crowd
        .iter()
        .map(|socket| nix::sys::socket::getsockopt(socket, Cookie))
        .collect::<nix::Result<BTreeSet<u64>>>()?;
    let table: KernelHash<SpillKey, SocketRow> = world.datapath().hash("sockets_spilled", "")?;
    let mut spilled = 0;
    table.for_each(&mut |key, _| spilled += usize::from(cookies.contains(&key.cookie)))?;
    // Where sockets lie, and so whether two of them meet, is the kernel's choice.
    println!("    {spilled} of {CROWD} records had moved to the hash");
    Ok(())
}

/// Links on the cgroup are the same ones, with one program of ours each. A tracepoint's link is for one program.
fn expect_taken_over(world: &World, links: &[(&str, u32)]) -> anyhow::Result<()> {
    for hook in world.datapath().hooks() {
        let ours: Vec<Option<u32>> = hook.programs.iter().map(|p| p.link_id).collect();
        ensure!(
            ours.len() == 1 && ours[0].is_some(),
            "{}: one program of ours: {ours:?}",
            hook.name
        );
        let before = links.iter().find(|(name, _)| *name == hook.name);
        if let Some((name, id)) = before
            && hook.attach_name() != "trace_raw_tp"
        {
            ensure!(ours == [Some(*id)], "{name}: link {id} became {ours:?}");
        }
    }
    Ok(())
}

/// Bytes go both ways on what was connected before.
fn carry(old: Vec<Old>) -> anyhow::Result<()> {
    for Old {
        kind,
        mut socket,
        server,
    } in old
    {
        let Some(mut server) = server else {
            continue;
        };
        let mut bytes = [0; 5];
        socket.write_all(b"hello")?;
        server.read_exact(&mut bytes)?;
        server.write_all(b"there")?;
        socket.read_exact(&mut bytes)?;
        ensure!(&bytes == b"there", "{kind:?}: {bytes:?}");
    }
    Ok(())
}

/// The rows' services, of one backend each, as that ABI has them.
fn fill(earlier: &Earlier, world: &World) -> anyhow::Result<()> {
    let (v4, v6) = (world.backend4, world.backend6);
    let settings = isthmus_abi::Settings {
        abi_version: ABI,
        refuse_errno: 111,
        client_default: isthmus_abi::client::TRANSLATE,
        client_rows: 0,
        refuse_unknown_port: 0,
        passive_health: 1,
        service_cidrs4: [isthmus_abi::Cidr4::UNUSED; isthmus_abi::CIDRS_MAX],
        service_cidrs6: [isthmus_abi::Cidr6::UNUSED; isthmus_abi::CIDRS_MAX],
    };
    earlier.put("settings", &0_u32, &settings)?;
    let services: [(IpAddr, SocketAddr); 2] = [(SERVICE4.into(), v4), (SERVICE6.into(), v6)];
    for (service, (address, backend)) in (10..).step_by(2).zip(services) {
        for (protocol, index) in [(TCP, service), (UDP, service + 1)] {
            fill_service(earlier, address, backend, protocol, index)?;
        }
    }
    Ok(())
}

/// Protocols as it numbers them.
const TCP: u16 = 6;
const UDP: u16 = 17;

fn fill_service(
    earlier: &Earlier,
    address: IpAddr,
    backend: SocketAddr,
    protocol: u16,
    index: u32,
) -> anyhow::Result<()> {
    let (frontends, mut key) = match address {
        IpAddr::V4(v4) => ("frontends4", v4.octets().to_vec()),
        IpAddr::V6(v6) => ("frontends6", v6.octets().to_vec()),
    };
    key.extend(SERVICE_PORT.to_be_bytes());
    key.extend(protocol.to_ne_bytes());
    earlier.put(frontends, key.as_slice(), &[index, 0])?;
    let row = BackendRow {
        address: isthmus_core::model::Address::from(backend.ip()).words(),
        port: backend.port().to_be(),
        service: index,
        generation: 1,
        state: isthmus_abi::backend_state::LIVE,
        protocol: u8::try_from(protocol)?,
        ..BackendRow::default()
    };
    // A row's first half, and its health.
    earlier.put("backends", &index, &[row, BackendRow::default()])?;
    earlier.put("slots", &index, &Slot::new(index, index))?;
    let mut service = [0_u64; 8];
    service[0] = u64::from(index) << 32 | 1 << 24 | 1;
    earlier.put("services", &index, &service)
}
