//! Exact numbers of the datapath, recorded by kernel: what its maps cost and what the verifier walks.
//!
//! Memory is exact, for any number of CPUs; on a kernel of which nothing is recorded it is held to bounds. Instructions follow the compiler too, so another toolchain than the pinned one may walk a tenth more
//! or less; whoever changes the programs records the new number, and a reader of the history sees what it cost.

use anyhow::{Context, ensure};
use clap::CommandFactory;
use isthmus_agent::config::AgentArgs;
use isthmus_agent::datapath::{Datapath, MapSizes, cleanup};

use super::Row;
use super::world::World;

/// The sizes of the flags' defaults.
const DEFAULTS: MapSizes = MapSizes {
    services: 65536,
    backends: 65536,
    ring_slots: 262_144,
    affinity: 65536,
};

/// Most instructions that a program may cost the verifier, on any kernel.
const WALK_MAX: u32 = 12_000;

/// How a kernel counts the memory of maps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counting {
    /// By the sizes of keys and values (before Linux 6.4).
    Sizes,
    /// As allocated: hashes hold spare elements for every CPU, and so many bytes of locks besides. What describes a map takes so
    /// many bytes less than in the newest kernel that is known; where a map is made of pages, that does not show.
    Allocated { locks: u64, less: u64 },
}

/// As the newest kernel counts of which something is recorded.
const NEWEST: Counting = Counting::Allocated { locks: 0, less: 0 };

/// What is known of a kernel series.
struct Recorded {
    series: &'static str,
    counting: Counting,
    /// Instructions walked for each program, in the order of [`PROGRAMS`].
    walked: [u32; PROGRAMS.len()],
}

const PROGRAMS: [&str; 11] = [
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "sock_release",
    "inet_sk_error_report",
    "tcp_retransmit_skb",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

const RECORDED: [Recorded; 3] = [
    Recorded {
        series: "6.1",
        counting: Counting::Sizes,
        walked: [
            189, 219, 204, 226, 288, 9503, 4466, 10_919, 11_574, 6510, 6536,
        ],
    },
    Recorded {
        series: "6.12",
        counting: Counting::Allocated {
            locks: 32,
            less: 48,
        },
        walked: [
            189, 219, 239, 364, 288, 8730, 3220, 10_890, 11_318, 7127, 7192,
        ],
    },
    Recorded {
        series: "6.18",
        counting: NEWEST,
        walked: [
            184, 214, 257, 376, 284, 9031, 3271, 11_366, 11_897, 7935, 8023,
        ],
    },
];

/// A map at the defaults.
struct Memory {
    name: &'static str,
    /// Bytes by [`Counting::Sizes`].
    sizes: u64,
    /// Bytes by [`Counting::Allocated`], but for what each CPU adds.
    allocated: u64,
    /// What each possible CPU adds to it, besides locks: a spare element and a pointer, or rows of its own.
    each_cpu: u64,
    made: Made,
}

/// How a map is made, as far as its memory shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Made {
    OfPages,
    /// An array that nobody maps, or a ring buffer.
    Plain,
    Hash,
}

/// Mapped into the agent.
const fn array(name: &'static str, sizes: u64, allocated: u64) -> Memory {
    Memory {
        name,
        sizes,
        allocated,
        each_cpu: 0,
        made: Made::OfPages,
    }
}

const fn plain(name: &'static str, sizes: u64, allocated: u64, each_cpu: u64) -> Memory {
    Memory {
        name,
        sizes,
        allocated,
        each_cpu,
        made: Made::Plain,
    }
}

const fn hash(name: &'static str, sizes: u64, allocated: u64, each_cpu: u64) -> Memory {
    Memory {
        name,
        sizes,
        allocated,
        each_cpu,
        made: Made::Hash,
    }
}

const MEMORY: [Memory; 16] = [
    plain("settings", 4096, 496, 0),
    hash("clients", 65_536, 328_576, 72),
    hash("frontends4", 2_097_152, 10_486_656, 72),
    hash("frontends6", 4_194_304, 12_583_808, 88),
    array("services", 4_718_592, 4_198_400),
    array("slots", 4_194_304, 2_101_248),
    array("backends", 4_718_592, 4_198_400),
    array("backend_failures", 3_670_016, 3_149_824),
    hash("affinity", 2_621_440, 6_816_640, 0),
    array("sockets", 4_718_592, 4_198_400),
    hash("sockets_spilled", 1_179_648, 2_229_120, 0),
    hash("flows", 2_097_152, 4_195_200, 0),
    plain("watches", 258_048, 229_688, 0),
    plain("events", 0, 275_784, 0),
    plain("scratch", 4096, 320, 16),
    plain("counters", 4096, 408, 96),
];

impl Memory {
    fn bytes(&self, counting: Counting, cpus: u64) -> u64 {
        match counting {
            Counting::Sizes => self.sizes,
            Counting::Allocated { locks, less } => {
                let all = self.allocated + cpus * self.each_cpu;
                match self.made {
                    Made::OfPages => all,
                    Made::Plain => all - less,
                    Made::Hash => all + cpus * locks,
                }
            }
        }
    }
}

/// What a service port costs, a backend, and a place in a ring: the flag that sizes the maps, those maps, how many rows
/// the default has, and bytes of kernel memory for each. `--help` states the same.
const EACH: [(&str, &[&str], u32, u64); 4] = [
    (
        "lb-services-max",
        &["frontends4", "frontends6", "services"],
        DEFAULTS.services,
        416,
    ),
    (
        "lb-backends-max",
        &["backends", "backend_failures"],
        DEFAULTS.backends,
        112,
    ),
    ("lb-ring-slots-max", &["slots"], DEFAULTS.ring_slots, 8),
    ("lb-affinity-max", &["affinity"], DEFAULTS.affinity, 104),
];

/// Maps whose size no flag decides.
const OF_THEIR_OWN: [&str; 9] = [
    "settings",
    "clients",
    "sockets",
    "sockets_spilled",
    "flows",
    "watches",
    "events",
    "scratch",
    "counters",
];

pub fn rows() -> Vec<Row> {
    vec![
        (
            "memory of a service, a backend and a ring's place is what --help states".to_owned(),
            Box::new(stated),
        ),
        (
            "memory of each map at the defaults is what is recorded".to_owned(),
            Box::new(memory),
        ),
        (
            "instructions walked by the verifier are what is recorded".to_owned(),
            Box::new(instructions),
        ),
    ]
}

/// Of the running kernel: its major and minor number.
fn running() -> anyhow::Result<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next().and_then(|part| part.parse().ok());
    let major = part().context("a kernel's release")?;
    let minor = part().context("a kernel's release")?;
    Ok((major, minor))
}

fn recorded() -> anyhow::Result<Option<&'static Recorded>> {
    let (major, minor) = running()?;
    let series = format!("{major}.{minor}");
    Ok(RECORDED.iter().find(|recorded| recorded.series == series))
}

/// Most bytes of locks that a kernel had for each CPU and hash.
const LOCKS_MAX: u64 = 64;
/// By how much what describes a map may differ on a kernel of which nothing is recorded.
const DESCRIPTION_MAX: u64 = 256;

fn memory(world: &mut World) -> anyhow::Result<()> {
    let mut config = world.config();
    config.sizes = DEFAULTS;
    config.bpffs.as_mut_os_string().push("-defaults");
    let uses = Datapath::open(&config).map(|datapath| datapath.map_uses());
    cleanup(&config.bpffs)?;
    let uses = uses?;
    for map in &uses {
        println!(
            "    {}: {} bytes for {} rows",
            map.name, map.memlock, map.capacity
        );
    }
    let recorded = recorded()?;
    let cpus = possible_cpus()?;
    let names = |mut names: Vec<&'static str>| {
        names.sort_unstable();
        names
    };
    let (known, found) = (
        names(MEMORY.iter().map(|map| map.name).collect()),
        names(uses.iter().map(|map| map.name).collect()),
    );
    ensure!(
        known == found,
        "{known:?} are recorded, there are {found:?}"
    );
    for wanted in &MEMORY {
        let name = wanted.name;
        let map = uses
            .iter()
            .find(|map| map.name == name)
            .with_context(|| format!("no map {name}"))?;
        let (least, most) = if let Some(Recorded { counting, .. }) = recorded {
            let bytes = wanted.bytes(*counting, cpus);
            (bytes, bytes)
        } else if running()? < (6, 4) {
            (wanted.sizes, wanted.sizes)
        } else {
            let bytes = |locks| wanted.bytes(Counting::Allocated { locks, less: 0 }, cpus);
            let slack = match wanted.made {
                Made::Plain => DESCRIPTION_MAX,
                Made::OfPages | Made::Hash => 0,
            };
            (bytes(0).saturating_sub(slack), bytes(LOCKS_MAX) + slack)
        };
        ensure!(
            (least..=most).contains(&map.memlock),
            "{name} takes {} bytes with {cpus} CPUs; {least} to {most} are recorded",
            map.memlock
        );
    }
    Ok(())
}

/// How many CPUs the kernel may have: per-CPU memory is for all of them.
fn possible_cpus() -> anyhow::Result<u64> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    ranges.trim().split(',').try_fold(0, |cpus, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Ok(cpus + last.parse::<u64>()? - first.parse::<u64>()? + 1)
    })
}

/// As kernels since Linux 6.4 count it, on two CPUs.
fn stated(_: &mut World) -> anyhow::Result<()> {
    let memlock = MEMORY
        .each_ref()
        .map(|map| (map.name, map.bytes(NEWEST, 2)));
    let command = AgentArgs::command();
    for (flag, maps, entries, each) in EACH {
        let bytes: u64 = memlock
            .iter()
            .filter(|(name, _)| maps.contains(name))
            .map(|(_, bytes)| bytes)
            .sum();
        let exact = bytes as f64 / f64::from(entries);
        println!("    --{flag}: {exact:.1} bytes each, {:.2} MiB", mib(bytes));
        ensure!(
            (exact - each as f64).abs() <= 1.0,
            "--{flag}: {exact:.1} bytes each; {each} are recorded"
        );
        let arg = command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(flag))
            .with_context(|| format!("no flag --{flag}"))?;
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let words = format!(
            "About {each} bytes of kernel memory each, {:.0} MiB at the default",
            mib(bytes)
        );
        ensure!(
            help.replace('\n', " ").contains(&words),
            "the help of --{flag} does not say {words:?}: {help}"
        );
    }
    let sized = |name: &str| EACH.iter().any(|(_, maps, ..)| maps.contains(&name));
    for (name, _) in memlock {
        ensure!(
            sized(name) != OF_THEIR_OWN.contains(&name),
            "{name}: which flag decides its size?"
        );
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn instructions(world: &mut World) -> anyhow::Result<()> {
    let walked = world.datapath().verified_instructions();
    ensure!(
        walked.len() == PROGRAMS.len(),
        "the kernel says instructions of {} programs",
        walked.len()
    );
    for (name, count) in &walked {
        println!("    {name}: {count} instructions");
        ensure!(
            *count <= WALK_MAX,
            "{name} costs the verifier {count} instructions; {WALK_MAX} are the most"
        );
    }
    let Some(recorded) = recorded()? else {
        println!("    nothing is recorded for this kernel: held to the bound of {WALK_MAX} only");
        return Ok(());
    };
    for (name, wanted) in PROGRAMS.iter().zip(recorded.walked) {
        let count = walked
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, count)| *count);
        let count = count.with_context(|| format!("no program {name}"))?;
        ensure!(
            count.abs_diff(wanted) <= wanted / 10,
            "{name} costs the verifier {count} instructions; {wanted} are recorded"
        );
    }
    Ok(())
}
