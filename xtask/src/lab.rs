//! The commands that the lab's own program answers: everything is built first, then it takes this process's place.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::build;
use crate::metadata::Workspace;
use crate::progress::say;
use crate::setup::{Part, setup};
use crate::toolchain::Pins;
use crate::tree::Tree;

/// Builds, and becomes `isthmus-lab ARGUMENTS` as root.
pub(crate) fn become_lab(
    tree: &Tree,
    pins: &Pins,
    release: bool,
    arguments: &[OsString],
) -> Result<()> {
    let begun = Instant::now();
    let pair = setup(tree, pins, &[Part::Build, Part::Lab], false)?
        .context("the lab needs the eBPF compiler")?;
    say(&format!(
        "setup    toolchain and bpf-linker found {:>58.1} s",
        begun.elapsed().as_secs_f64()
    ));
    build::object(tree, &pair)?;
    build::host(tree, &Workspace::read(tree)?, release)?;
    tree.caller.give_back(&tree.target)?;
    let program = tree.binaries(release).join("isthmus-lab");
    let mut command = tree.caller.root(
        "to make network namespaces and load eBPF programs",
        &program,
        &[],
    )?;
    command.current_dir(&tree.root).args(arguments);
    Err(command.exec()).with_context(|| format!("{} does not start", program.display()))
}
