//! Socket rows: one real socket call each, through the real programs, and what its owner sees of it.
//!
//! Programs of this kind cannot be run by `BPF_PROG_TEST_RUN`, so the rows build a world: a network namespace, a
//! cgroup and a bpffs directory of their own. They need root, cgroup2 and BPF, and fail with a sentence without.
#![expect(clippy::print_stdout, reason = "this program is its own test runner")]

#[path = "rows/affinity.rs"]
mod affinity;
#[path = "rows/connect.rs"]
mod connect;
#[path = "rows/datagram.rs"]
mod datagram;
#[path = "rows/earlier.rs"]
mod earlier;
#[path = "rows/events.rs"]
mod events;
#[path = "rows/fair.rs"]
mod fair;
#[path = "rows/fastopen.rs"]
mod fastopen;
#[path = "rows/health.rs"]
mod health;
#[path = "rows/life.rs"]
mod life;
#[path = "rows/numbers.rs"]
mod numbers;
#[path = "rows/orphans.rs"]
mod orphans;
#[path = "rows/races.rs"]
mod races;
#[path = "rows/taken.rs"]
mod taken;
#[path = "rows/world.rs"]
mod world;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

/// A row: its name, and what must hold.
type Row = (String, Box<dyn Fn(&mut world::World) -> anyhow::Result<()>>);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [command, cgroup, address] = args.as_slice()
        && command == "probe-connect"
    {
        return probe(cgroup, address);
    }
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    match run(filter.map(String::as_str)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("socket rows cannot run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The agent proves its hook with a process in another cgroup: this program again.
fn probe(cgroup: &str, address: &str) -> ExitCode {
    let answer = address.parse().context("an address").and_then(|address| {
        Ok(isthmus_agent::datapath::probe_connect(
            Path::new(cgroup),
            address,
        )?)
    });
    match answer {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(filter: Option<&str>) -> anyhow::Result<usize> {
    let mut world = world::World::build()?;
    let rows: Vec<Row> = connect::rows()
        .into_iter()
        .chain(affinity::rows())
        .chain(datagram::rows())
        .chain(orphans::rows())
        .chain(health::rows())
        .chain(races::rows())
        .chain(fair::rows())
        .chain(taken::rows())
        .chain(events::rows())
        .chain(life::rows())
        .chain(earlier::rows())
        .chain(numbers::rows())
        .collect();
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for (name, row) in rows {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            left_out += 1;
            continue;
        }
        match world.reset().and_then(|()| row(&mut world)) {
            Ok(()) => {
                passed += 1;
                println!("row {name} ... ok");
            }
            Err(error) => {
                failed += 1;
                println!("row {name} ... FAILED: {error:#}");
            }
        }
    }
    println!("{passed} passed, {failed} failed, {left_out} skipped");
    anyhow::ensure!(passed + failed > 0, "no row matches the filter");
    Ok(failed)
}
