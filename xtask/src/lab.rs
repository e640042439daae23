//! The commands that other programs of this repository answer: what they need is built first, then they take this
//! process's place.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Error, Result, ensure};

use crate::build;
use crate::command::line;
use crate::metadata::Workspace;
use crate::progress::say;
use crate::root::Need;
use crate::setup::{Part, setup};
use crate::toolchain::Pins;
use crate::tree::Tree;

/// Which program answers, and what must be built for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// A world is made: its agents and mesh servers are needed, fresh.
    Lab,
    /// A world is looked at or taken away: its own programs are left as they run.
    LabOnly,
    /// Measured, so as fast as a release.
    Bench,
}

/// Before minutes of building, and with the name as the program is given it.
pub(crate) fn must_be_there(file: &Path) -> Result<()> {
    let metadata = fs::metadata(file).map_err(|error| {
        Error::msg(format!(
            "cannot read the lab file {}: {error}; tests/labs has one to begin with",
            file.display()
        ))
    })?;
    ensure!(
        !metadata.is_dir(),
        "{} is a directory, and a lab is built from one file of it",
        file.display()
    );
    Ok(())
}

/// Builds, and becomes the program as root.
pub(crate) fn become_program(
    tree: &Tree,
    pins: &Pins,
    program: Program,
    arguments: &[OsString],
) -> Result<()> {
    let release = program == Program::Bench;
    let begun = Instant::now();
    match program {
        Program::LabOnly => {
            setup(tree, pins, &[Part::Lab], false)?;
            build::one(tree, "isthmus-tests", "isthmus-lab")?;
        }
        Program::Lab | Program::Bench => {
            let pair = setup(tree, pins, &[Part::Build, Part::Lab], false)?
                .context("the lab needs the eBPF compiler")?;
            build::object(tree, &pair, false)?;
            build::host(tree, &Workspace::read(tree)?, release)?;
            say(&format!(
                "ready after {:.1} s",
                begun.elapsed().as_secs_f64()
            ));
        }
    }
    tree.caller.give_back(&tree.target)?;
    let name = if release {
        "isthmus-bench"
    } else {
        "isthmus-lab"
    };
    let path = tree.binaries(release).join(name);
    let mut typed = Command::new(&path);
    let need = Need {
        reason: "to make network namespaces and load eBPF programs",
        by_hand: format!(
            "cd {} && {}",
            tree.root.display(),
            line(typed.args(arguments))
        ),
    };
    let mut command = tree.caller.root(&need, &path, &[])?;
    command.current_dir(&tree.root).args(arguments);
    Err(command.exec()).with_context(|| format!("{} does not start", path.display()))
}
