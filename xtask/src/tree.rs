//! The repository: where it is, where it builds to, and how its cargo is called.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command::Caller;

#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) caller: Caller,
}

impl Tree {
    pub(crate) fn find() -> Result<Self> {
        // This package lies directly below the root. Baked in: the program is built where it is used.
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => env::current_dir()?.join(directory),
            None => root.join("target"),
        };
        Ok(Self {
            root,
            target,
            caller: Caller::find()?,
        })
    }

    /// The cargo that started this program, for the host's part, in the root, as the person who called.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = self
            .caller
            .user(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        if self.object() != self.root.join("target").join(OBJECT) {
            command.env("ISTHMUS_DATAPATH_OBJECT", self.object());
        }
        command
    }

    /// Programs that this repository installed for itself. They go with `target/`, and touch nobody's own tools.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }

    /// The eBPF object, which the agent's build takes in.
    pub(crate) fn object(&self) -> PathBuf {
        self.target.join(OBJECT)
    }

    /// The target directory of the eBPF programs.
    pub(crate) fn ebpf(&self) -> PathBuf {
        self.target.join("ebpf")
    }

    pub(crate) fn binaries(&self, release: bool) -> PathBuf {
        self.target.join(if release { "release" } else { "debug" })
    }
}

const OBJECT: &str = "ebpf/datapath.o";
