//! What will be loaded, pinned and attached, as a value: worked out without touching the kernel.

use std::path::{Path, PathBuf};

use ipnet::IpNet;
use isthmus_abi::{ABI_VERSION, CIDRS_MAX, Cidr4, Cidr6, Settings, client};
use zerocopy::IntoBytes;

/// Sizes of the maps, from the flags `--lb-*-max`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSizes {
    pub services: u32,
    pub backends: u32,
    pub ring_slots: u32,
    pub affinity: u32,
}

/// Everything that decides what the datapath is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatapathConfig {
    /// This agent's own directory in a bpffs.
    pub bpffs: PathBuf,
    /// The cgroup whose sockets are served; `None` for the root of pid 1's cgroup namespace.
    pub cgroup: Option<PathBuf>,
    pub sizes: MapSizes,
    pub service_cidrs: Vec<IpNet>,
    /// Translate for every client, or (`false`) for those of the node's own network namespace only.
    pub translate_pods: bool,
    /// Refuse unknown ports of service addresses inside the CIDRs.
    pub refuse_unknown_port: bool,
    /// Errno of refused connects: `ECONNREFUSED` or `EHOSTUNREACH`.
    pub refuse_errno: u32,
    /// Failures eject backends.
    pub passive_health: bool,
}

/// How long a map lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// As long as its ABI version and sizes are in use.
    Version,
    /// As long as sockets remember: over every version.
    Node,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapPlan {
    pub name: &'static str,
    pub max_entries: Option<u32>,
    pub lifetime: Lifetime,
    pub pin: PathBuf,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgramPlan {
    /// The program's name in the object, and its link's; a tracepoint's name too.
    pub name: &'static str,
    pub hook: HookKind,
    pub pin: PathBuf,
}

/// What a program is attached to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookKind {
    /// The cgroup's hook of this `enum bpf_attach_type`. The link takes another program in place.
    Cgroup(u32),
    /// A tracepoint of the whole machine. The link is for one program: a new one comes before the old one goes, and what
    /// both see is counted once.
    Tracepoint,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadPlan {
    /// Where the maps of this version and these sizes are pinned.
    pub version_dir: PathBuf,
    pub links_dir: PathBuf,
    pub maps: Vec<MapPlan>,
    /// In the order in which programs are replaced: those that read what a socket remembers first, those that write
    /// it last, so that nothing is written that its reader does not know.
    pub programs: Vec<ProgramPlan>,
}

/// Starts the names of version directories, so that others can be told apart and removed.
pub const VERSION_PREFIX: &str = "v";

/// Hooks, in `enum bpf_attach_type`'s numbers (linux/bpf.h).
const PROGRAMS: [(&str, HookKind); 11] = [
    ("getpeername4", HookKind::Cgroup(29)),
    ("getpeername6", HookKind::Cgroup(30)),
    ("recvmsg4", HookKind::Cgroup(19)),
    ("recvmsg6", HookKind::Cgroup(20)),
    ("sock_release", HookKind::Cgroup(34)),
    ("inet_sk_error_report", HookKind::Tracepoint),
    ("tcp_retransmit_skb", HookKind::Tracepoint),
    ("connect4", HookKind::Cgroup(10)),
    ("connect6", HookKind::Cgroup(11)),
    ("sendmsg4", HookKind::Cgroup(14)),
    ("sendmsg6", HookKind::Cgroup(15)),
];

impl LoadPlan {
    #[must_use]
    pub fn new(bpffs: &Path, sizes: MapSizes) -> Self {
        let MapSizes {
            services,
            backends,
            ring_slots,
            affinity,
        } = sizes;
        let version_dir = bpffs.join(format!(
            "{VERSION_PREFIX}{ABI_VERSION}-{services}-{backends}-{ring_slots}-{affinity}"
        ));
        let links_dir = bpffs.join("links");
        // A service port has a frontend, and its address a row of its own.
        let frontends = services.saturating_mul(2);
        let version = |name, max_entries| MapPlan {
            name,
            max_entries,
            lifetime: Lifetime::Version,
            pin: version_dir.join(name),
        };
        let node = |name| MapPlan {
            name,
            max_entries: None,
            lifetime: Lifetime::Node,
            pin: bpffs.join(name),
        };
        let maps = vec![
            version("settings", None),
            version("clients", None),
            version("frontends4", Some(frontends)),
            version("frontends6", Some(frontends)),
            version("services", Some(services)),
            version("slots", Some(ring_slots)),
            version("backends", Some(backends)),
            version("backend_failures", Some(backends)),
            version("watches", None),
            version("affinity", Some(affinity)),
            version("events", None),
            version("scratch", None),
            version("counters", None),
            node("sockets"),
            node("sockets_spilled"),
            node("flows"),
        ];
        let programs = PROGRAMS
            .map(|(name, hook)| ProgramPlan {
                name,
                hook,
                pin: links_dir.join(name),
            })
            .to_vec();
        Self {
            version_dir,
            links_dir,
            maps,
            programs,
        }
    }
}

/// Why `--service-cidr` cannot be put into the datapath's settings.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "--service-cidr names {count} {family} ranges; at most {CIDRS_MAX} fit: join them, or use --services=global"
)]
pub struct TooManyCidrs {
    count: usize,
    family: &'static str,
}

/// The row of `settings`, but for the clients, which the loader adds.
///
/// # Errors
/// If there are more CIDRs of a family than the row holds.
pub fn settings(config: &DatapathConfig) -> Result<Settings, TooManyCidrs> {
    let mut cidrs4 = Vec::new();
    let mut cidrs6 = Vec::new();
    for cidr in &config.service_cidrs {
        match cidr {
            IpNet::V4(net) => cidrs4.push(Cidr4 {
                base: u32::from(net.network()).to_be(),
                mask: u32::from(net.netmask()).to_be(),
            }),
            IpNet::V6(net) => {
                cidrs6.push(Cidr6 {
                    base: words(net.network().octets()),
                    mask: words(net.netmask().octets()),
                });
            }
        }
    }
    Ok(Settings {
        abi_version: ABI_VERSION,
        refuse_errno: config.refuse_errno,
        client_default: if config.translate_pods {
            client::TRANSLATE
        } else {
            client::PASS
        },
        client_rows: u32::from(!config.translate_pods),
        refuse_unknown_port: u32::from(config.refuse_unknown_port),
        passive_health: u32::from(config.passive_health),
        service_cidrs4: padded(cidrs4, Cidr4::UNUSED, "IPv4")?,
        service_cidrs6: padded(cidrs6, Cidr6::UNUSED, "IPv6")?,
    })
}

fn words(octets: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    words.as_mut_bytes().copy_from_slice(&octets);
    words
}

fn padded<T: Copy>(
    mut cidrs: Vec<T>,
    unused: T,
    family: &'static str,
) -> Result<[T; CIDRS_MAX], TooManyCidrs> {
    let count = cidrs.len();
    cidrs.resize(count.max(CIDRS_MAX), unused);
    <[T; CIDRS_MAX]>::try_from(cidrs.as_slice()).map_err(|_| TooManyCidrs { count, family })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    fn config(cidrs: &[&str]) -> DatapathConfig {
        DatapathConfig {
            bpffs: "/sys/fs/bpf/isthmus/n".into(),
            cgroup: None,
            sizes: MapSizes {
                services: 16,
                backends: 32,
                ring_slots: 64,
                affinity: 128,
            },
            service_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            translate_pods: true,
            refuse_unknown_port: true,
            refuse_errno: 111,
            passive_health: true,
        }
    }

    #[test]
    fn sizes_name_the_version_directory() {
        let plan = LoadPlan::new(Path::new("/b"), config(&[]).sizes);
        assert_eq!(
            plan.version_dir,
            Path::new(&format!("/b/v{ABI_VERSION}-16-32-64-128"))
        );
        let rows = plan.maps.iter().find(|map| map.name == "services").unwrap();
        assert_eq!(
            (rows.max_entries, rows.lifetime),
            (Some(16), Lifetime::Version)
        );
        let sockets = plan.maps.iter().find(|map| map.name == "sockets").unwrap();
        assert_eq!(
            (sockets.pin.as_path(), sockets.lifetime),
            (Path::new("/b/sockets"), Lifetime::Node)
        );
    }

    #[test]
    fn readers_are_replaced_before_writers() {
        let plan = LoadPlan::new(Path::new("/b"), config(&[]).sizes);
        let place = |name| {
            plan.programs
                .iter()
                .position(|program| program.name == name)
                .unwrap()
        };
        for reader in ["getpeername4", "getpeername6", "recvmsg4", "recvmsg6"] {
            for writer in ["connect4", "connect6", "sendmsg4", "sendmsg6"] {
                assert!(place(reader) < place(writer), "{reader}, {writer}");
            }
        }
    }

    #[test]
    fn cidrs_become_masks() {
        let row = settings(&config(&["10.96.0.0/12", "fd00:10:96::/108"])).unwrap();
        assert_eq!(row.service_cidrs4[0].base, 0x0a60_0000_u32.to_be());
        assert_eq!(row.service_cidrs4[0].mask, 0xfff0_0000_u32.to_be());
        assert_eq!(row.service_cidrs4[1], Cidr4::UNUSED);
        assert_eq!(row.service_cidrs6[0].mask[3], 0xfff0_0000_u32.to_be());
    }

    #[test]
    fn too_many_cidrs_say_so() {
        let error = settings(&config(&[
            "10.0.0.0/24",
            "10.0.1.0/24",
            "10.0.2.0/24",
            "10.0.3.0/24",
            "10.0.4.0/24",
        ]));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("--service-cidr names 5 IPv4 ranges")
        );
    }
}
