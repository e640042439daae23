//! A cluster's directory of manifests: what its agents and its mesh server read. Every file comes by rename, whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::layout::{NodePlan, PodPlan};

#[derive(Clone, Debug)]
pub struct Manifests {
    dir: PathBuf,
}

/// What a pod's manifest says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PodStatus {
    Ready,
    /// The Ready condition is false.
    NotReady,
    /// Has a deletion timestamp, and still serves.
    Terminating,
}

impl Manifests {
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }
    /// Puts a file in place, new or instead of its former content.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let half = self.dir.join(format!(".{file}.new"));
        fs::write(&half, text).with_context(|| half.display().to_string())?;
        fs::rename(&half, self.dir.join(file))
            .with_context(|| format!("cannot put {file} in place"))
    }
    /// Writes objects as YAML, documents of one file.
    pub fn write_objects(&self, file: &str, objects: &[Value]) -> Result<()> {
        let documents = objects
            .iter()
            .map(serde_saphyr::to_string)
            .collect::<Result<Vec<_>, _>>()?;
        self.write(file, &documents.join("---\n"))
    }
    pub fn read(&self, file: &str) -> Result<String> {
        let path = self.path(file);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.path(file);
        fs::remove_file(&path).with_context(|| path.display().to_string())
    }
    /// Sets an annotation of the file's only object, or removes it.
    pub fn annotate(&self, file: &str, key: &str, value: Option<&str>) -> Result<()> {
        let mut object: Value = serde_saphyr::from_str(&self.read(file)?)
            .map_err(|e| anyhow::anyhow!("{file}: {e}"))?;
        let metadata = object["metadata"]
            .as_object_mut()
            .with_context(|| format!("{file} has no metadata"))?;
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        match value {
            Some(value) => annotations[key] = json!(value),
            None => {
                annotations.as_object_mut().and_then(|a| a.remove(key));
            }
        }
        self.write_objects(file, &[object])
    }
    /// Copies a manifest, or all manifests of a directory.
    pub fn copy_from(&self, from: &Path) -> Result<()> {
        for path in manifest_files(from)? {
            let name = path
                .file_name()
                .and_then(|n| n.to_str())
                .context("a manifest's name is not UTF-8")?;
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            self.write(name, &text)?;
        }
        Ok(())
    }
}

/// The manifests that `path` is or holds, in order.
pub(crate) fn manifest_files(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let entries =
        fs::read_dir(path).with_context(|| format!("no manifests at {}", path.display()))?;
    let is_manifest = |p: &PathBuf| {
        p.extension()
            .is_some_and(|e| ["yaml", "yml", "json"].iter().any(|x| e == *x))
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(is_manifest)
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "no manifest in {}", path.display());
    Ok(files)
}

/// The ports of the services at `path` that select a pod, each with its service.
pub(crate) fn ports_selecting(
    path: &Path,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> Result<BTreeMap<u16, String>> {
    let mut ports = BTreeMap::new();
    for file in manifest_files(path)? {
        let text = fs::read_to_string(&file)?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
            .map_err(|e| anyhow::anyhow!("{}: {e}", file.display()))?;
        for service in documents
            .iter()
            .filter(|d| d["kind"] == "Service" && selects(d, namespace, labels))
        {
            let name = service["metadata"]["name"].as_str().unwrap_or_default();
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let number = port["targetPort"]
                    .as_u64()
                    .or_else(|| port["port"].as_u64());
                let number = number.and_then(|n| u16::try_from(n).ok());
                ports.extend(number.map(|n| (n, format!("{namespace}/{name}"))));
            }
        }
    }
    Ok(ports)
}

fn selects(service: &Value, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = service["spec"]["selector"]
        .as_object()
        .filter(|s| !s.is_empty())
    else {
        return false;
    };
    let of_namespace = service["metadata"]["namespace"]
        .as_str()
        .unwrap_or("default")
        == namespace;
    of_namespace
        && selector
            .iter()
            .all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str())
}

/// A Node as a cloud provider would label it, each in a zone of its own: `us-east-a`, `us-east-b`…
pub(crate) fn node_object(plan: &NodePlan, region: &str) -> Value {
    let zone = format!("{region}-{}", zone_letters(plan.number));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": plan.name, "labels": {
            "topology.kubernetes.io/region": region,
            "topology.kubernetes.io/zone": zone,
        }},
    })
}

/// `a` to `z`, then `aa`…
fn zone_letters(number: u8) -> String {
    let (more, last) = (usize::from(number - 1) / 26, usize::from(number - 1) % 26);
    let letter = |n: usize| char::from(b"abcdefghijklmnopqrstuvwxyz"[n]);
    let first = more.checked_sub(1).map(letter);
    first.into_iter().chain([letter(last)]).collect()
}

/// A Pod as a kubelet would report it.
pub(crate) fn pod_object(
    plan: &PodPlan,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    status: PodStatus,
) -> Value {
    let ready = if status == PodStatus::NotReady {
        "False"
    } else {
        "True"
    };
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": plan.name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": plan.node.name},
        "status": {
            "phase": "Running",
            "podIP": plan.addresses.v4,
            "podIPs": [{"ip": plan.addresses.v4}, {"ip": plan.addresses.v6}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    });
    if status == PodStatus::Terminating {
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    pod
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    #[test]
    fn an_annotation_comes_and_goes_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let manifests = Manifests::new(dir.path().to_owned());
        let text = "kind: Service\nmetadata:\n  name: a\n  annotations: {x: 'true'}\nspec: {ports: [{port: 80}]}\n";
        manifests.write("a.yaml", text).unwrap();
        let before: Value = serde_saphyr::from_str(text).unwrap();
        manifests
            .annotate("a.yaml", "service.cilium.io/affinity", Some("local"))
            .unwrap();
        let with: Value = serde_saphyr::from_str(&manifests.read("a.yaml").unwrap()).unwrap();
        assert_eq!(
            with["metadata"]["annotations"]["service.cilium.io/affinity"],
            "local"
        );
        assert_eq!(with["metadata"]["annotations"]["x"], "true");
        manifests
            .annotate("a.yaml", "service.cilium.io/affinity", None)
            .unwrap();
        let without: Value = serde_saphyr::from_str(&manifests.read("a.yaml").unwrap()).unwrap();
        assert_eq!(before, without);
    }

    #[test]
    fn zones_have_letters() {
        let rows = [(1, "a"), (26, "z"), (27, "aa"), (100, "cv")];
        for (number, wanted) in rows {
            assert_eq!(zone_letters(number), wanted);
        }
    }

    #[test]
    fn a_pod_serves_what_selects_it() {
        let dir = tempfile::tempdir().unwrap();
        let service = "kind: Service\nmetadata: {name: NAME, namespace: prod}\nspec: {selector: {app: a}, ports: [{port: 80, targetPort: PORT}]}\n";
        let text = format!(
            "{}---\n{}",
            service.replace("NAME", "one").replace("PORT", "8080"),
            service
                .replace("NAME", "two")
                .replace("PORT", "8081")
                .replace("app: a", "app: b")
        );
        Manifests::new(dir.path().to_owned())
            .write("s.yaml", &text)
            .unwrap();
        let labels = BTreeMap::from([
            ("app".to_owned(), "a".to_owned()),
            ("x".to_owned(), "y".to_owned()),
        ]);
        let ports = ports_selecting(dir.path(), "prod", &labels).unwrap();
        assert_eq!(ports, BTreeMap::from([(8080, "prod/one".to_owned())]));
        assert!(
            ports_selecting(dir.path(), "default", &labels)
                .unwrap()
                .is_empty()
        );
    }
}
