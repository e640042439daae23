//! What setup may do to a machine, each with the sentence that announces it.

use std::ffi::OsString;
use std::fmt;
use std::{env, fs};

use anyhow::{Context as _, Result, bail};

use super::kernels;
use crate::command::{run_quietly, which};
use crate::progress::step;
use crate::root::{Need, THEN_AGAIN};
use crate::toolchain::{KernelPackage, Pins, Version};
use crate::tree::Tree;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    AddSources {
        toolchain: String,
    },
    AddToolchain {
        release: Version,
    },
    InstallPackages {
        names: Vec<String>,
    },
    InstallLinker {
        version: Version,
        llvm: u64,
    },
    InstallDeny {
        version: Version,
    },
    FetchKernel(KernelPackage),
    FetchBusybox {
        package: String,
    },
    /// Nothing here can go on: the reader must do this.
    Stop {
        way_out: String,
    },
}

impl Action {
    /// Worth a second plan without rustup, when it fails.
    pub(crate) fn is_rustup(&self) -> bool {
        matches!(self, Self::AddSources { .. } | Self::AddToolchain { .. })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddSources { toolchain } => {
                write!(f, "rustup: add rust-src to {toolchain}, for you")
            }
            Self::AddToolchain { release } => {
                write!(f, "rustup: add toolchain {release} with rust-src, for you")
            }
            Self::InstallPackages { names } => {
                write!(
                    f,
                    "apt, as root: install {}, and what they need",
                    names.join(" ")
                )
            }
            Self::InstallLinker { version, llvm } => write!(
                f,
                "cargo: build bpf-linker {version} on LLVM {llvm} into target/tools"
            ),
            Self::InstallDeny { version } => {
                write!(f, "cargo: build cargo-deny {version} into target/tools")
            }
            Self::FetchKernel(kernel) => write!(
                f,
                "apt: fetch a {} kernel into target/kernels, not installed",
                kernel.series
            ),
            Self::FetchBusybox { package } => {
                write!(f, "apt: fetch {package} into target/kernels, not installed")
            }
            Self::Stop { way_out } => write!(f, "by hand: {way_out}"),
        }
    }
}

/// Nothing is begun that cannot be ended: where root is refused, nothing is changed.
pub(crate) fn must_be_possible(tree: &Tree, action: &Action) -> Result<()> {
    match action {
        Action::InstallPackages { names } => apt_get(tree, &install_by_hand(names)).map(drop),
        Action::Stop { .. } => bail!("nothing was changed: do by hand what is said above"),
        _ => Ok(()),
    }
}

pub(crate) fn apply(tree: &Tree, pins: &Pins, action: &Action) -> Result<()> {
    step(&format!("setup: {action}"), || match action {
        Action::AddSources { toolchain } => rustup(
            tree,
            &["component", "add", "rust-src", "--toolchain", toolchain],
        ),
        Action::AddToolchain { release } => {
            let release = release.to_string();
            rustup(
                tree,
                &[
                    "toolchain",
                    "install",
                    &release,
                    "--profile",
                    "minimal",
                    "--component",
                    "rust-src",
                ],
            )
        }
        Action::InstallPackages { names } => install_packages(tree, names),
        Action::InstallLinker { version, llvm } => {
            let path = match env::var_os("PATH") {
                Some(path) => {
                    env::join_paths([pins.llvm_bin()].into_iter().chain(env::split_paths(&path)))?
                }
                None => pins.llvm_bin().into_os_string(),
            };
            let features = format!("llvm-{llvm}");
            cargo_install(
                tree,
                "bpf-linker",
                *version,
                &["--no-default-features", "--features", &features],
                Some(path),
            )
        }
        Action::InstallDeny { version } => cargo_install(tree, "cargo-deny", *version, &[], None),
        Action::FetchKernel(kernel) => kernels::fetch_kernel(tree, kernel),
        Action::FetchBusybox { package } => kernels::fetch_busybox(tree, package),
        Action::Stop { .. } => Ok(()),
    })
}

/// A machine that cannot reach the servers must not wait for ever: the distribution is next.
const RUSTUP_SECONDS: &str = "300";

fn rustup(tree: &Tree, arguments: &[&str]) -> Result<()> {
    let rustup = which("rustup").context("rustup is gone")?;
    run_quietly(
        tree.caller
            .user("timeout")
            .arg(RUSTUP_SECONDS)
            .arg(rustup)
            .args(arguments),
    )
}

fn install_packages(tree: &Tree, names: &[String]) -> Result<()> {
    let by_hand = install_by_hand(names);
    let mut install = apt_get(tree, &by_hand)?;
    install.args(INSTALL).args(names);
    // A repository of somebody else's that is broken must not be in the way of what Debian has.
    let lists = run_quietly(apt_get(tree, &by_hand)?.arg("update"));
    run_quietly(&mut install).with_context(|| {
        let lists = match &lists {
            Ok(()) => String::new(),
            Err(error) => format!(" (and its lists are old: {error:#})"),
        };
        format!(
            "apt cannot install {}{lists}. On Debian 12 they come with the suites bookworm, bookworm-updates and \
             bookworm-security",
            names.join(" ")
        )
    })
}

const INSTALL: [&str; 3] = ["install", "--yes", "--no-install-recommends"];

/// What root types for the same end.
fn install_by_hand(names: &[String]) -> String {
    format!(
        "apt-get update\napt-get {} {}\n{THEN_AGAIN}",
        INSTALL.join(" "),
        names.join(" ")
    )
}

/// Refreshes apt's lists: a new machine has none, and an old one names packages that are gone.
pub(super) fn update_lists(tree: &Tree) -> Result<()> {
    let by_hand = format!("apt-get update\n{THEN_AGAIN}");
    run_quietly(apt_get(tree, &by_hand)?.arg("update"))
}

fn apt_get(tree: &Tree, by_hand: &str) -> Result<std::process::Command> {
    let environment = [("DEBIAN_FRONTEND", OsString::from("noninteractive"))];
    let need = Need {
        reason: "to install packages",
        by_hand: by_hand.to_owned(),
    };
    tree.caller.root(&need, "apt-get", &environment)
}

fn cargo_install(
    tree: &Tree,
    name: &str,
    version: Version,
    options: &[&str],
    path: Option<OsString>,
) -> Result<()> {
    let build = tree.tools().join("build");
    let mut command = tree.cargo();
    command
        .args([
            "install",
            name,
            "--version",
            &version.to_string(),
            "--locked",
            "--force",
        ])
        .args(options);
    command
        .arg("--root")
        .arg(tree.tools())
        .env("CARGO_TARGET_DIR", &build);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    run_quietly(&mut command)?;
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_root_types_is_what_is_announced() {
        let names = ["nftables".to_owned(), "llvm-22-dev".to_owned()];
        assert_eq!(
            install_by_hand(&names),
            "apt-get update\napt-get install --yes --no-install-recommends nftables llvm-22-dev\n\
             then, as yourself, the same command again"
        );
        let announced = Action::InstallPackages {
            names: names.to_vec(),
        };
        assert_eq!(
            announced.to_string(),
            "apt, as root: install nftables llvm-22-dev, and what they need"
        );
    }
}
