//! A process that outlives a lab's owner by one breath: whatever kills the owner, the lab goes too.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::layout::state_dir;
use crate::process::Programs;
use crate::spec::LabName;
use crate::state::{Turn, demolish};
use crate::wait::wait_for;

/// Far longer than a dying process holds its files.
const TURN: Duration = Duration::from_secs(30);
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

/// The warden's own life. The owner's turn can outlive its pipe by a moment, so one look is not enough; a run that takes
/// the turn first sweeps by itself.
pub fn watch(lab: &LabName) -> Result<()> {
    // Ctrl-C is for the owner. This fails only for a group's leader, whom a terminal does not signal with its group.
    let _ = nix::unistd::setsid();
    let owned = birth(lab);
    let mut heard = Vec::new();
    std::io::stdin().read_to_end(&mut heard)?;
    if heard == DISMISSED {
        return Ok(());
    }
    let host = Host::prepare()?;
    wait_for("the dead owner's turn is free", TURN, || {
        let turn = Turn::try_take()?;
        if birth(lab) != owned {
            return Ok(Some(()));
        }
        turn.map(|_turn| demolish(&host, lab)).transpose()
    })?;
    Ok(())
}

/// Tells a lab from a later one of the same name.
fn birth(lab: &LabName) -> Option<u64> {
    std::fs::metadata(state_dir(lab)).ok().map(|dir| dir.ino())
}
