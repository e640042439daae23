//! `cargo xtask setup`: finds what is needed, says what is missing, and brings it.
//!
//! [`Found`] is what the machine has, [`plan`] turns it into a list of [`Action`]s, and [`apply`](action::apply) is the
//! only thing here that changes the machine. When a way fails (no network for rustup), it is closed and the plan is made again.

mod action;
mod found;
pub(crate) mod kernels;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::command::which;
use crate::progress::{say, step};
use crate::toolchain::{Choice, Compiler, Pins, Ways, choose};
use crate::tree::Tree;

pub(crate) use action::Action;
pub(crate) use found::Found;

/// What one may want to be ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The eBPF compiler and its linker.
    Build,
    /// The programs that the lab and its tests call.
    Lab,
    /// What builds the search of the fuzz suite.
    Fuzz,
    /// The emulator and the kernels that it boots.
    Kernels,
    /// cargo-deny.
    Check,
}

impl Part {
    pub(crate) const ALL: [(&'static str, Self); 5] = [
        ("build", Self::Build),
        ("lab", Self::Lab),
        ("fuzz", Self::Fuzz),
        ("kernels", Self::Kernels),
        ("check", Self::Check),
    ];

    pub(crate) fn named(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|(known, _)| *known == name) {
            Some((_, part)) => Ok(part),
            None => bail!("there is no part {name:?}: build, lab, fuzz, kernels and check are"),
        }
    }
}

/// What builds the eBPF programs.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

/// Makes the parts ready, and gives the toolchain pair if `build` is among them. Says nothing but its one line when nothing is missing.
pub(crate) fn setup(
    tree: &Tree,
    pins: &Pins,
    parts: &[Part],
    dry_run: bool,
) -> Result<Option<Pair>> {
    let mut ways = Ways::of_this_machine();
    for _ in 0..MOST_ROUNDS {
        let found = step("setup: look for what is needed", || {
            Found::look(tree, pins, parts)
        })?;
        let actions = plan(pins, &found, parts, ways);
        if actions.is_empty() {
            return Ok(found.pair(pins, ways));
        }
        say(if dry_run {
            "setup: this is missing:"
        } else {
            "setup: this is missing, and will be brought:"
        });
        for action in &actions {
            say(&format!("  - {action}"));
        }
        if dry_run {
            return Ok(None);
        }
        for action in &actions {
            action::must_be_possible(tree, action)?;
        }
        for action in &actions {
            match action::apply(tree, pins, action) {
                Ok(()) => {}
                Err(error) if action.is_rustup() => {
                    say(&format!(
                        "setup: rustup cannot bring it, the distribution may: {error:#}"
                    ));
                    ways.rustup = false;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    bail!(
        "setup did what it planned, and something is missing still: see `cargo xtask setup --dry-run`"
    )
}

/// rustup's try, the distribution's, and a last look.
const MOST_ROUNDS: usize = 4;

/// What is to be done, in order, so that `parts` are ready.
pub(crate) fn plan(pins: &Pins, found: &Found, parts: &[Part], ways: Ways) -> Vec<Action> {
    let mut packages = Vec::new();
    let mut after = Vec::new();
    let mut actions = Vec::new();
    if parts.contains(&Part::Build) {
        let choice = choose(pins, &found.compilers, ways);
        // Until there is a compiler to try a linker with, its version must do: so one visit of apt brings all.
        let linked = found.linkers.iter().any(|linker| match &choice {
            Choice::Use(compiler) => linker.serves(pins, compiler),
            _ => linker.version == pins.linker,
        });
        match choice {
            Choice::Use(_) => {}
            Choice::AddSources { toolchain } => actions.push(Action::AddSources { toolchain }),
            Choice::AddToolchain { release } => actions.push(Action::AddToolchain { release }),
            Choice::AddPackages => packages.extend(pins.compiler_packages.iter().cloned()),
            Choice::Nothing => {
                return vec![Action::Stop {
                    way_out: by_hand(pins),
                }];
            }
        }
        if !linked {
            packages.extend(found.missing_packages(&pins.linker_packages));
            after.push(Action::InstallLinker {
                version: pins.linker,
                llvm: pins.llvm,
            });
        }
    }
    packages.extend(
        found
            .missing_programs
            .iter()
            .map(|program| program.package.clone()),
    );
    if parts.contains(&Part::Check) && !found.deny {
        after.push(Action::InstallDeny { version: pins.deny });
    }
    for kernel in &found.missing_kernels {
        after.push(Action::FetchKernel(kernel.clone()));
    }
    if found.missing_busybox {
        after.push(Action::FetchBusybox {
            package: pins.busybox_package.clone(),
        });
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() {
        actions.push(if ways.apt {
            Action::InstallPackages { names: packages }
        } else {
            Action::Stop {
                way_out: format!(
                    "install with this system's package manager: {}",
                    packages.join(" ")
                ),
            }
        });
    }
    actions.extend(after);
    actions
}

/// The commands to type where neither rustup nor apt can be used.
fn by_hand(pins: &Pins) -> String {
    format!(
        "no compiler for the eBPF programs, and neither rustup nor apt is here. Do one of these:\n\
         \x20   rustup toolchain install {} --profile minimal --component rust-src\n\
         \x20   apt-get install {}        (as root, on Debian)\n\
         then: cargo xtask setup",
        pins.ebpf,
        pins.compiler_packages.join(" ")
    )
}

impl Ways {
    fn of_this_machine() -> Self {
        Self {
            rustup: which("rustup").is_some(),
            apt: which("apt-get").is_some(),
        }
    }
}

#[cfg(test)]
mod tests;
