//! A source file that no target reaches is compiled by nobody: its tests pass because they never run.

use std::collections::BTreeSet;

use anyhow::Result;

use super::sources;
use crate::metadata::Workspace;
use crate::tree::Tree;

pub(super) fn check(tree: &Tree, workspace: &Workspace) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in workspace.members.values() {
        let mut reached = BTreeSet::new();
        for target in &package.targets {
            reached.extend(sources::reached_from(&target.source)?);
        }
        let unreached = sources::below(&package.directory)?
            .into_iter()
            .filter(|file| !reached.contains(file));
        faults.extend(unreached.map(|file| {
            let shown = file
                .strip_prefix(&tree.root)
                .unwrap_or(&file)
                .display()
                .to_string();
            format!("{shown} is reached by no target: add its `mod`, or remove it")
        }));
    }
    Ok(faults)
}
