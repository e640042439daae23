//! A process that outlives a lab's owner by one breath: whatever kills the owner, the lab goes too.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::host::Host;
use crate::process::Programs;
use crate::spec::LabName;
use crate::state::{Turn, demolish};

const DISMISSED: &[u8] = b"dismissed";

/// The owner's hold on its warden: a pipe that the kernel closes when the owner dies.
#[derive(Debug)]
pub(crate) struct Warden {
    child: Child,
}

impl Warden {
    pub(crate) fn post(programs: &Programs, lab: &LabName) -> Result<Self> {
        let child = Command::new(programs.find("isthmus-lab")?)
            .args(["warden", lab.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the lab's warden")?;
        Ok(Self { child })
    }
    /// The lab is gone, or is to stay without an owner.
    pub(crate) fn dismiss(mut self) -> Result<()> {
        if let Some(mut pipe) = self.child.stdin.take() {
            pipe.write_all(DISMISSED)
                .context("the lab's warden is gone")?;
        }
        self.child.wait()?;
        Ok(())
    }
}

/// The warden's own life. If a next run has its turn already, that run has swept.
pub fn watch(lab: &LabName) -> Result<()> {
    // Ctrl-C is for the owner. This fails only for a group's leader, whom a terminal does not signal with its group.
    let _ = nix::unistd::setsid();
    let mut heard = Vec::new();
    std::io::stdin().read_to_end(&mut heard)?;
    if heard == DISMISSED {
        return Ok(());
    }
    if let Some(_turn) = Turn::try_take()? {
        demolish(&Host::prepare()?, lab)?;
    }
    Ok(())
}
