//! `cargo xtask build`: the eBPF object first, then the host binaries that take it in.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{forget_host_toolchain, run, run_quietly};
use crate::metadata::Workspace;
use crate::progress::{spoken_step, step, step_with};
use crate::setup::Pair;
use crate::tree::Tree;

/// The eBPF programs, with their own compiler and none of the host's settings; those that `log` say what they do.
pub(crate) fn object(tree: &Tree, pair: &Pair, log: bool) -> Result<()> {
    let remark = |size: &u64| format!("{size} bytes, {}", pair.compiler);
    step_with("build: eBPF programs", || compile(tree, pair, log), remark).map(drop)
}

/// That the programs that log compile, without making them.
pub(crate) fn check_logging(tree: &Tree, pair: &Pair) -> Result<()> {
    run_quietly(cargo(tree, pair, "check").args(["--features", "log"]))
}

fn compile(tree: &Tree, pair: &Pair, log: bool) -> Result<u64> {
    let mut command = cargo(tree, pair, "build");
    if log {
        command.args(["--features", "log"]);
    }
    run_quietly(&mut command)?;
    let built = tree.ebpf().join(BUILT);
    let built =
        fs::read(&built).with_context(|| format!("the build left no {}", built.display()))?;
    // Cargo puts an earlier build back with the time that it had: by that nobody would see that it is another one now.
    let object = tree.object();
    if fs::read(&object).ok().as_ref() != Some(&built) {
        // Whole at once, for builds beside this one.
        let next = object.with_extension(std::process::id().to_string());
        fs::write(&next, &built)
            .and_then(|()| fs::rename(&next, &object))
            .with_context(|| format!("writing {}", object.display()))?;
    }
    Ok(built.len() as u64)
}

/// Where their compiler's cargo leaves them, below its target directory.
const BUILT: &str = "bpfel-unknown-none/ebpf/isthmus-datapath";

/// Their compiler's cargo, told what to do with them.
fn cargo(tree: &Tree, pair: &Pair, what: &str) -> Command {
    let mut command = tree.caller.user(&pair.compiler.cargo);
    forget_host_toolchain(&mut command);
    command
        .current_dir(&tree.root)
        .args([
            what,
            "--package",
            "isthmus-datapath",
            "--bin",
            "isthmus-datapath",
            "--profile",
            "ebpf",
        ])
        .args([
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
            "--target-dir",
        ])
        .arg(tree.ebpf())
        // build-std is unstable: this lets a stable compiler do it, for this one build.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", &pair.compiler.rustc)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &pair.linker);
    command
}

/// The host binaries. Their build speaks for itself.
pub(crate) fn host(tree: &Tree, workspace: &Workspace, release: bool) -> Result<()> {
    let binaries = binaries(workspace);
    let names: Vec<&str> = binaries.iter().map(|(_, binary)| *binary).collect();
    spoken_step(&format!("build: {}", names.join(", ")), || {
        let mut command = tree.cargo();
        command.arg("build");
        for (package, binary) in &binaries {
            command.args(["--package", package, "--bin", binary]);
        }
        if release {
            command.arg("--release");
        }
        run(&mut command)
    })
}

/// One program alone.
pub(crate) fn one(tree: &Tree, package: &str, binary: &str) -> Result<()> {
    let mut command = tree.cargo();
    command.args(["build", "--package", package, "--bin", binary]);
    step(&format!("build: {binary}"), || run_quietly(&mut command))
}

/// The programs that people run, with their packages.
fn binaries(workspace: &Workspace) -> Vec<(&str, &str)> {
    let members = workspace.members.iter().filter(|(name, _)| {
        !["xtask", "isthmus-datapath", "isthmus-fuzz"].contains(&name.as_str())
    });
    members
        .flat_map(|(name, package)| {
            let binaries = package.targets.iter().filter(|target| target.kind == "bin");
            binaries.map(|target| (name.as_str(), target.name.as_str()))
        })
        .collect()
}
