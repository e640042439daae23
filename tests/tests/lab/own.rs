//! What a client can do to its own network: firewall, ports, routes.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::{Lab, Pod};

/// What a hostile client has done to its own network, before it connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Own {
    Nothing,
    /// Its firewall answers each SYN with a reset.
    Reset,
    /// The same, for one backend.
    ResetOne,
    /// Its firewall answers that the host is unreachable, by ICMP.
    Unreachable,
    /// That it is not to be reached.
    Prohibited,
    /// That nobody is at the port.
    NoPort,
    Drop,
    DropOne,
    /// Its firewall drops what backends answer.
    Deaf,
    FewPorts,
    NoRoute,
}

impl Own {
    pub(crate) fn set(self, pod: &Pod<'_>, lab: &Lab) {
        let netns = pod.netns();
        let backends = backends(lab);
        match self {
            Self::Nothing => Ok(()),
            Self::Reset => netns.nft(&firewall(&backends, "reject with tcp reset")),
            Self::ResetOne => netns.nft(&firewall(&backends[..1], "reject with tcp reset")),
            Self::Unreachable => netns.nft(&firewall(&backends, &by_icmp("host-unreachable"))),
            Self::Prohibited => netns.nft(&firewall(&backends, &by_icmp("admin-prohibited"))),
            Self::NoPort => netns.nft(&firewall(&backends, &by_icmp("port-unreachable"))),
            Self::Drop => netns.nft(&firewall(&backends, "drop")),
            Self::Deaf => netns.nft(&deaf(&backends)),
            Self::DropOne => netns.nft(&firewall(&backends[..1], "drop")),
            Self::FewPorts => netns.sysctl(&[("net/ipv4/ip_local_port_range", "40000 40009")]),
            Self::NoRoute => netns.ip(&routes(&backends, "add")),
        }
        .unwrap();
    }

    pub(crate) fn unset(self, pod: &Pod<'_>, lab: &Lab) {
        let netns = pod.netns();
        match self {
            Self::Nothing => Ok(()),
            Self::FewPorts => netns.sysctl(&[("net/ipv4/ip_local_port_range", "1024 65535")]),
            Self::NoRoute => netns.ip(&routes(&backends(lab), "del")),
            _ => netns.nft("delete table inet own\n"),
        }
        .unwrap();
    }
}

fn by_icmp(word: &str) -> String {
    format!("reject with icmpx type {word}")
}

/// Backends' pods, each with its addresses of both families.
fn backends(lab: &Lab) -> Vec<[String; 2]> {
    let pods = ["east/backend-1", "east/backend-2"].map(|name| lab.pod(name).unwrap());
    let of = |pod: &Pod<'_>| {
        let addresses = &pod.plan().addresses;
        [addresses.v4.to_string(), addresses.v6.to_string()]
    };
    pods.iter().map(of).collect()
}

fn firewall(backends: &[[String; 2]], verdict: &str) -> String {
    chain("output", "daddr", backends, verdict)
}

fn deaf(backends: &[[String; 2]]) -> String {
    chain("input", "saddr", backends, "drop")
}

fn chain(hook: &str, side: &str, backends: &[[String; 2]], verdict: &str) -> String {
    let rule = |[v4, v6]: &[String; 2]| {
        format!(
            "meta l4proto tcp ip {side} {v4} {verdict}\nmeta l4proto tcp ip6 {side} {v6} {verdict}\n"
        )
    };
    let rules: String = backends.iter().map(rule).collect();
    format!("table inet own {{ chain own {{ type filter hook {hook} priority 0\n{rules}}}\n}}\n")
}

fn routes(backends: &[[String; 2]], verb: &str) -> String {
    let line = |[v4, v6]: &[String; 2]| {
        format!("route {verb} unreachable {v4}\nroute {verb} unreachable {v6}\n")
    };
    backends.iter().map(line).collect()
}
