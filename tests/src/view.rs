//! What a node's agent says, asked through `agentctl -o json`, and what the kernel says beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use isthmus_agent::datapath::VERSION_PREFIX;
use serde::Deserialize;

use crate::health::connects_of;
use crate::kernel::bpftool;
use crate::lab::Node;
use crate::wait::{SOON, wait_for};

/// A service's address on one node, with the backends behind it (`service list`).
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frontend {
    pub service: String,
    /// None if the service has none.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub protocol: String,
    pub affinity: String,
    pub service_index: Option<u32>,
    pub backends: Vec<Backend>,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
    pub cluster: String,
    pub state: String,
    /// True if new connections are drawn from its tier now.
    pub preferred: bool,
    pub backend_id: Option<u32>,
    pub connects: Option<u64>,
    /// None if it is not in the kernel.
    pub health: Option<Health>,
}

/// What the kernel holds of a backend, as the agent tells it.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    pub state: String,
    pub since_seconds: Option<f64>,
}

/// A program of ours on its hook (`status`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Program {
    pub name: String,
    pub hook: String,
    pub link_id: Option<u32>,
    pub program_id: Option<u32>,
}

/// Another cluster (`clustermesh status`).
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Peer {
    pub name: String,
    pub state: String,
    pub hears_us: Option<bool>,
    pub epoch: Option<String>,
    pub revision: Option<u64>,
    pub complete: bool,
    pub endpoints: u64,
    pub last_error: Option<LinkError>,
    pub dropped_in_seconds: Option<f64>,
}

/// The stream from the cluster's own mesh server (`clustermesh status`).
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Feed {
    pub state: String,
    /// Reconnects that took up where the stream had stopped, since the agent started.
    pub resumed: u64,
    /// The peers are all linked clusters.
    pub listed: bool,
}

#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkError {
    pub text: String,
}

impl Frontend {
    /// Where clients connect to.
    pub fn target(&self) -> Result<SocketAddr> {
        let ip = self
            .address
            .with_context(|| format!("{} has no address", self.service))?;
        Ok(SocketAddr::new(ip, self.port))
    }
    /// Clusters whose backends new connections are drawn from.
    #[must_use]
    pub fn serving_clusters(&self) -> BTreeSet<&str> {
        self.drawn().map(|b| b.cluster.as_str()).collect()
    }
    /// Backends that new connections are drawn from.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.drawn().count()
    }
    /// Those wanted, as far as the kernel has them.
    fn drawn(&self) -> impl Iterator<Item = &Backend> {
        self.backends
            .iter()
            .filter(|b| b.preferred && b.backend_id.is_some())
    }
}

/// Connects that the kernel sent to the backends of one service's address, also to backends that are gone since.
#[derive(Clone, Debug, Default)]
pub struct KernelCounts {
    map: u32,
    /// By backend id: the count when the counting began.
    since: BTreeMap<u32, u64>,
}

impl Node<'_> {
    /// Every frontend of the node.
    pub fn frontends(&self) -> Result<Vec<Frontend>> {
        let answer = self.ask(&["service", "list"])?;
        serde_json::from_value(answer["frontends"].clone())
            .context("`service list` has changed its shape")
    }
    /// The frontends of a service's port, of whichever protocols and families it has: TCP and IPv4 first. An error if
    /// there is none.
    pub fn frontends_of(&self, service: &str, port: u16) -> Result<Vec<Frontend>> {
        let mut all = self.frontends()?;
        all.retain(|f| f.service == service && f.port == port);
        all.sort_by_key(|f| (f.protocol.clone(), f.address));
        ensure!(
            !all.is_empty(),
            "{} knows no frontend of {service}:{port}",
            self.name()
        );
        Ok(all)
    }
    /// The TCP frontend of a service's port, of one family.
    pub fn frontend(&self, service: &str, port: u16, v6: bool) -> Result<Frontend> {
        let family = |f: &Frontend| f.address.is_some_and(|a| a.is_ipv6() == v6);
        let wanted = |f: &Frontend| {
            f.service == service && f.port == port && f.protocol == "TCP" && family(f)
        };
        let found = self.frontends()?.into_iter().find(wanted);
        found.with_context(|| format!("{} knows no frontend of {service}:{port}", self.name()))
    }
    /// Waits until each of [`Self::frontends_of`] `fits`, says how long that took, and gives the first.
    pub fn wait_frontend(
        &self,
        service: &str,
        port: u16,
        what: &str,
        fits: impl Fn(&Frontend) -> bool,
    ) -> Result<(Duration, Frontend)> {
        wait_for(
            &format!("{}: {service}:{port} {what}", self.name()),
            SOON,
            || {
                let all = self.frontends_of(service, port)?;
                for frontend in &all {
                    ensure!(fits(frontend), "it is {frontend:?}");
                }
                Ok(all.into_iter().next())
            },
        )
    }
    /// Our programs, as the agent reports them.
    pub fn program_list(&self) -> Result<Vec<Program>> {
        let answer = self.ask(&["status"])?;
        serde_json::from_value(answer["programs"].clone()).context("`status` has changed its shape")
    }
    /// BPF link id of each of the cgroup's hooks, as the kernel tells them: no agent is asked.
    pub fn kernel_links(&self) -> Result<BTreeMap<String, Vec<u32>>> {
        Ok(by_hook(&self.cgroup_links()?, "attach_type"))
    }
    /// BPF links at tracepoints of the machine, by tracepoint, whose programs use what this node's sockets remember: no
    /// agent is asked. While a program is replaced there are both.
    pub fn kernel_tracepoints(&self) -> Result<BTreeMap<String, Vec<u32>>> {
        // Older than any version of the other maps, and never replaced.
        let pin = self.plan().pins().join("sockets").display().to_string();
        let sockets = bpftool(&["map", "show", "pinned", &pin])?["id"].take();
        let programs = || -> Result<BTreeSet<u32>> {
            let programs = bpftool(&["prog", "show"])?;
            let of_the_node = programs.as_array().into_iter().flatten().filter(|program| {
                let maps = program["map_ids"].as_array();
                maps.is_some_and(|maps| maps.contains(&sockets))
            });
            Ok(of_the_node.filter_map(|p| number(&p["id"])).collect())
        };
        // A link's program may be newer than the first look at programs, or be gone at the second; not both.
        let mut ours = programs()?;
        let links = bpftool(&["link", "show"])?;
        ours.extend(programs()?);
        let mut links = links.as_array().cloned().unwrap_or_default();
        links.retain(|link| {
            link["type"] == "raw_tracepoint"
                && number(&link["prog_id"]).is_some_and(|program| ours.contains(&program))
        });
        Ok(by_hook(&links, "tp_name"))
    }
    /// The program behind each BPF link of the node's cgroup, as the kernel tells them.
    pub fn kernel_programs(&self) -> Result<BTreeMap<u32, u32>> {
        let ids = self.cgroup_links()?.into_iter();
        let ids = ids.map(|link| Some((number(&link["id"])?, number(&link["prog_id"])?)));
        ids.collect::<Option<_>>()
            .context("`bpftool link` names a link without ids")
    }
    fn cgroup_links(&self) -> Result<Vec<serde_json::Value>> {
        let cgroup = std::fs::metadata(self.cgroup())?;
        let id = std::os::unix::fs::MetadataExt::ino(&cgroup);
        let links = bpftool(&["link", "show"])?;
        let mut links = links.as_array().cloned().unwrap_or_default();
        links.retain(|link| link["cgroup_id"] == id);
        Ok(links)
    }
    pub fn feed(&self) -> Result<Feed> {
        let answer = self.ask(&["clustermesh", "status"])?;
        serde_json::from_value(answer["feed"].clone())
            .context("`clustermesh status` has changed its shape")
    }
    /// Waits until the feed has taken up its stream once more than `before` tells, and holds a peer whole and heard.
    pub fn wait_resumed(&self, before: &Feed, peer: &str) -> Result<(Duration, Feed)> {
        let what = format!("{}: the feed is resumed, with {peer}", self.name());
        wait_for(&what, SOON, || {
            let (feed, peer) = (self.feed()?, self.peer(peer)?);
            ensure!(
                feed.resumed > before.resumed && feed.state == "connected" && feed.listed,
                "it is {feed:?}"
            );
            // Between a list's first row and its end mark there is no revision.
            ensure!(
                peer.state == "connected" && peer.complete && peer.revision.is_some(),
                "it is {peer:?}"
            );
            Ok(Some(feed))
        })
    }
    pub fn peer(&self, name: &str) -> Result<Peer> {
        let answer = self.ask(&["clustermesh", "status"])?;
        let peers: Vec<Peer> = serde_json::from_value(answer["peers"].clone())
            .context("`clustermesh status` has changed its shape")?;
        let found = peers.into_iter().find(|p| p.name == name);
        found.with_context(|| format!("{} knows no peer {name}", self.name()))
    }
    /// Waits until a peer is in `state`.
    pub fn wait_peer(&self, name: &str, state: &str) -> Result<(Duration, Peer)> {
        wait_for(
            &format!("{}: peer {name} is {state}", self.name()),
            SOON,
            || {
                let peer = self.peer(name)?;
                ensure!(peer.state == state, "it is {peer:?}");
                Ok(Some(peer))
            },
        )
    }
    /// Writes to the kernel's maps since the agent's start, once nothing is left to write.
    pub fn writes(&self) -> Result<u64> {
        let what = format!("{}: nothing is left to write", self.name());
        let (_, writes) = wait_for(&what, SOON, || {
            let reconcile = self.ask(&["status"])?["reconcile"].take();
            ensure!(reconcile["pending"] == 0, "{reconcile}");
            Ok(reconcile["writes"].as_u64())
        })?;
        Ok(writes)
    }
    /// The id of a map of the agent's, as `bpftool map` shows it.
    pub fn map_id(&self, name: &str) -> Result<u32> {
        let answer = self.ask(&["status"])?;
        let mut maps = answer["maps"].as_array().into_iter().flatten();
        let id = maps
            .find(|m| m["name"] == name)
            .and_then(|m| m["mapId"].as_u64());
        id.and_then(|id| u32::try_from(id).ok())
            .with_context(|| format!("`status` names no map {name}"))
    }
    /// Where a map of the agent's is pinned. No agent is asked; none may be changing over to another version of the maps.
    pub fn map_pin(&self, name: &str) -> Result<PathBuf> {
        let pins = self.plan().pins();
        let entries = std::fs::read_dir(&pins).with_context(|| pins.display().to_string())?;
        let versions = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
        let mut versions = versions.filter(|name| name.starts_with(VERSION_PREFIX));
        let version = versions.next();
        let version = version.with_context(|| format!("{} holds no maps", pins.display()))?;
        Ok(pins.join(version).join(name))
    }
    /// Begins to count the connects of a service's frontend. No connect may be under way, here and at [`Self::counted`].
    pub fn count_from_here(&self, frontend: &Frontend) -> Result<KernelCounts> {
        let map = self.map_id("backends")?;
        let now = self.frontend(
            &frontend.service,
            frontend.port,
            frontend.address.is_some_and(|a| a.is_ipv6()),
        )?;
        let since = now
            .backends
            .iter()
            .filter_map(|b| Some((b.backend_id?, b.connects?)))
            .collect();
        Ok(KernelCounts { map, since })
    }
    /// Connects since then. The count of a backend that is gone stays in the kernel until its id is used again.
    pub fn counted(&self, counts: &KernelCounts, frontend: &Frontend) -> Result<u64> {
        let now = self.frontend(
            &frontend.service,
            frontend.port,
            frontend.address.is_some_and(|a| a.is_ipv6()),
        )?;
        let mut sum = 0;
        for (id, connects) in now
            .backends
            .iter()
            .filter_map(|b| Some((b.backend_id?, b.connects?)))
        {
            // An id whose count went down began a new life.
            let before = counts
                .since
                .get(&id)
                .copied()
                .filter(|before| *before <= connects);
            sum += connects - before.unwrap_or(0);
        }
        let gone = counts
            .since
            .iter()
            .filter(|(id, _)| now.backends.iter().all(|b| b.backend_id != Some(**id)));
        for (id, before) in gone {
            sum += connects_of(counts.map, *id)?.saturating_sub(*before);
        }
        Ok(sum)
    }
}

impl KernelCounts {
    /// Connects since then to the backends of then, read from the kernel: for when no agent can be asked. The next count
    /// begins here.
    pub fn take(&mut self) -> Result<u64> {
        let mut sum = 0;
        for (id, before) in &mut self.since {
            let now = connects_of(self.map, *id)?;
            sum += now.saturating_sub(std::mem::replace(before, now));
        }
        Ok(sum)
    }
}

/// Links' ids by what `key` says of each.
fn by_hook(links: &[serde_json::Value], key: &str) -> BTreeMap<String, Vec<u32>> {
    let mut hooks = BTreeMap::<String, Vec<u32>>::new();
    for link in links {
        let hook = link[key].as_str().unwrap_or_default().to_owned();
        hooks.entry(hook).or_default().extend(number(&link["id"]));
    }
    hooks
}

fn number(json: &serde_json::Value) -> Option<u32> {
    json.as_u64().and_then(|number| u32::try_from(number).ok())
}
