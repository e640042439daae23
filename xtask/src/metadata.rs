//! What `cargo metadata` says about the workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::command::output;
use crate::tree::Tree;

#[derive(Debug, Clone, Default)]
pub(crate) struct Workspace {
    /// The packages of this repository, by name.
    pub(crate) members: BTreeMap<String, Package>,
    /// Each package's direct dependencies for building its library and binaries: neither tests nor build scripts.
    dependencies: BTreeMap<String, Vec<String>>,
    names: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Package {
    id: String,
    /// The directory of its Cargo.toml.
    pub(crate) directory: PathBuf,
    pub(crate) targets: Vec<Target>,
}

#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) source: PathBuf,
}

impl Workspace {
    pub(crate) fn read(tree: &Tree) -> Result<Self> {
        let text = output(
            tree.cargo()
                .args(["metadata", "--format-version", "1", "--locked"]),
        )?;
        Self::parse(&text).context("cargo metadata printed something unexpected")
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        let root: Value = serde_json::from_str(text)?;
        let mut workspace = Self::default();
        let members: BTreeSet<String> = array(&root, "workspace_members")?
            .iter()
            .map(string)
            .collect::<Result<_>>()?;
        for package in array(&root, "packages")? {
            let (id, name) = (field(package, "id")?, field(package, "name")?);
            workspace.names.insert(id.clone(), name.clone());
            if members.contains(&id) {
                let manifest = PathBuf::from(field(package, "manifest_path")?);
                let directory = manifest
                    .parent()
                    .context("a manifest lies in a directory")?
                    .to_path_buf();
                let targets = array(package, "targets")?
                    .iter()
                    .map(target)
                    .collect::<Result<_>>()?;
                workspace.members.insert(
                    name,
                    Package {
                        id,
                        directory,
                        targets,
                    },
                );
            }
        }
        for node in array(root.get("resolve").context("no resolve")?, "nodes")? {
            let needed = array(node, "deps")?.iter().filter_map(|dependency| {
                let kinds = dependency.get("dep_kinds")?.as_array()?;
                kinds
                    .iter()
                    .any(|kind| kind.get("kind").is_some_and(Value::is_null))
                    .then(|| field(dependency, "pkg"))
            });
            workspace
                .dependencies
                .insert(field(node, "id")?, needed.collect::<Result<_>>()?);
        }
        Ok(workspace)
    }

    /// The names of what a member depends on, directly.
    pub(crate) fn direct(&self, member: &str) -> BTreeSet<&str> {
        let ids = self
            .members
            .get(member)
            .and_then(|package| self.dependencies.get(&package.id));
        ids.into_iter()
            .flatten()
            .filter_map(|id| self.names.get(id))
            .map(String::as_str)
            .collect()
    }

    /// How `member` comes to depend on a package that `wanted` picks: the names from the member to it. None if it does not.
    pub(crate) fn path_to(&self, member: &str, wanted: impl Fn(&str) -> bool) -> Option<Vec<&str>> {
        let start = self.members.get(member)?.id.as_str();
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([start]);
        while let Some(id) = queue.pop_front() {
            if id != start && self.names.get(id).is_some_and(|name| wanted(name)) {
                let mut path = vec![id];
                while let Some(previous) = path.last().and_then(|last| came_from.get(last)) {
                    path.push(previous);
                }
                return Some(
                    path.into_iter()
                        .rev()
                        .filter_map(|id| self.names.get(id))
                        .map(String::as_str)
                        .collect(),
                );
            }
            for next in self.dependencies.get(id).into_iter().flatten() {
                if next != start && !came_from.contains_key(next.as_str()) {
                    came_from.insert(next, id);
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

fn target(value: &Value) -> Result<Target> {
    let kind = array(value, "kind")?
        .first()
        .map(string)
        .context("a target has a kind")??;
    Ok(Target {
        name: field(value, "name")?,
        kind,
        source: PathBuf::from(field(value, "src_path")?),
    })
}

fn array<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    value
        .get(name)
        .and_then(Value::as_array)
        .with_context(|| format!("no list {name}"))
}

fn field(value: &Value, name: &str) -> Result<String> {
    string(value.get(name).with_context(|| format!("no {name}"))?)
}

fn string(value: &Value) -> Result<String> {
    Ok(value
        .as_str()
        .with_context(|| format!("{value} is no string"))?
        .to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    /// A workspace of packages and their dependencies; the names that hold `!` are members' and are said without it.
    pub(crate) fn workspace(packages: &[(&str, &[&str])]) -> Workspace {
        let mut workspace = Workspace::default();
        for (name, dependencies) in packages {
            let plain = name.trim_end_matches('!');
            workspace.names.insert(plain.to_owned(), plain.to_owned());
            workspace.dependencies.insert(
                plain.to_owned(),
                dependencies.iter().map(|it| (*it).to_owned()).collect(),
            );
            if plain != *name {
                let package = Package {
                    id: plain.to_owned(),
                    directory: plain.into(),
                    targets: Vec::new(),
                };
                workspace.members.insert(plain.to_owned(), package);
            }
        }
        workspace
    }

    #[test]
    fn only_what_is_built_in_counts_as_a_dependency() {
        let text = r#"{
            "workspace_members": ["a"],
            "packages": [
                {"id": "a", "name": "a", "manifest_path": "/w/a/Cargo.toml",
                 "targets": [{"kind": ["lib"], "name": "a", "src_path": "/w/a/src/lib.rs"}]},
                {"id": "b", "name": "b"}, {"id": "c", "name": "c"}
            ],
            "resolve": {"nodes": [
                {"id": "a", "deps": [
                    {"pkg": "b", "dep_kinds": [{"kind": null}, {"kind": "dev"}]},
                    {"pkg": "c", "dep_kinds": [{"kind": "dev"}]}
                ]},
                {"id": "b", "deps": []}, {"id": "c", "deps": []}
            ]}
        }"#;
        let workspace = Workspace::parse(text).unwrap();
        assert_eq!(workspace.direct("a"), BTreeSet::from(["b"]));
        assert_eq!(workspace.members["a"].targets[0].kind, "lib");
    }

    #[test]
    fn the_way_to_a_dependency_is_told() {
        let workspace = workspace(&[
            ("core!", &["left"]),
            ("left", &["right"]),
            ("right", &["left", "tokio"]),
            ("tokio", &[]),
        ]);
        let path = workspace.path_to("core", |name| name == "tokio").unwrap();
        assert_eq!(path, ["core", "left", "right", "tokio"]);
        assert_eq!(workspace.path_to("core", |name| name == "kube"), None);
    }
}
