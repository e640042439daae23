//! A Service object: what of it makes rows, and what of it this version does not do.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Address, ObjectName, PORTS_MAX, PortRow, Protocol, ServiceRules};

use super::address::Families;
use super::annotation::{self, Mesh};
use super::decode::{At, Fault, quoted};
use super::object::{Context, LABEL_MAX, Labels, Meta, labels};

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Service {
    pub(super) name: ObjectName,
    /// `spec.clusterIPs`.
    pub(super) given: Vec<Address>,
    /// What the name gives in the families that are asked for and not given.
    pub(super) derived: Vec<Address>,
    /// Of which its pods' addresses are.
    pub(super) families: Families,
    /// Empty: endpoints are somebody else's work.
    pub(super) selector: Labels,
    pub(super) ports: Vec<ServicePort>,
    /// As its own annotations say; its Namespace may say otherwise.
    pub(super) mesh: Mesh,
    pub(super) rules: ServiceRules,
    /// Its pods are endpoints whether they are ready or not.
    pub(super) publish_not_ready: bool,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct ServicePort {
    pub(super) row: PortRow,
    pub(super) target: Target,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Target {
    Number(u16),
    /// A container's port of this name, in each pod.
    Name(Arc<str>),
}

impl Service {
    /// None for a Service that has no connections to spread.
    pub(super) fn read(
        at: &At<'_>,
        meta: &Meta,
        context: &mut Context<'_>,
    ) -> Result<Option<Self>, Fault> {
        let spec = at.required("spec")?;
        if let Some(kind) = spec.get("type")? {
            match kind.text()? {
                "ClusterIP" => {}
                "ExternalName" => {
                    let name = spec.get("externalName")?.unwrap_or(kind);
                    context.not_handled(
                        &name,
                        "an external name is the work of DNS; nothing is programmed for it",
                    );
                    return Ok(None);
                }
                other @ ("NodePort" | "LoadBalancer") => {
                    context.not_handled(
                        &kind,
                        format!("{other} is not done by this version; the ClusterIP is served"),
                    );
                }
                other => return Err(kind.fault(format!("{} is no type of Service", quoted(other)))),
            }
        }
        not_handled(&spec, context)?;
        let selector = spec
            .get("selector")?
            .map(|at| labels(&at, context.texts))
            .transpose()?
            .unwrap_or_default();
        let (headless, given) = cluster_ips(&spec)?;
        let families = families(&spec, &given, headless, context)?;
        let ports = ports(&spec, headless, context)?;
        let mesh = annotation::read(at, context)?;
        let rules = ServiceRules {
            affinity_seconds: affinity_seconds(&spec)?,
            no_passive_health: annotation::passive_health_off(at, context)?,
            node_only: one_of(&spec, "internalTrafficPolicy", ["Cluster", "Local"])?,
        };
        let publish_not_ready = match spec.get("publishNotReadyAddresses")? {
            Some(at) => at.boolean()?,
            None => false,
        };
        let mut derived = Vec::new();
        for v4 in [true, false] {
            let wanted = if v4 { families.v4 } else { families.v6 };
            let derives = !headless && !context.cidrs.is_empty();
            if !derives || !wanted || given.iter().any(|address| address.is_v4() == v4) {
                continue;
            }
            match context.cidrs.derive(&meta.name, v4) {
                Some(address) => derived.push(address),
                None => {
                    let family = if v4 { "IPv4" } else { "IPv6" };
                    context.conflict(
                        &spec,
                        format!("no {family} address: --service-cidr has no {family} range; set spec.clusterIPs or give it one"),
                    );
                }
            }
        }
        let name = meta.name.clone();
        Ok(Some(Self {
            name,
            given,
            derived,
            families,
            selector,
            ports,
            mesh,
            rules,
            publish_not_ready,
        }))
    }

    /// Whether pods make the same endpoints for both.
    pub(super) fn same_endpoints(&self, other: &Self) -> bool {
        self.families == other.families
            && self.selector == other.selector
            && self.ports == other.ports
            && self.publish_not_ready == other.publish_not_ready
    }

    pub(super) fn selects(&self, labels: &Labels) -> bool {
        !self.selector.is_empty()
            && self
                .selector
                .iter()
                .all(|pair| labels.binary_search(pair).is_ok())
    }
}

/// Fields that this version does nothing with, where they ask for something.
fn not_handled(spec: &At<'_>, context: &mut Context<'_>) -> Result<(), Fault> {
    let asks = [
        (
            "externalTrafficPolicy",
            "Cluster",
            "only the ClusterIP is served by this version",
        ),
        (
            "trafficDistribution",
            "",
            "preference by zone or node is not done by this version; all endpoints are used alike",
        ),
    ];
    for (field, plain, reason) in asks {
        if let Some(at) = spec.get(field)?
            && at.text()? != plain
        {
            context.not_handled(&at, reason);
        }
    }
    if let Some(at) = spec.get("externalIPs")?
        && at.list()?.len() > 0
    {
        context.not_handled(
            &at,
            "external addresses are not served by this version; the ClusterIP is",
        );
    }
    Ok(())
}

/// `timeoutSeconds` of a Service that does not say it.
const AFFINITY_SECONDS: u32 = 10_800;
/// The most that an API server takes.
const AFFINITY_SECONDS_MAX: u32 = 86_400;

/// For how long a client keeps its backend; 0 is not at all.
fn affinity_seconds(spec: &At<'_>) -> Result<u32, Fault> {
    let wanted = one_of(spec, "sessionAffinity", ["None", "ClientIP"])?;
    let Some(config) = spec.get("sessionAffinityConfig")? else {
        return Ok(if wanted { AFFINITY_SECONDS } else { 0 });
    };
    // What is wrong is said, whether it is used or not.
    let mut seconds = AFFINITY_SECONDS;
    if let Some(client) = config.get("clientIP")?
        && let Some(at) = client.get("timeoutSeconds")?
    {
        seconds = at.number(1..=AFFINITY_SECONDS_MAX)?;
    }
    Ok(if wanted { seconds } else { 0 })
}

/// Whether a field says the second of two words; the first is what it means where it is not there.
fn one_of(spec: &At<'_>, field: &str, words: [&str; 2]) -> Result<bool, Fault> {
    let Some(at) = spec.get(field)? else {
        return Ok(false);
    };
    let text = at.text()?;
    if !words.contains(&text) {
        let message = format!("{} is not {} or {}", quoted(text), words[0], words[1]);
        return Err(at.fault(message));
    }
    Ok(text == words[1])
}

/// Whether it is headless, and its addresses, if it says so.
fn cluster_ips(spec: &At<'_>) -> Result<(bool, Vec<Address>), Fault> {
    let one = spec.get("clusterIP")?;
    let first = match &one {
        Some(at) => at.text()?,
        None => "",
    };
    let Some(many) = spec.get("clusterIPs")? else {
        return match (first, &one) {
            ("", _) | (_, None) => Ok((false, Vec::new())),
            ("None", _) => Ok((true, Vec::new())),
            (_, Some(at)) => Ok((false, vec![cluster_ip(at)?])),
        };
    };
    let mut addresses: Vec<Address> = Vec::new();
    for (index, at) in many.list()?.enumerate() {
        let text = at.text()?;
        if index == 0 && !first.is_empty() && first != text {
            return Err(at.fault(format!(
                "{} is not spec.clusterIP, {}",
                quoted(text),
                quoted(first)
            )));
        }
        if text == "None" && index == 0 {
            return Ok((true, Vec::new()));
        }
        let address = cluster_ip(&at)?;
        if addresses
            .iter()
            .any(|earlier| earlier.is_v4() == address.is_v4())
        {
            return Err(at.fault(format!(
                "{address} is of the same family as the address before it"
            )));
        }
        addresses.push(address);
    }
    Ok((false, addresses))
}

fn cluster_ip(at: &At<'_>) -> Result<Address, Fault> {
    let text = at.text()?;
    let ip: IpAddr = text
        .parse()
        .map_err(|_| at.fault(format!("{} is no IP address", quoted(text))))?;
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    // Clients' own connections to these would be taken away from them.
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local {
        return Err(at.fault(format!("{ip} cannot be the address of a Service")));
    }
    Ok(ip.into())
}

/// The families that an API server would have chosen.
fn families(
    spec: &At<'_>,
    given: &[Address],
    headless: bool,
    context: &mut Context<'_>,
) -> Result<Families, Fault> {
    let mut families = Families::default();
    for address in given {
        families.add(address.is_v4());
    }
    if let Some(list) = spec.get("ipFamilies")? {
        for at in list.list()? {
            match at.text()? {
                "IPv4" => families.add(true),
                "IPv6" => families.add(false),
                other => return Err(at.fault(format!("{} is not IPv4 or IPv6", quoted(other)))),
            }
        }
    }
    if families.is_empty() {
        families = context.cidrs.first();
    }
    let Some(policy) = spec.get("ipFamilyPolicy")? else {
        return Ok(families);
    };
    match policy.text()? {
        "SingleStack" => {}
        "PreferDualStack" | "RequireDualStack" if headless => families = Families::BOTH,
        "PreferDualStack" => {
            let all = context.cidrs.all();
            families = Families {
                v4: families.v4 || all.v4,
                v6: families.v6 || all.v6,
            };
        }
        "RequireDualStack" => families = Families::BOTH,
        other => {
            return Err(policy.fault(format!(
                "{} is not SingleStack, PreferDualStack or RequireDualStack",
                quoted(other)
            )));
        }
    }
    Ok(families)
}

fn ports(
    spec: &At<'_>,
    headless: bool,
    context: &mut Context<'_>,
) -> Result<Vec<ServicePort>, Fault> {
    let Some(list) = spec.get("ports")? else {
        return if headless {
            Ok(Vec::new())
        } else {
            Err(spec
                .required("ports")
                .err()
                .unwrap_or_else(|| spec.fault("")))
        };
    };
    let items = few(&list)?;
    let several = items.len() > 1;
    let mut ports: Vec<ServicePort> = Vec::with_capacity(items.len());
    for at in items {
        let port = at.required("port")?.port()?;
        let protocol = protocol(&at)?;
        if protocol == Protocol::Sctp {
            context.not_handled(
                &at.required("protocol")?,
                "SCTP connections are not translated by this version",
            );
        }
        let name = match at.get("name")? {
            Some(name) => context.texts.get(name.text_within(LABEL_MAX)?),
            None => context.texts.get(""),
        };
        if several && name.is_empty() {
            return Err(at.fault("has no name; each of several ports needs one"));
        }
        for earlier in &ports {
            if several && earlier.row.name == name {
                return Err(at.fault(format!("has the name {} of an earlier port", quoted(&name))));
            }
            if earlier.row.port == port && earlier.row.protocol == protocol {
                return Err(at.fault(format!("is {port}/{protocol} for the second time")));
            }
        }
        let target = match at.get("targetPort")? {
            None => Target::Number(port),
            Some(target) if target.is_integer() => Target::Number(target.port()?),
            Some(target) => match target.text()? {
                "" => Target::Number(port),
                name => Target::Name(context.texts.get(name)),
            },
        };
        ports.push(ServicePort {
            row: PortRow {
                name,
                protocol,
                port,
            },
            target,
        });
    }
    // Only now: their names and numbers are taken.
    ports.retain(|port| port.row.protocol != Protocol::Sctp);
    Ok(ports)
}

/// A list of ports, no longer than a row's may be.
pub(super) fn few<'b>(list: &'b At<'b>) -> Result<impl ExactSizeIterator<Item = At<'b>>, Fault> {
    let items = list.list()?;
    if items.len() > PORTS_MAX {
        return Err(list.fault(format!(
            "has {} ports, and {PORTS_MAX} are the most",
            items.len()
        )));
    }
    Ok(items)
}

/// The protocol of a port, of a Service, a container or an EndpointSlice.
pub(super) fn protocol(port: &At<'_>) -> Result<Protocol, Fault> {
    let Some(at) = port.get("protocol")? else {
        return Ok(Protocol::Tcp);
    };
    match at.text()? {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(at.fault(format!("{} is not TCP, UDP or SCTP", quoted(other)))),
    }
}
