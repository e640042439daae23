//! `cargo xtask check`: everything that needs neither root nor a network of its own. Every check runs, also after one failed.

mod layers;
mod reached;
mod sources;

use anyhow::{Context as _, Result, bail};

use crate::build;
use crate::command::{line, output, run, run_quietly};
use crate::metadata::Workspace;
use crate::progress::{say, spoken_step, step};
use crate::setup::Pair;
use crate::toolchain::{Pins, Version};
use crate::tree::Tree;

pub(crate) fn check(tree: &Tree, pins: &Pins, pair: &Pair) -> Result<()> {
    let workspace = Workspace::read(tree)?;
    let host = release(&output(tree.cargo().arg("--version"))?)?;
    if host != pins.host {
        say(&format!(
            "check: formats and lints are those of Rust {}, and this is {host}: it may find other things",
            pins.host
        ));
    }
    let mut failed: Vec<String> = Vec::new();
    let mut note = |name: &str, outcome: Result<()>| {
        if let Err(error) = outcome {
            say(&format!("{error:#}"));
            failed.push(name.to_owned());
        }
    };
    note(
        "format",
        step("check: format", || {
            run_quietly(tree.cargo().args(["fmt", "--all", "--check", "--", "-l"]))
        }),
    );
    note(
        "layers",
        step("check: direction of dependencies", || {
            none(&layers::check(tree, &workspace)?)
        }),
    );
    note(
        "reached",
        step("check: every source file belongs to a target", || {
            none(&reached::check(tree, &workspace)?)
        }),
    );
    note(
        "licences, bans and sources",
        step("check: licences, bans and sources", || deny(tree)),
    );
    note(
        "generated code",
        step("check: generated code is fresh", || generated(tree, true)),
    );
    note(
        "programs that log",
        step("check: programs that log", || {
            build::check_logging(tree, pair)
        }),
    );
    note("clippy", spoken_step("check: clippy", || clippy(tree)));
    note("docs", spoken_step("check: docs", || docs(tree)));
    if !failed.is_empty() {
        bail!("check failed: {}", failed.join(", "));
    }
    say("check: all is well");
    Ok(())
}

/// The release in `cargo 1.95.0 (…)`.
fn release(said: &str) -> Result<Version> {
    said.split_whitespace()
        .nth(1)
        .with_context(|| format!("{said:?} is no cargo's version"))?
        .parse()
}

fn none(faults: &[String]) -> Result<()> {
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(())
}

fn clippy(tree: &Tree) -> Result<()> {
    run(tree.cargo().args([
        "clippy",
        "--workspace",
        "--keep-going",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

fn docs(tree: &Tree) -> Result<()> {
    let mut command = tree.cargo();
    run(command
        .args([
            "doc",
            "--workspace",
            "--keep-going",
            "--no-deps",
            "--document-private-items",
            "--locked",
        ])
        .env("RUSTDOCFLAGS", "-D warnings"))
}

fn deny(tree: &Tree) -> Result<()> {
    let mut command = tree.caller.user(tree.tools().join("bin/cargo-deny"));
    // Advisories need a database from the network, and change without a commit: they are no part of a check of the tree.
    run_quietly(command.current_dir(&tree.root).args([
        "--all-features",
        "--locked",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// Writes the generated code, or only compares it with what is committed.
pub(crate) fn generated(tree: &Tree, only_check: bool) -> Result<()> {
    let mut command = tree.cargo();
    command.args([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "isthmus-proto",
        "--example",
        "codegen",
    ]);
    if only_check {
        command.args(["--", "--check"]);
    }
    let shown = line(&command);
    run_quietly(&mut command).map_err(|error| {
        if only_check {
            error.context(format!(
                "{shown}: after a change of a .proto file run `cargo xtask codegen`"
            ))
        } else {
            error
        }
    })
}
