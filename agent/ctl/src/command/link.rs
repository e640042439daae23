//! `clustermesh connect` and `disconnect`: a link is one file in the mesh server's directory of links.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ipnet::IpNet;
use isthmus_core::mesh::Fault;
use isthmus_core::model::{ClusterId, ClusterName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mesh;
use crate::cli::{Connect, Global, Links, Tls};
use crate::client::{Agent, poll};
use crate::output::show;
use crate::report::link::{ClusterLink, Done};
use crate::report::mesh::{Cidrs, ClusterMeshStatus, other_side};
use crate::text::Seconds;

/// A link's file, in the shape of the later custom resource.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LinkFile<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: &'a Spec,
}

#[derive(Debug, Serialize)]
struct Metadata<'a> {
    name: &'a ClusterName,
}

#[derive(Debug, Serialize)]
struct Spec {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<ClusterId>,
    endpoints: Vec<String>,
    /// None: where it says. Empty: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    cidrs: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsFiles>,
}

/// What a link's file says already. A term that the command line does not name stays: nobody loses a limit because an
/// endpoint changed.
#[derive(Debug, Default, Deserialize)]
struct Standing {
    spec: StandingSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StandingSpec {
    id: Option<ClusterId>,
    endpoints: Vec<String>,
    cidrs: Option<Vec<String>>,
    limits: Option<Value>,
    tls: Option<TlsFiles>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct TlsFiles {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

pub(super) async fn connect(global: &Global, connect: &Connect) -> Result<ExitCode> {
    let own = own_side(&global.socket).await;
    if let Some(own) = &own {
        not_ourselves(connect, own)?;
    }
    let file = link_path(&connect.links.links, &connect.name);
    let stands = standing(&file)?.spec;
    let spec = spec(connect, &stands)?;
    let text = link_text(&connect.name, &spec)?;
    let started = Instant::now();
    let done = write(&file, &text)?;
    let mut report = report(&connect.name, &file, done);
    report.describe_other_side(own.as_ref(), other_side);
    let Some(time) = connect.wait else {
        return show(&report, global);
    };
    let awaited = Awaited {
        name: connect.name.as_str(),
        anew: spec.leads_elsewhere(&stands, &connect.links.links),
        spec: &spec,
    };
    let connected = |status: &ClusterMeshStatus| awaited.is_there(status, started.elapsed());
    let answer = poll(&global.socket, time, mesh, connected).await;
    if let Ok((status, false)) = &answer {
        report.not_connected_because = Some(awaited.why_not(status));
    }
    report.connected = Some(answer.as_ref().is_ok_and(|(_, done)| *done));
    report.waited_seconds = Some(Seconds::new(started.elapsed().as_secs_f64()));
    let code = show(&report, global)?;
    // The link stays either way; if it was the agent that did not answer, that is the error.
    answer.map(|_| code)
}

pub(super) async fn disconnect(
    global: &Global,
    name: &ClusterName,
    links: &Links,
) -> Result<ExitCode> {
    let file = link_path(&links.links, name);
    match fs::remove_file(&file) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "no link to {name}: {} is not there; --links names another directory",
                file.display()
            )
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot remove {}", file.display()));
        }
    }
    let own = own_side(&global.socket).await;
    let mut report = report(name, &file, Done::Removed);
    report.describe_other_side(own.as_ref(), |cluster, _, _| {
        format!("agentctl clustermesh disconnect {cluster}")
    });
    show(&report, global)
}

/// What `--wait` waits for: that the peer is connected as its link says now, and not as it said before.
struct Awaited<'a> {
    name: &'a str,
    spec: &'a Spec,
    /// The mesh server ends a stream that stands, and connects again.
    anew: bool,
}

impl Awaited<'_> {
    /// `waited` since the link was written.
    fn is_there(&self, status: &ClusterMeshStatus, waited: Duration) -> bool {
        status.is_connected(self.name) && self.is_as_written(status, waited)
    }

    fn is_as_written(&self, status: &ClusterMeshStatus, waited: Duration) -> bool {
        let Some(peer) = status.peers.iter().find(|peer| peer.name == self.name) else {
            return false;
        };
        let led = peer.endpoint.as_ref();
        let led = led.is_some_and(|endpoint| self.spec.endpoints.contains(endpoint));
        let pinned = self.spec.id.map(|id| u32::from(id.get()));
        let waited = Seconds::new(waited.as_secs_f64());
        let since = peer.state_seconds.is_some_and(|since| since <= waited);
        led && (pinned.is_none() || pinned == peer.id)
            && (since || !self.anew)
            && self.allows(&peer.cidrs)
    }

    /// The mesh server holds the peer to the ranges as written.
    fn allows(&self, cidrs: &Cidrs) -> bool {
        let Some(wanted) = &self.spec.cidrs else {
            return true;
        };
        let ranges = |texts: &[String]| -> Option<Vec<IpNet>> {
            texts.iter().map(|text| text.parse().ok()).collect()
        };
        let allowed = cidrs.allowed.as_deref().and_then(ranges);
        cidrs.from.as_deref() == Some("link") && allowed.is_some() && allowed == ranges(wanted)
    }

    fn why_not(&self, status: &ClusterMeshStatus) -> String {
        if status.is_connected(self.name) {
            return "it is still connected as its link said before: does the mesh server's --links name this directory?"
                .to_owned();
        }
        status.why_not_connected(self.name)
    }
}

impl Spec {
    /// Whether a mesh server that follows `before`, a file of `directory`, connects anew. No if nothing was there before:
    /// what it follows then is not known, and if it is the same (the link was removed a moment ago) its stream goes on.
    fn leads_elsewhere(&self, before: &StandingSpec, directory: &Path) -> bool {
        let tls = |tls: &Option<TlsFiles>| tls.as_ref().map(|tls| tls.below(directory));
        !before.endpoints.is_empty()
            && (before.endpoints != self.endpoints
                || before.id != self.id
                || tls(&before.tls) != tls(&self.tls))
    }
}

/// What the agent knows of this side; none if it does not answer. A link can be written without it.
async fn own_side(socket: &Path) -> Option<ClusterMeshStatus> {
    mesh(&mut Agent::connect(socket).await.ok()?).await.ok()
}

fn not_ourselves(connect: &Connect, own: &ClusterMeshStatus) -> Result<()> {
    let node = &own.node;
    ensure!(
        connect.name.as_str() != node.cluster,
        "{} is this cluster itself; name the other one",
        node.cluster
    );
    if let Some(id) = connect.id
        && u32::from(id.get()) == node.cluster_id
    {
        let (one, other) = (node.cluster.parse()?, connect.name.clone());
        return Err(Fault::DuplicateId { id, one, other }.into());
    }
    Ok(())
}

impl TlsFiles {
    /// Where the files are: their paths begin at the link's own directory.
    fn below(&self, directory: &Path) -> Self {
        let begin = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        Self {
            ca: begin.join(&self.ca),
            cert: begin.join(&self.cert),
            key: begin.join(&self.key),
        }
    }

    /// None if nothing was named: the link then uses the mesh server's own. A file that is not there would be written
    /// into the link, and the link never connect.
    fn of(tls: &Tls) -> Result<Option<Self>> {
        let Tls {
            tls_ca: Some(ca),
            tls_cert: Some(cert),
            tls_key: Some(key),
        } = tls
        else {
            return Ok(None);
        };
        let there = |file: &PathBuf| -> Result<PathBuf> {
            fs::metadata(file).with_context(|| {
                let file = file.display();
                format!("{file} cannot be used; without a PKI, `agentctl clustermesh certs` makes certificates")
            })?;
            // The link's own directory is where its relative paths begin, not this process's.
            Ok(std::path::absolute(file)?)
        };
        Ok(Some(Self {
            ca: there(ca)?,
            cert: there(cert)?,
            key: there(key)?,
        }))
    }
}

/// # Errors
/// The file is there and is no link: what it meant to allow would be lost.
fn standing(file: &Path) -> Result<Standing> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Standing::default()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", file.display()));
        }
    };
    serde_saphyr::from_str(&text).map_err(|error| {
        let (file, error) = (file.display(), error.without_snippet());
        anyhow!("{file} is there and cannot be read, so its terms cannot be kept ({error}): correct or remove it first")
    })
}

fn spec(connect: &Connect, stands: &StandingSpec) -> Result<Spec> {
    let cidrs = connect.cidrs.iter().map(ToString::to_string);
    Ok(Spec {
        id: connect.id.or(stands.id),
        endpoints: connect.endpoints.iter().map(ToString::to_string).collect(),
        cidrs: if connect.cidrs.is_empty() {
            stands.cidrs.clone()
        } else {
            Some(cidrs.collect())
        },
        limits: stands.limits.clone(),
        tls: TlsFiles::of(&connect.tls)?.or_else(|| stands.tls.clone()),
    })
}

fn link_text(name: &ClusterName, spec: &Spec) -> Result<String> {
    let link = LinkFile {
        api_version: "mesh.isthmus.dev/v1alpha1",
        kind: "ClusterLink",
        metadata: Metadata { name },
        spec,
    };
    serde_saphyr::to_string(&link).context("cannot write the link as YAML")
}

fn link_path(directory: &Path, name: &ClusterName) -> PathBuf {
    directory.join(format!("{name}.yaml"))
}

/// Whole or not at all: written beside, made durable, renamed into place.
fn write(file: &Path, text: &str) -> Result<Done> {
    if fs::read_to_string(file).is_ok_and(|there| there == text) {
        return Ok(Done::Unchanged);
    }
    let directory = file.parent().context("a link's file has a directory")?;
    let written = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut beside = tempfile::Builder::new()
            .prefix(".link-")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(directory)?;
        beside.write_all(text.as_bytes())?;
        beside.as_file().sync_all()?;
        beside.persist(file)?;
        fs::File::open(directory)?.sync_all()
    };
    written().with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Done::Written)
}

fn report(name: &ClusterName, file: &Path, done: Done) -> ClusterLink {
    ClusterLink {
        name: name.as_str().to_owned(),
        file: file.display().to_string(),
        done,
        connected: None,
        waited_seconds: None,
        not_connected_because: None,
        other_side: String::new(),
        other_side_is_incomplete: false,
    }
}

impl ClusterLink {
    /// `command` gets this cluster's name, its id and where it is reached, as far as they are known.
    fn describe_other_side(
        &mut self,
        own: Option<&ClusterMeshStatus>,
        command: impl Fn(&str, Option<u32>, Option<&str>) -> String,
    ) {
        self.other_side = match own {
            Some(own) => command(
                &own.node.cluster,
                Some(own.node.cluster_id),
                own.own_endpoint(),
            ),
            None => command("CLUSTER", None, None),
        };
        let word = |word: &str| word.starts_with("CLUSTER") || word.starts_with("HOST:");
        self.other_side_is_incomplete = self.other_side.split(' ').any(word);
    }
}

#[cfg(test)]
mod tests;
