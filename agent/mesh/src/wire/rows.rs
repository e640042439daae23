use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use isthmus_core::mesh::{BadRow, RowKey};
use isthmus_core::model::{
    Address, Affinity, Condition, EndpointKey, EndpointPort, EndpointRow, ObjectName, PORTS_MAX,
    PortRow, Protocol, RowChange, ServiceRow, ServiceRules,
};
use isthmus_proto::mesh::v1 as proto;

use super::{Malformed, Result, text};

fn say_name(name: &ObjectName) -> proto::ObjectName {
    proto::ObjectName {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
    }
}

fn name(said: Option<proto::ObjectName>) -> Result<ObjectName> {
    let said = said.ok_or(Malformed("name"))?;
    if said.namespace.is_empty() || said.name.is_empty() {
        return Err(Malformed("name"));
    }
    Ok(ObjectName {
        namespace: text(said.namespace, "namespace")?,
        name: text(said.name, "name")?,
    })
}

fn say_protocol(protocol: Protocol) -> i32 {
    match protocol {
        Protocol::Tcp => proto::Protocol::Tcp,
        Protocol::Udp => proto::Protocol::Udp,
        Protocol::Sctp => proto::Protocol::Sctp,
    }
    .into()
}

fn protocol(said: i32) -> Result<Protocol> {
    match proto::Protocol::try_from(said) {
        Ok(proto::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(proto::Protocol::Udp) => Ok(Protocol::Udp),
        Ok(proto::Protocol::Sctp) => Ok(Protocol::Sctp),
        Ok(proto::Protocol::Unspecified) | Err(_) => Err(Malformed("protocol")),
    }
}

fn port(number: u32) -> Result<u16> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or(Malformed("port"))
}

fn say_key(key: &EndpointKey) -> proto::EndpointKey {
    let address = match key.address.v4() {
        Some(v4) => v4.octets().to_vec(),
        None => key.address.octets().to_vec(),
    };
    proto::EndpointKey {
        service: Some(say_name(&key.service)),
        address,
    }
}

fn key(said: Option<proto::EndpointKey>) -> Result<EndpointKey> {
    let said = said.ok_or(Malformed("key"))?;
    let v4 = <[u8; 4]>::try_from(said.address.as_slice())
        .map(|octets| Address::from(Ipv4Addr::from(octets)));
    let address = v4.or_else(|_| {
        let octets =
            <[u8; 16]>::try_from(said.address.as_slice()).map_err(|_| Malformed("address"))?;
        // One address, one form: a mapped IPv4 address has 4 bytes.
        if Ipv6Addr::from(octets).to_ipv4_mapped().is_some() {
            return Err(Malformed("address"));
        }
        Ok(Address::from_octets(octets))
    })?;
    Ok(EndpointKey {
        service: name(said.service)?,
        address,
    })
}

pub(super) fn say_change(change: RowChange) -> proto::RowChange {
    use proto::row_change::Change;
    let change = match change {
        RowChange::Service(row) => Change::Service(proto::Service {
            name: Some(say_name(&row.name)),
            ports: row.ports.iter().map(say_service_port).collect(),
            global: row.global,
            shared: row.shared,
        }),
        RowChange::ServiceGone(name) => Change::ServiceGone(say_name(&name)),
        RowChange::Endpoint(row) => Change::Endpoint(proto::Endpoint {
            key: Some(say_key(&row.key())),
            ports: row.ports.iter().map(say_endpoint_port).collect(),
            condition: match row.condition {
                Condition::Ready => proto::Condition::Ready,
                Condition::ServingTerminating => proto::Condition::ServingTerminating,
                Condition::NotReady => proto::Condition::NotReady,
            }
            .into(),
            reason: row.reason.to_string(),
            node: row.node.to_string(),
            zone: row.zone.to_string(),
        }),
        RowChange::EndpointGone(key) => Change::EndpointGone(say_key(&key)),
    };
    proto::RowChange {
        change: Some(change),
    }
}

fn say_service_port(row: &PortRow) -> proto::ServicePort {
    proto::ServicePort {
        name: row.name.to_string(),
        protocol: say_protocol(row.protocol),
        port: row.port.into(),
    }
}

fn say_endpoint_port(row: &EndpointPort) -> proto::EndpointPort {
    proto::EndpointPort {
        name: row.name.to_string(),
        protocol: say_protocol(row.protocol),
        port: row.port.into(),
    }
}

/// A row, or what is wrong with it.
pub(super) fn change(said: proto::RowChange) -> std::result::Result<RowChange, BadRow> {
    use proto::row_change::Change;
    let nameless = |Malformed(field)| BadRow { key: None, field };
    let change = said.change.ok_or(Malformed("change")).map_err(nameless)?;
    match change {
        Change::Service(mut said) => {
            let name = name(said.name.take()).map_err(nameless)?;
            let key = RowKey::Service(name.clone());
            let row = service(name, said).map_err(|wrong| named(key, wrong))?;
            Ok(RowChange::Service(Arc::new(row)))
        }
        Change::ServiceGone(said) => {
            let name = name(Some(said)).map_err(nameless)?;
            Ok(RowChange::ServiceGone(name))
        }
        Change::Endpoint(mut said) => {
            let key = key(said.key.take()).map_err(nameless)?;
            let row = endpoint(key.clone(), said);
            let row = row.map_err(|wrong| named(RowKey::Endpoint(key), wrong))?;
            Ok(RowChange::Endpoint(Arc::new(row)))
        }
        Change::EndpointGone(said) => {
            let key = key(Some(said)).map_err(nameless)?;
            Ok(RowChange::EndpointGone(key))
        }
    }
}

fn named(key: RowKey, Malformed(field): Malformed) -> BadRow {
    let key = Some(key);
    BadRow { key, field }
}

fn service(name: ObjectName, said: proto::Service) -> Result<ServiceRow> {
    if said.ports.len() > PORTS_MAX {
        return Err(Malformed("ports"));
    }
    let ports = said.ports.into_iter().map(|said| {
        let name = text(said.name, "port.name")?;
        Ok(PortRow {
            name,
            protocol: protocol(said.protocol)?,
            port: port(said.port)?,
        })
    });
    Ok(ServiceRow {
        name,
        addresses: Vec::new(),
        ports: ports.collect::<Result<_>>()?,
        global: said.global,
        shared: said.global && said.shared,
        affinity: Affinity::None,
        rules: ServiceRules::default(),
    })
}

fn endpoint(key: EndpointKey, said: proto::Endpoint) -> Result<EndpointRow> {
    if said.ports.len() > PORTS_MAX {
        return Err(Malformed("ports"));
    }
    let ports = said.ports.into_iter().map(|said| {
        let name = text(said.name, "port.name")?;
        Ok(EndpointPort {
            name,
            protocol: protocol(said.protocol)?,
            port: port(said.port)?,
        })
    });
    let mut ports: Vec<EndpointPort> = ports.collect::<Result<_>>()?;
    ports.sort();
    ports.dedup();
    Ok(EndpointRow {
        service: key.service,
        address: key.address,
        ports,
        condition: match proto::Condition::try_from(said.condition) {
            Ok(proto::Condition::Ready) => Condition::Ready,
            Ok(proto::Condition::ServingTerminating) => Condition::ServingTerminating,
            Ok(proto::Condition::NotReady) => Condition::NotReady,
            Ok(proto::Condition::Unspecified) | Err(_) => return Err(Malformed("condition")),
        },
        reason: text(said.reason, "reason")?,
        node: text(said.node, "node")?,
        zone: text(said.zone, "zone")?,
    })
}
