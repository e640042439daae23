//! The direction of dependencies: who may build on what, and where the kernel's side may appear.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::sources;
use crate::metadata::Workspace;
use crate::tree::Tree;

/// What a package may not reach, by any way, or may only reach.
enum Law {
    /// Direct dependencies are among these.
    Only(&'static [&'static str]),
    /// None of these families is below it. A family is a package and everything that begins with its name and a dash.
    Never(&'static [&'static str]),
}

const LAWS: &[(&str, Law)] = &[
    ("isthmus-abi", Law::Only(&["zerocopy"])),
    (
        "isthmus-datapath",
        Law::Only(&["isthmus-abi", "aya-ebpf", "aya-log-ebpf"]),
    ),
    // Pure: a decision that needs a clock, a socket or a runtime belongs to the caller.
    (
        "isthmus-core",
        Law::Never(&[
            "aya",
            "axum",
            "hyper",
            "isthmus-agent",
            "isthmus-mesh",
            "isthmus-proto",
            "k8s-openapi",
            "kube",
            "mio",
            "nix",
            "notify",
            "prost",
            "rustls",
            "socket2",
            "tokio",
            "tonic",
            "tracing-subscriber",
        ]),
    ),
    (
        "isthmus-proto",
        Law::Never(&[
            "aya",
            "isthmus-agent",
            "isthmus-core",
            "isthmus-mesh",
            "kube",
        ]),
    ),
    ("isthmus-mesh", Law::Never(&["aya", "isthmus-agent"])),
    ("agentctl", Law::Never(&["aya", "isthmus-agent", "kube"])),
    // Nothing builds on the tests, and the tests' door builds on nothing.
    (
        "isthmus-agent",
        Law::Never(&[
            "isthmus-fuzz",
            "isthmus-test-programs",
            "isthmus-tests",
            "xtask",
        ]),
    ),
    (
        "isthmus-fuzz",
        Law::Never(&["aya", "isthmus-agent", "isthmus-tests"]),
    ),
    (
        "isthmus-test-programs",
        Law::Never(&["isthmus-fuzz", "isthmus-tests"]),
    ),
    (
        "xtask",
        Law::Only(&["anyhow", "lexopt", "serde_json", "toml"]),
    ),
];

/// The one place of the host's code that speaks to the kernel's BPF side.
const SEAM: &str = "agent/src/datapath";
/// And that of the programs that only tests load.
const TESTS_SEAM: &str = "tests/programs/src";

pub(super) fn check(tree: &Tree, workspace: &Workspace) -> Result<Vec<String>> {
    let mut faults = faults(workspace);
    for (member, package) in &workspace.members {
        if member == "isthmus-datapath" {
            continue;
        }
        for file in sources::below(&package.directory)? {
            let shown = file.strip_prefix(&tree.root).unwrap_or(&file);
            let behind = [SEAM, TESTS_SEAM]
                .iter()
                .any(|seam| shown.starts_with(seam));
            if !behind && shown != Path::new("agent/src/datapath.rs") {
                let text = fs::read_to_string(&file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                faults.extend(beyond_the_seam(&text).map(|(line, word)| {
                    format!(
                        "{}:{line}: `{word}` belongs behind the kernel seam, in {SEAM}",
                        shown.display()
                    )
                }));
            }
        }
    }
    Ok(faults)
}

fn faults(workspace: &Workspace) -> Vec<String> {
    let mut faults = Vec::new();
    for (member, law) in LAWS {
        match law {
            Law::Only(allowed) => {
                let others = workspace
                    .direct(member)
                    .into_iter()
                    .filter(|name| !allowed.contains(name));
                faults.extend(others.map(|name| {
                    format!(
                        "{member} depends on {name}; it may depend on {} only",
                        allowed.join(", ")
                    )
                }));
            }
            Law::Never(families) => {
                let within = |name: &str, family: &str| {
                    name.strip_prefix(family)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
                };
                for family in *families {
                    if let Some(path) = workspace.path_to(member, |name| within(name, family)) {
                        faults.push(format!(
                            "{member} must not depend on {family}, and does: {}",
                            path.join(" -> ")
                        ));
                    }
                }
            }
        }
    }
    let lawless = workspace
        .members
        .keys()
        .filter(|name| !LAWS.iter().any(|(known, _)| known == name));
    faults.extend(
        lawless
            .filter(|name| *name != "isthmus-tests")
            .map(|name| format!("{name} has no law in xtask/src/check/layers.rs")),
    );
    faults
}

/// Lines, counted from 1, that say `unsafe` or name aya, outside comments and strings.
fn beyond_the_seam(text: &str) -> impl Iterator<Item = (usize, &'static str)> + '_ {
    sources::code_lines(text).flat_map(|(number, line)| {
        ["unsafe", "aya"]
            .into_iter()
            .filter(move |word| sources::has_word(&line, word))
            .map(move |word| (number, word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::workspace;

    const LAWFUL: &[(&str, &[&str])] = &[
        ("isthmus-abi!", &["zerocopy"]),
        ("isthmus-datapath!", &["isthmus-abi"]),
        ("isthmus-core!", &["isthmus-abi", "serde"]),
        ("isthmus-agent!", &["isthmus-core", "aya", "tokio"]),
        ("zerocopy", &[]),
        ("serde", &[]),
        ("aya", &["aya-obj"]),
        ("aya-obj", &[]),
        ("tokio", &[]),
        ("tokio-util", &["tokio"]),
    ];

    #[test]
    fn a_lawful_workspace_has_no_fault() {
        assert_eq!(faults(&workspace(LAWFUL)), Vec::<String>::new());
    }

    #[test]
    fn a_forbidden_family_is_found_through_others_and_the_way_is_told() {
        let mut packages = LAWFUL.to_vec();
        packages[2] = ("isthmus-core!", &["serde", "tokio-util"]);
        let found = faults(&workspace(&packages));
        assert_eq!(
            found,
            ["isthmus-core must not depend on tokio, and does: isthmus-core -> tokio-util"]
        );
    }

    #[test]
    fn a_direct_dependency_beyond_the_list_and_a_package_without_a_law_are_found() {
        let mut packages = LAWFUL.to_vec();
        packages[0] = ("isthmus-abi!", &["zerocopy", "serde"]);
        packages.push(("helpers!", &[]));
        let found = faults(&workspace(&packages));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].contains("isthmus-abi depends on serde")
                && found[1].contains("helpers has no law")
        );
    }

    #[test]
    fn the_seam_is_seen_in_code_and_not_in_words() {
        let text = "#![forbid(unsafe_code)]\n// unsafe is elsewhere\nlet s = \"unsafe aya::\";\nuse aya::Ebpf;\nunsafe { f() }\nlet payaya = 1;\n";
        let found: Vec<_> = beyond_the_seam(text).collect();
        assert_eq!(found, [(4, "aya"), (5, "unsafe")]);
    }
}
