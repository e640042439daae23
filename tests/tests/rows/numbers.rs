//! Exact numbers of the datapath, recorded by kernel: what its maps cost and what the verifier walks.
//!
//! Memory is exact. Instructions follow the compiler too, so another toolchain than the pinned one may walk a tenth more
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

/// Kernel series; bytes of each map at the defaults; instructions walked for each program. Maps whose cost follows the
/// number of CPUs are left out.
struct Recorded {
    series: &'static str,
    memlock: [(&'static str, u64); 11],
    walked: [(&'static str, u32); 7],
}

const RECORDED: [Recorded; 3] = [
    Recorded {
        series: "6.1",
        memlock: [
            ("frontends4", 2_097_152),
            ("frontends6", 4_194_304),
            ("rings", 1_048_576),
            ("slots", 4_194_304),
            ("backends", 2_621_440),
            ("backend_health", 2_621_440),
            ("backend_failures", 4_718_592),
            ("service_health", 3_145_728),
            ("service_limits", 1_572_864),
            ("sockets", 4_718_592),
            ("sockets_spilled", 1_179_648),
        ],
        walked: [
            ("getpeername4", 369),
            ("getpeername6", 424),
            ("sock_release", 302),
            ("inet_sk_error_report", 6650),
            ("tcp_retransmit_skb", 4134),
            ("connect4", 9032),
            ("connect6", 10_592),
        ],
    },
    Recorded {
        series: "6.12",
        memlock: [
            ("frontends4", 10_486_864),
            ("frontends6", 12_584_048),
            ("rings", 528_384),
            ("slots", 2_101_248),
            ("backends", 2_101_248),
            ("backend_health", 2_101_248),
            ("backend_failures", 4_198_400),
            ("service_health", 2_625_536),
            ("service_limits", 1_052_672),
            ("sockets", 4_198_400),
            ("sockets_spilled", 2_229_184),
        ],
        walked: [
            ("getpeername4", 367),
            ("getpeername6", 416),
            ("sock_release", 302),
            ("inet_sk_error_report", 7880),
            ("tcp_retransmit_skb", 2668),
            ("connect4", 7909),
            ("connect6", 8804),
        ],
    },
    Recorded {
        series: "6.18",
        memlock: [
            ("frontends4", 10_486_800),
            ("frontends6", 12_583_984),
            ("rings", 528_384),
            ("slots", 2_101_248),
            ("backends", 2_101_248),
            ("backend_health", 2_101_248),
            ("backend_failures", 4_198_400),
            ("service_health", 2_625_536),
            ("service_limits", 1_052_672),
            ("sockets", 4_198_400),
            ("sockets_spilled", 2_229_120),
        ],
        walked: [
            ("getpeername4", 362),
            ("getpeername6", 411),
            ("sock_release", 312),
            ("inet_sk_error_report", 8243),
            ("tcp_retransmit_skb", 2669),
            ("connect4", 8116),
            ("connect6", 9018),
        ],
    },
];

/// What a service port costs, a backend, and a place in a ring: the flag that sizes the maps, those maps, how many rows
/// the default has, and bytes of kernel memory for each. `--help` states the same.
const EACH: [(&str, &[&str], u32, u64); 3] = [
    (
        "lb-services-max",
        &[
            "frontends4",
            "frontends6",
            "rings",
            "service_health",
            "service_limits",
        ],
        DEFAULTS.services,
        416,
    ),
    (
        "lb-backends-max",
        &["backends", "backend_health", "backend_failures"],
        DEFAULTS.backends,
        128,
    ),
    ("lb-ring-slots-max", &["slots"], DEFAULTS.ring_slots, 8),
];

/// Maps whose size no flag decides.
const OF_THEIR_OWN: [&str; 2] = ["sockets", "sockets_spilled"];

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

fn recorded() -> anyhow::Result<&'static Recorded> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut parts = release.split('.');
    let series = format!(
        "{}.{}",
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default()
    );
    RECORDED.iter().find(|recorded| recorded.series == series).with_context(|| {
        format!("nothing is recorded for Linux {series}: run the rows there, and add what they print to RECORDED")
    })
}

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
    for (name, wanted) in recorded()?.memlock {
        let map = uses
            .iter()
            .find(|map| map.name == name)
            .with_context(|| format!("no map {name}"))?;
        ensure!(
            map.memlock == wanted,
            "{name} takes {} bytes; {wanted} are recorded",
            map.memlock
        );
    }
    Ok(())
}

/// The newest series' numbers, which the row above holds to the kernel. Older kernels count maps' memory by another rule.
fn stated(_: &mut World) -> anyhow::Result<()> {
    let memlock = RECORDED[RECORDED.len() - 1].memlock;
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
        walked.len() == 11,
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
    for (name, wanted) in recorded()?.walked {
        let count = walked
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, count)| *count);
        let count = count.with_context(|| format!("no program {name}"))?;
        ensure!(
            count.abs_diff(wanted) <= wanted / 10,
            "{name} costs the verifier {count} instructions; {wanted} are recorded"
        );
    }
    Ok(())
}
