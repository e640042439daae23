//! The lab's namespaces, veths, routes and wires. Set-up is batched: one `ip` a namespace, whatever is in it.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::layout::{ClusterPlan, NodePlan, PodPlan, backbone_netns};
use crate::netns::{self, Netns};
use crate::spec::LabName;

/// The ranges that agents give service addresses from by default.
const SERVICE_CIDRS: [(&str, &str); 2] = [("ip", "10.96.0.0/12"), ("ip6", "fd00:10:96::/108")];

/// No wait for duplicate addresses, no router hunts: these wires have two ends.
const QUIET_IPV6: [(&str, &str); 6] = [
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
];
const FORWARDING: [(&str, &str); 2] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
];
/// Every ICMP error comes: none is left out to spare the network, by its destination or by the machine's rate.
const EVERY_ICMP: [(&str, &str); 4] = [
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    // No type.
    ("net/ipv6/icmp/ratemask", "\n"),
];
/// The longest queue of a listener.
pub(crate) const LONG_QUEUES: (&str, &str) = ("net/core/somaxconn", "16384");
/// A client opens tens of thousands of connections a second to one address. The ports of our own servers are left out:
/// a connection to this host that is given the very port that it goes to meets itself, and keeps the server from it.
const MANY_PORTS: [(&str, &str); 4] = [
    ("net/ipv4/ip_local_port_range", "1024 65535"),
    ("net/ipv4/ip_local_reserved_ports", "4260,9970,9971"),
    LONG_QUEUES,
    ("net/ipv4/tcp_max_syn_backlog", "16384"),
];

/// Makes the namespaces and wires of all nodes. Pods are added later, by [`add_pods`].
pub(crate) fn build(lab: &LabName, clusters: &[ClusterPlan]) -> Result<()> {
    let backbone = Netns::new(backbone_netns(lab));
    let nodes: Vec<&NodePlan> = clusters.iter().flat_map(|c| &c.nodes).collect();
    let mut namespaces = format!("netns add {}\n", backbone.name());
    for node in &nodes {
        writeln!(namespaces, "netns add {}", node.netns())?;
    }
    netns::ip_batch(&namespaces)?;
    for name in nodes.iter().map(|n| n.netns()).chain([backbone_netns(lab)]) {
        let namespace = Netns::new(name);
        namespace.sysctl(&QUIET_IPV6)?;
        namespace.sysctl(&FORWARDING)?;
    }
    let mut veths = String::new();
    for node in &nodes {
        writeln!(
            veths,
            "link add eth0 netns {} type veth peer name {} netns {}",
            node.netns(),
            node.backbone_interface(),
            backbone.name()
        )?;
    }
    netns::ip_batch(&veths)?;
    backbone.ip(&backbone_lines(clusters)?)?;
    backbone.nft(
        "table inet isthmus-lab {\n chain wires { type filter hook forward priority 0; }\n}\n",
    )?;
    for node in nodes {
        set_up_node(node).with_context(|| format!("node {}", node.name))?;
    }
    Ok(())
}

fn backbone_lines(clusters: &[ClusterPlan]) -> Result<String> {
    let mut lines = String::from("link set lo up\n");
    for cluster in clusters {
        let c = cluster.number;
        writeln!(lines, "addr add 10.{c}.0.1/32 dev lo")?;
        for node in &cluster.nodes {
            let dev = node.backbone_interface();
            writeln!(lines, "link set {dev} up")?;
            writeln!(lines, "addr add fe80::1/64 dev {dev} nodad")?;
            for address in node.addresses.both() {
                writeln!(lines, "route add {address} dev {dev}")?;
            }
            for (prefix, via) in node.pod_prefixes().iter().zip(node.addresses.both()) {
                writeln!(lines, "route add {prefix} via {via} dev {dev} onlink")?;
            }
        }
    }
    Ok(lines)
}

fn set_up_node(node: &NodePlan) -> Result<()> {
    let namespace = Netns::new(node.netns());
    namespace.sysctl(&MANY_PORTS)?;
    namespace.sysctl(&EVERY_ICMP)?;
    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    for address in node.addresses.both() {
        writeln!(
            lines,
            "addr add {address} dev eth0 {}",
            if address.is_ipv6() { "nodad" } else { "" }
        )?;
    }
    writeln!(lines, "addr add {}/32 dev lo", node.gateway())?;
    writeln!(
        lines,
        "route add default via 10.{}.0.1 dev eth0 onlink",
        node.cluster
    )?;
    writeln!(lines, "route add default via fe80::1 dev eth0")?;
    // An address of the node's own range that no pod has: without a route it would go to the backbone and come back, until
    // its hops are spent.
    for prefix in node.pod_prefixes() {
        writeln!(lines, "route add unreachable {prefix}")?;
    }
    namespace.ip(&lines)?;
    namespace.nft(&tell_tale()?)
}

/// A packet to a service's address that leaves a pod or its node was not translated: it is counted by the kernel, and
/// answered at once with an error that no other part of the lab gives (`EHOSTUNREACH`; `EACCES` by IPv6).
fn tell_tale() -> Result<String> {
    let mut script = String::from("table inet isthmus-lab {\n counter untranslated { }\n");
    for hook in ["forward", "output"] {
        writeln!(
            script,
            " chain {hook} {{ type filter hook {hook} priority 10;"
        )?;
        for (family, cidr) in SERVICE_CIDRS {
            writeln!(
                script,
                "  {family} daddr {cidr} counter name untranslated reject with icmpx type admin-prohibited"
            )?;
        }
        script.push_str(" }\n");
    }
    script.push_str("}\n");
    Ok(script)
}

/// Packets to service addresses that `node` saw on their way out, untranslated.
pub(crate) fn untranslated(node: &NodePlan) -> Result<u64> {
    let mut nft = std::process::Command::new("nft");
    nft.args([
        "-j",
        "list",
        "counter",
        "inet",
        "isthmus-lab",
        "untranslated",
    ]);
    let text = Netns::new(node.netns()).command(&mut nft)?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let counters = json["nftables"]
        .as_array()
        .context("nft's JSON has no list")?;
    let packets = counters
        .iter()
        .find_map(|c| c["counter"]["packets"].as_u64());
    packets.context("nft knows no counter `untranslated`")
}

/// Makes pods' namespaces and their veths. All must be of nodes that are there.
pub(crate) fn add_pods(pods: &[PodPlan]) -> Result<()> {
    let mut namespaces = String::new();
    for pod in pods {
        writeln!(namespaces, "netns add {}", pod.netns())?;
    }
    netns::ip_batch(&namespaces)?;
    let mut veths = String::new();
    for pod in pods {
        let namespace = Netns::new(pod.netns());
        namespace.sysctl(&QUIET_IPV6)?;
        namespace.sysctl(&MANY_PORTS)?;
        namespace.sysctl(&EVERY_ICMP)?;
        writeln!(
            veths,
            "link add eth0 netns {} type veth peer name {} netns {}",
            pod.netns(),
            pod.node_interface(),
            pod.node.netns()
        )?;
    }
    netns::ip_batch(&veths)?;
    for pod in pods {
        set_up_pod(pod).with_context(|| format!("pod {}", pod.full_name()))?;
    }
    Ok(())
}

fn set_up_pod(pod: &PodPlan) -> Result<()> {
    let (dev, gateway) = (pod.node_interface(), pod.node.gateway());
    let mut node = format!("link set {dev} up\naddr add fe80::1/64 dev {dev} nodad\n");
    let mut inside = String::from("link set lo up\nlink set eth0 up\n");
    for address in pod.addresses.both() {
        writeln!(node, "route add {address} dev {dev}")?;
        writeln!(
            inside,
            "addr add {address} dev eth0 {}",
            if address.is_ipv6() { "nodad" } else { "" }
        )?;
    }
    writeln!(inside, "route add default via {gateway} dev eth0 onlink")?;
    writeln!(inside, "route add default via fe80::1 dev eth0")?;
    Netns::new(pod.node.netns()).ip(&node)?;
    Netns::new(pod.netns()).ip(&inside)
}

/// Takes the veth away, and with it the node's routes to the pod, at once: from then on nothing of the pod answers, and the
/// node says that it is unreachable.
pub(crate) fn unplug_pod(pod: &PodPlan) -> Result<()> {
    Netns::new(pod.node.netns()).ip(&format!("link del {}\n", pod.node_interface()))
}

/// Removes the namespace. No process may be left in it.
pub(crate) fn remove_pod(pod: &PodPlan) -> Result<()> {
    netns::ip_batch(&format!("netns del {}\n", pod.netns()))
}
