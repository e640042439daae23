//! `cargo xtask`: the one door for people.

mod asked;
mod build;
mod check;
mod command;
mod help;
mod lab;
mod metadata;
mod progress;
mod root;
mod setup;
mod suite;
mod toolchain;
mod tree;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use asked::Asked;
use progress::say;
use setup::Part;
use toolchain::Pins;
use tree::Tree;

fn main() -> ExitCode {
    let here = std::env::current_dir().unwrap_or_default();
    let asked = match asked::parse(std::env::args_os().skip(1), &here) {
        Ok(asked) => asked,
        Err(error) => {
            say(&format!("Error: {error:#}"));
            return ExitCode::from(2);
        }
    };
    match run(asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(asked: Asked) -> Result<()> {
    if let Asked::Help(page) = asked {
        use std::io::Write as _;
        return Ok(std::io::stdout().write_all(page.as_bytes())?);
    }
    if let Asked::Program {
        file: Some(file), ..
    } = &asked
    {
        lab::must_be_there(file)?;
    }
    let (tree, pins) = (Tree::find()?, Pins::read()?);
    tree.caller.give_back(&tree.target)?;
    match asked {
        Asked::Help(_) => Ok(()),
        Asked::Setup { parts, dry_run } => setup::setup(&tree, &pins, &parts, dry_run).map(drop),
        Asked::Build { release, log } => {
            let pair = setup::setup(&tree, &pins, &[Part::Build], false)?
                .context("setup left no compiler")?;
            build::object(&tree, &pair, log)?;
            build::host(&tree, &metadata::Workspace::read(&tree)?, release)
        }
        Asked::Check => {
            let pair = setup::setup(&tree, &pins, &[Part::Build, Part::Check], false)?
                .context("setup left no compiler")?;
            build::object(&tree, &pair, false)?;
            check::check(&tree, &pins, &pair)
        }
        Asked::Test(wanted) => suite::test(&tree, &pins, &wanted),
        Asked::Codegen => check::generated(&tree, false),
        Asked::Program {
            program, arguments, ..
        } => lab::become_program(&tree, &pins, program, &arguments),
    }
}
