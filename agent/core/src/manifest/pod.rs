//! A Pod object, and the endpoint that it is to a Service which selects it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Address, Condition, EndpointPort, EndpointRow, Protocol};

use super::decode::{At, Fault, quoted};
use super::intern::Interner;
use super::object::{Context, Labels, Meta, NAME_MAX};
use super::service::{Service, Target, protocol};

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Pod {
    pub(super) namespace: Arc<str>,
    pub(super) labels: Labels,
    /// Empty for a pod that is no endpoint: not started, or over.
    pub(super) addresses: Vec<Address>,
    /// Empty while unscheduled.
    pub(super) node: Arc<str>,
    /// Named ports of its containers.
    ports: Vec<ContainerPort>,
    /// Its Ready condition.
    serving: bool,
    /// Has a deletion timestamp.
    terminating: bool,
}

#[derive(Clone, PartialEq, Debug)]
struct ContainerPort {
    name: Arc<str>,
    protocol: Protocol,
    port: u16,
}

impl Pod {
    pub(super) fn read(at: &At<'_>, meta: &Meta, context: &mut Context<'_>) -> Result<Self, Fault> {
        let mut pod = Self {
            namespace: meta.name.namespace.clone(),
            labels: meta.labels.clone(),
            addresses: Vec::new(),
            node: context.texts.get(""),
            ports: Vec::new(),
            serving: false,
            terminating: meta.deleted,
        };
        if let Some(spec) = at.get("spec")? {
            if let Some(node) = spec.get("nodeName")? {
                pod.node = context.texts.get(node.text_within(NAME_MAX)?);
            }
            for list in ["containers", "initContainers"] {
                let Some(containers) = spec.get(list)? else {
                    continue;
                };
                for container in containers.list()? {
                    // An init container stays and serves only if it always restarts: a sidecar.
                    if list == "containers"
                        || container.text_of("restartPolicy")?.as_deref() == Some("Always")
                    {
                        pod.add_ports(&container, context.texts)?;
                    }
                }
            }
        }
        if let Some(status) = at.get("status")? {
            pod.read_status(&status)?;
        }
        Ok(pod)
    }

    fn add_ports(&mut self, container: &At<'_>, texts: &mut Interner) -> Result<(), Fault> {
        let Some(ports) = container.get("ports")? else {
            return Ok(());
        };
        for at in ports.list()? {
            let port = at.required("containerPort")?.port()?;
            if let Some(name) = at.get("name")? {
                let name = texts.get(name.text()?);
                self.ports.push(ContainerPort {
                    name,
                    protocol: protocol(&at)?,
                    port,
                });
            }
        }
        Ok(())
    }

    fn read_status(&mut self, status: &At<'_>) -> Result<(), Fault> {
        let over = matches!(
            status.text_of("phase")?.as_deref(),
            Some("Failed" | "Succeeded")
        );
        match (status.get("podIPs")?, status.get("podIP")?) {
            _ if over => {}
            (Some(many), _) => {
                for at in many.list()? {
                    self.addresses.push(pod_ip(&at.required("ip")?)?);
                }
            }
            (None, Some(at)) if !at.text()?.is_empty() => self.addresses.push(pod_ip(&at)?),
            (None, _) => {}
        }
        let Some(conditions) = status.get("conditions")? else {
            return Ok(());
        };
        for at in conditions.list()? {
            if at.text_of("type")?.as_deref() == Some("Ready") {
                self.serving = at.text_of("status")?.as_deref() == Some("True");
            }
        }
        Ok(())
    }

    /// The endpoints that this pod is to `service`: one for each address of a family of the Service's.
    pub(super) fn endpoints(
        &self,
        service: &Service,
        zone: &Arc<str>,
        texts: &mut Interner,
    ) -> Vec<Arc<EndpointRow>> {
        let mut addresses = self
            .addresses
            .iter()
            .filter(|address| service.families.has(**address))
            .peekable();
        if addresses.peek().is_none() {
            return Vec::new();
        }
        let (mut condition, mut reason) = if service.publish_not_ready {
            (Condition::Ready, "")
        } else {
            self.condition()
        };
        let mut ports = Vec::with_capacity(service.ports.len());
        let mut missing = None;
        for port in &service.ports {
            let number = match &port.target {
                Target::Number(number) => Some(*number),
                Target::Name(name) => self.port(name, port.row.protocol),
            };
            match (number, &port.target) {
                (Some(number), _) => {
                    ports.push(EndpointPort {
                        name: port.row.name.clone(),
                        protocol: port.row.protocol,
                        port: number,
                    });
                }
                (None, Target::Name(name)) => missing = Some(name),
                (None, Target::Number(_)) => {}
            }
        }
        ports.sort_unstable();
        let mut words = String::new();
        if let (true, Some(name)) = (ports.is_empty(), missing) {
            // An API server says nothing here, and people look for hours.
            condition = Condition::NotReady;
            words = format!("no container port named {}", quoted(name));
            reason = &words;
        }
        let reason = texts.get(reason);
        drop(words);
        addresses
            .map(|&address| {
                Arc::new(EndpointRow {
                    service: service.name.clone(),
                    address,
                    ports: ports.clone(),
                    condition,
                    reason: reason.clone(),
                    node: self.node.clone(),
                    zone: zone.clone(),
                })
            })
            .collect()
    }

    /// KEP-1669.
    fn condition(&self) -> (Condition, &'static str) {
        match (self.serving, self.terminating) {
            (true, false) => (Condition::Ready, ""),
            (true, true) => (Condition::ServingTerminating, "terminating"),
            (false, true) => (Condition::NotReady, "terminating"),
            (false, false) => (Condition::NotReady, "Pod condition"),
        }
    }

    fn port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| &*port.name == name && port.protocol == protocol)
            .map(|port| port.port)
    }
}

/// An address that connections may be sent to.
pub(super) fn pod_ip(at: &At<'_>) -> Result<Address, Fault> {
    let text = at.text()?;
    let ip: IpAddr = text
        .parse()
        .map_err(|_| at.fault(format!("{} is no IP address", quoted(text))))?;
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local {
        return Err(at.fault(format!("{ip} cannot be the address of an endpoint")));
    }
    Ok(ip.into())
}
