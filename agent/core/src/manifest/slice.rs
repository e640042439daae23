//! An EndpointSlice object. It names its endpoints whole, so it is kept as the rows that it makes.

use std::sync::Arc;

use crate::model::{Condition, EndpointPort, EndpointRow, ObjectName};

use super::decode::{At, Fault, quoted};
use super::object::{Context, LABEL_MAX, Meta, NAME_MAX};
use super::pod::pod_ip;
use super::service::{few, protocol};

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Slice {
    pub(super) service: ObjectName,
    /// In the order of addresses, each once.
    pub(super) endpoints: Vec<Arc<EndpointRow>>,
}

impl Slice {
    /// None for a slice that is no endpoints of a Service of this cluster.
    pub(super) fn read(
        at: &At<'_>,
        meta: &Meta,
        context: &mut Context<'_>,
    ) -> Result<Option<Self>, Fault> {
        if let Some(cluster) = meta.label("multicluster.kubernetes.io/source-cluster") {
            let words = format!(
                "is a copy of endpoints of cluster {}; they come over the mesh",
                quoted(cluster)
            );
            context.not_handled(at, words);
            return Ok(None);
        }
        let Some(service) = meta.label("kubernetes.io/service-name") else {
            context.not_handled(
                at,
                "has no label kubernetes.io/service-name, so no Service has these endpoints",
            );
            return Ok(None);
        };
        let service = ObjectName {
            namespace: meta.name.namespace.clone(),
            name: service.clone(),
        };
        let metadata = at.required("metadata")?;
        if let Some(annotations) = metadata.get("annotations")?
            && let Some(weight) = annotations.get("service.cilium.io/weight")?
        {
            context.not_handled(
                &weight,
                "weights are not done by this version; all endpoints are used alike",
            );
        }
        let kind = at.required("addressType")?;
        let v4 = match kind.text()? {
            "IPv4" => true,
            "IPv6" => false,
            "FQDN" => {
                context.not_handled(
                    &kind,
                    "endpoints that are names are not done by this version",
                );
                return Ok(None);
            }
            other => return Err(kind.fault(format!("{} is not IPv4, IPv6 or FQDN", quoted(other)))),
        };
        let ports = ports(at, context)?;
        let mut endpoints = Vec::new();
        let mut hints = false;
        if let Some(list) = at.get("endpoints")? {
            for at in list.list()? {
                if let (false, Some(hint)) = (hints, at.get("hints")?) {
                    hints = true;
                    context.not_handled(&hint, "preference by zone is not done by this version; all endpoints are used alike");
                }
                add(&at, v4, &service, &ports, &mut endpoints, context)?;
            }
        }
        endpoints.sort_by_key(|endpoint| (endpoint.address, endpoint.condition));
        endpoints.dedup_by_key(|endpoint| endpoint.address);
        endpoints.shrink_to_fit();
        Ok(Some(Self { service, endpoints }))
    }
}

fn ports(slice: &At<'_>, context: &mut Context<'_>) -> Result<Vec<EndpointPort>, Fault> {
    let Some(list) = slice.get("ports")? else {
        return Ok(Vec::new());
    };
    let mut ports = Vec::new();
    for at in few(&list)? {
        let name = match at.get("name")? {
            Some(name) => context.texts.get(name.text_within(LABEL_MAX)?),
            None => context.texts.get(""),
        };
        let protocol = protocol(&at)?;
        let Some(port) = at.get("port")? else {
            context.not_handled(
                &at,
                "a port without a number means all ports, which is not done by this version",
            );
            continue;
        };
        ports.push(EndpointPort {
            name,
            protocol,
            port: port.port()?,
        });
    }
    ports.sort_unstable();
    ports.dedup();
    ports.shrink_to_fit();
    Ok(ports)
}

fn add(
    at: &At<'_>,
    v4: bool,
    service: &ObjectName,
    ports: &[EndpointPort],
    endpoints: &mut Vec<Arc<EndpointRow>>,
    context: &mut Context<'_>,
) -> Result<(), Fault> {
    let (condition, reason) = condition(at)?;
    let mut text = |key| -> Result<Arc<str>, Fault> {
        Ok(match at.get(key)? {
            Some(at) => context.texts.get(at.text_within(NAME_MAX)?),
            None => context.texts.get(""),
        })
    };
    let (node, zone) = (text("nodeName")?, text("zone")?);
    let reason = context.texts.get(reason);
    let addresses = at.required("addresses")?;
    for at in addresses.list()? {
        let address = pod_ip(&at)?;
        if address.is_v4() != v4 {
            return Err(at.fault(format!(
                "{address} is not of the family that addressType says"
            )));
        }
        endpoints.push(Arc::new(EndpointRow {
            service: service.clone(),
            address,
            ports: ports.to_vec(),
            condition,
            reason: reason.clone(),
            node: node.clone(),
            zone: zone.clone(),
        }));
    }
    Ok(())
}

/// KEP-1669: not said to be unready is ready; serving, where not said, is what ready is.
fn condition(endpoint: &At<'_>) -> Result<(Condition, &'static str), Fault> {
    let Some(conditions) = endpoint.get("conditions")? else {
        return Ok((Condition::Ready, ""));
    };
    let says = |key| conditions.get(key)?.map(|at| at.boolean()).transpose();
    let ready = says("ready")?.unwrap_or(true);
    let serving = says("serving")?.unwrap_or(ready);
    let terminating = says("terminating")?.unwrap_or(false);
    Ok(match (ready, serving, terminating) {
        (true, ..) => (Condition::Ready, ""),
        (false, true, true) => (Condition::ServingTerminating, "terminating"),
        (false, false, true) => (Condition::NotReady, "terminating"),
        (false, _, false) => (Condition::NotReady, "EndpointSlice condition"),
    })
}
