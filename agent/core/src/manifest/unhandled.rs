//! Kinds that we know and that this version does nothing with.

use super::decode::{At, Fault};

#[derive(Debug)]
pub(super) struct Rule {
    group: &'static str,
    pub(super) kind: &'static str,
    /// The parts of `spec` that ask for something, each told on its own; `spec` itself if none is there.
    fields: &'static [&'static str],
    reason: &'static str,
}

const TRAFFIC: &str = "traffic rules are not done by this version; connections are spread by affinity and readiness alone";
const POLICY: &str = "policy is not enforced by this version; nothing is dropped";
const MCS: &str = "the Multi-Cluster Services API is not done by this version; use service.cilium.io/global: \"true\" on the Service";
const PROXY: &str = "this asks for a proxy; Isthmus has none in the path";
const LINK: &str =
    "links are read from the directory of --links of the mesh server, not from the source";
const ENDPOINTS: &str = "Endpoints are not read; write an EndpointSlice";
const OLD_SLICE: &str = "only discovery.k8s.io/v1 is read; change the apiVersion";

const ISTIO: &str = "networking.istio.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
const LINKERD: &str = "policy.linkerd.io";
const MULTICLUSTER: &str = "multicluster.x-k8s.io";

const fn asks(
    group: &'static str,
    kind: &'static str,
    fields: &'static [&'static str],
    reason: &'static str,
) -> Rule {
    Rule {
        group,
        kind,
        fields,
        reason,
    }
}

const RULES: &[Rule] = &[
    asks(
        ISTIO,
        "DestinationRule",
        &["trafficPolicy", "subsets"],
        TRAFFIC,
    ),
    asks(ISTIO, "VirtualService", &["http", "tcp", "tls"], TRAFFIC),
    asks(ISTIO, "ServiceEntry", &["endpoints", "hosts"], TRAFFIC),
    asks(ISTIO, "WorkloadEntry", &[], TRAFFIC),
    asks(ISTIO, "Gateway", &["servers"], PROXY),
    asks(ISTIO, "Sidecar", &[], PROXY),
    asks(GATEWAY, "Gateway", &["listeners"], PROXY),
    asks(GATEWAY, "HTTPRoute", &["rules"], TRAFFIC),
    asks(GATEWAY, "GRPCRoute", &["rules"], TRAFFIC),
    asks(GATEWAY, "TCPRoute", &["rules"], TRAFFIC),
    asks(GATEWAY, "TLSRoute", &["rules"], TRAFFIC),
    asks(GATEWAY, "UDPRoute", &["rules"], TRAFFIC),
    asks(LINKERD, "HTTPRoute", &["rules"], TRAFFIC),
    asks(LINKERD, "AuthorizationPolicy", &[], POLICY),
    asks("linkerd.io", "ServiceProfile", &["routes"], TRAFFIC),
    asks("split.smi-spec.io", "TrafficSplit", &["backends"], TRAFFIC),
    asks(
        "cilium.io",
        "CiliumNetworkPolicy",
        &["ingress", "egress", "ingressDeny", "egressDeny"],
        POLICY,
    ),
    asks(
        "cilium.io",
        "CiliumClusterwideNetworkPolicy",
        &["ingress", "egress", "ingressDeny", "egressDeny"],
        POLICY,
    ),
    asks(
        "networking.k8s.io",
        "NetworkPolicy",
        &["ingress", "egress"],
        POLICY,
    ),
    asks(MULTICLUSTER, "ServiceExport", &[], MCS),
    asks(MULTICLUSTER, "ServiceImport", &[], MCS),
    asks("mesh.isthmus.dev", "ClusterLink", &[], LINK),
    asks("discovery.k8s.io", "EndpointSlice", &[], OLD_SLICE),
    asks("", "Endpoints", &[], ENDPOINTS),
];

/// The rule for a kind, in any version of its group.
pub(super) fn rule(group: &str, kind: &str) -> Option<&'static Rule> {
    RULES
        .iter()
        .find(|rule| rule.group == group && rule.kind == kind)
}

impl Rule {
    /// One for each part that asks for something.
    pub(super) fn findings(&self, at: &At<'_>) -> Vec<Fault> {
        let Ok(Some(spec)) = at.get("spec") else {
            return vec![at.fault(self.reason)];
        };
        let found: Vec<_> = self
            .fields
            .iter()
            .filter_map(|field| Some(spec.get(field).ok()??.fault(self.reason)))
            .collect();
        if found.is_empty() {
            vec![spec.fault(self.reason)]
        } else {
            found
        }
    }
}

/// `HTTPRoute production/backend`, as far as the object says so.
pub(super) fn words(kind: &str, at: &At<'_>) -> String {
    let text = |key: &str| {
        at.get("metadata")
            .ok()
            .flatten()
            .and_then(|metadata| metadata.text_of(key).ok().flatten())
    };
    let name = text("name").unwrap_or_else(|| "without a name".to_owned());
    format!(
        "{kind} {}/{name}",
        text("namespace").unwrap_or_else(|| "default".to_owned())
    )
}
