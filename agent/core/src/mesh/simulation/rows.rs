//! Rows of namespace `n`.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::model::{
    Address, Affinity, Batch, Condition, EndpointPort, EndpointRow, ObjectName, PortRow, Protocol,
    RowChange, ServiceRow, ServiceRules,
};

pub(in crate::mesh) fn service(name: &str, port: u16) -> RowChange {
    RowChange::Service(Arc::new(service_row(name, port, true)))
}

pub(in crate::mesh) fn private_service(name: &str) -> RowChange {
    RowChange::Service(Arc::new(service_row(name, 80, false)))
}

fn service_row(name: &str, port: u16, shared: bool) -> ServiceRow {
    ServiceRow {
        name: ObjectName::new("n", name),
        addresses: vec!["10.96.0.1".parse().unwrap()],
        ports: vec![PortRow {
            name: "".into(),
            protocol: Protocol::Tcp,
            port,
        }],
        global: shared,
        shared,
        affinity: Affinity::Local,
        rules: ServiceRules::default(),
    }
}

pub(in crate::mesh) fn endpoint(service: &str, number: u32, ready: bool) -> RowChange {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + number).into();
    endpoint_row(service, address, ready)
}

pub(in crate::mesh) fn endpoint_at(service: &str, address: &str) -> RowChange {
    endpoint_row(service, address.parse().unwrap(), true)
}

fn endpoint_row(service: &str, address: Address, ready: bool) -> RowChange {
    RowChange::Endpoint(Arc::new(EndpointRow {
        service: ObjectName::new("n", service),
        address,
        ports: vec![EndpointPort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        condition: if ready {
            Condition::Ready
        } else {
            Condition::NotReady
        },
        reason: if ready { "" } else { "Pod condition" }.into(),
        node: "".into(),
        zone: "".into(),
    }))
}

pub(in crate::mesh) fn batch(changes: Vec<RowChange>, complete: bool) -> Batch {
    Batch { changes, complete }
}
