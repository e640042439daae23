//! A lab file: which clusters, nodes, pods and wires a world has.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// What stands in a lab file. `clusters` come in the order of their addresses.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabSpec {
    pub clusters: Vec<ClusterSpec>,
    #[serde(default)]
    pub links: Vec<LinkSpec>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    pub name: String,
    /// 1 to 511. Two clusters may have one id: that is a fault to be found by the mesh, not here.
    pub id: u16,
    /// Given to the cluster's Nodes as their region; each node is a zone of it.
    #[serde(default)]
    pub region: Option<String>,
    #[serde(default = "one")]
    pub nodes: u8,
    /// A manifest or a directory of manifests that the cluster begins with; relative to the working directory.
    #[serde(default)]
    pub manifests: Option<PathBuf>,
    #[serde(default)]
    pub pods: Vec<PodSpec>,
}

/// Pods of one kind, spread over the cluster's nodes in turn.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodSpec {
    pub name: String,
    #[serde(default = "one")]
    pub count: u8,
    #[serde(default = "default_namespace")]
    pub namespace: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Port → the service that it answers for. Unless given, the ports of the manifests' services that select the pod.
    #[serde(default)]
    pub serves: Option<BTreeMap<u16, String>>,
}

/// A wire between two clusters. Clusters without one do not reach each other, and are not linked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    pub between: (String, String),
    /// Share of packets lost each way, 0 to 1.
    #[serde(default)]
    pub loss: f64,
}

/// A lab's name: 1 to 12 lower-case letters and digits, so that `isthmus-NAME-…` can be taken apart again.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl LabName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LabName {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let fits = (1..=12).contains(&text.len())
            && text
                .bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        ensure!(
            fits,
            "lab name {text:?} is not 1 to 12 lower-case letters and digits"
        );
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = anyhow::Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Bounds that the lab's addresses set (see [`crate::layout`]).
const CLUSTERS_MAX: usize = 9;
const PODS_PER_CLUSTER_MAX: usize = 200;

impl LabSpec {
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the lab file {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    pub fn parse(text: &str) -> Result<Self> {
        let spec: Self = serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{e}"))?;
        spec.check()?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (1..=CLUSTERS_MAX).contains(&self.clusters.len()),
            "clusters: {} of them; a lab has 1 to {CLUSTERS_MAX}",
            self.clusters.len()
        );
        for (i, cluster) in self.clusters.iter().enumerate() {
            let name = &cluster.name;
            if self.clusters[..i].iter().any(|c| c.name == *name) {
                bail!("clusters[{i}].name: {name} is there twice");
            }
            cluster
                .check()
                .with_context(|| format!("clusters[{i}] ({name})"))?;
        }
        for (i, link) in self.links.iter().enumerate() {
            link.check(&self.clusters)
                .with_context(|| format!("links[{i}]"))?;
        }
        Ok(())
    }
}

impl ClusterSpec {
    fn check(&self) -> Result<()> {
        ensure!(
            is_label(&self.name) && self.name.len() <= 32,
            "name: {:?} is not 1 to 32 lower-case letters, digits and inner '-'",
            self.name
        );
        ensure!(
            (1..=511).contains(&self.id),
            "id: {} is not 1..511",
            self.id
        );
        ensure!(
            (1..=100).contains(&self.nodes),
            "nodes: {} is not 1..100",
            self.nodes
        );
        let pods: usize = self.pods.iter().map(|p| usize::from(p.count)).sum();
        ensure!(
            pods <= PODS_PER_CLUSTER_MAX,
            "pods: {pods} in all; a cluster has at most {PODS_PER_CLUSTER_MAX}"
        );
        let mut names = std::collections::BTreeSet::new();
        for (i, pod) in self.pods.iter().enumerate() {
            ensure!(
                is_label(&pod.name),
                "pods[{i}].name: {:?} is not 1 to 40 lower-case letters, digits and inner '-'",
                pod.name
            );
            for name in pod.names() {
                ensure!(
                    names.insert(name.clone()),
                    "pods[{i}].name: {name} is there twice"
                );
            }
        }
        Ok(())
    }
}

impl PodSpec {
    /// `client` for a single pod, `backend-1`, `backend-2`… for several.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.count).map(|i| match self.count {
            1 => self.name.clone(),
            _ => format!("{}-{i}", self.name),
        })
    }
}

impl LinkSpec {
    fn check(&self, clusters: &[ClusterSpec]) -> Result<()> {
        let (a, b) = &self.between;
        for name in [a, b] {
            ensure!(
                clusters.iter().any(|c| c.name == *name),
                "between: there is no cluster {name}"
            );
        }
        ensure!(a != b, "between: {a} twice; a wire joins two clusters");
        ensure!(
            (0.0..=1.0).contains(&self.loss),
            "loss: {} is not a share from 0 to 1",
            self.loss
        );
        Ok(())
    }
}

fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 40
        && bytes.first().is_some_and(|&c| inner(c))
        && bytes.last().is_some_and(|&c| inner(c))
        && bytes.iter().all(|&c| inner(c) || c == b'-')
}

fn one() -> u8 {
    1
}

fn default_namespace() -> String {
    "default".to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    /// The one that people are pointed to.
    const TWO: &str = include_str!("../labs/two-clusters.yaml");

    #[test]
    fn every_lab_file_is_read_and_the_manifests_it_names_are_there() {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = 0;
        for file in std::fs::read_dir(tests.join("labs")).unwrap() {
            let spec = LabSpec::read(&file.unwrap().path()).unwrap();
            for path in spec.clusters.iter().filter_map(|c| c.manifests.as_ref()) {
                let from_the_root = tests.parent().unwrap().join(path);
                assert!(from_the_root.exists(), "{}", from_the_root.display());
            }
            files += 1;
        }
        assert!(files > 0);
    }

    #[test]
    fn the_sample_is_what_it_says() {
        let spec = LabSpec::parse(TWO).unwrap();
        assert_eq!(spec.clusters.len(), 2);
        assert_eq!(
            spec.clusters[0].pods[0].names().collect::<Vec<_>>(),
            ["backend-1", "backend-2"]
        );
        assert_eq!(
            spec.clusters[0].pods[1].names().collect::<Vec<_>>(),
            ["client"]
        );
        assert_eq!(spec.links.len(), 1);
    }

    #[test]
    fn faults_are_named_with_their_place() {
        for (from, to, wants) in [
            ("region: us-east", "regoin: us-east", "line 3"),
            ("id: 2", "id: 700", "700"),
            (
                "name: west",
                "name: east",
                "clusters[1].name: east is there twice",
            ),
            ("[east, west]", "[east, south]", "there is no cluster south"),
            ("loss: 0.0", "loss: 3", "loss: 3 is not a share"),
            (
                "name: client",
                "name: backend-1",
                "backend-1 is there twice",
            ),
            ("name: client", "name: Client_", "pods[1].name"),
        ] {
            let error = LabSpec::parse(&TWO.replace(from, to)).unwrap_err();
            assert!(format!("{error:#}").contains(wants), "{to}: {error:#}");
        }
    }

    #[test]
    fn lab_names_can_be_taken_apart() {
        assert!("demo".parse::<LabName>().is_ok());
        for bad in ["", "a-b", "Lab", "thirteenchars"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }
}
