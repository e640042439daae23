//! Between the protocol's messages and the model's rows. What comes from a socket is checked field by field here, and
//! nowhere after.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_core::mesh::{
    Beginning, CIDRS_MAX, Cluster, ConsumerHello, Epoch, FromServer, Guard, Held, PeerSilence,
    Position, Role, Sequenced, ServerHello,
};
use isthmus_core::model::ClusterId;
use isthmus_proto::mesh::v1 as proto;

mod peers;
mod rows;

use peers::{peer, say_peer, say_trouble, troubles};
use rows::{change, say_change};

/// A message that says what it may not, by the field.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a message with a wrong or missing `{0}`")]
pub struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// Longest name, reason or zone that is taken from a peer: Kubernetes' own limits, with room.
const TEXT_MAX: usize = 1024;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn millis32(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn text(text: String, field: &'static str) -> Result<Arc<str>> {
    if text.len() > TEXT_MAX {
        Err(Malformed(field))
    } else {
        Ok(text.into())
    }
}

fn id(number: u32) -> Result<ClusterId> {
    u16::try_from(number)
        .ok()
        .and_then(|id| id.try_into().ok())
        .ok_or(Malformed("cluster_id"))
}

fn cluster(name: &str, number: u32) -> Result<Cluster> {
    Ok(Cluster {
        name: name.parse().map_err(|_| Malformed("cluster_name"))?,
        id: id(number)?,
    })
}

fn position(said: proto::Position) -> Position {
    Position {
        epoch: Epoch(said.epoch),
        revision: said.revision,
        digest: said.digest,
    }
}

fn say_position(position: Position) -> proto::Position {
    proto::Position {
        epoch: position.epoch.0,
        revision: position.revision,
        digest: position.digest,
    }
}

#[must_use]
pub fn say_consumer_hello(hello: &ConsumerHello) -> proto::WatchRequest {
    let held = hello.held.iter().map(|held| proto::Held {
        cluster_id: held.cluster.id.get().into(),
        cluster_name: held.cluster.name.to_string(),
        position: Some(say_position(held.position)),
    });
    let hello = proto::ConsumerHello {
        cluster_name: hello.cluster.name.to_string(),
        cluster_id: hello.cluster.id.get().into(),
        role: match hello.role {
            Role::MeshServer => proto::Role::MeshServer,
            Role::Agent => proto::Role::Agent,
        }
        .into(),
        node: hello.node.clone(),
        capabilities: Vec::new(),
        held: held.collect(),
        stale_after_ms: hello.stale_after.map_or(0, millis32),
        versions: hello.versions.clone(),
    };
    proto::WatchRequest {
        message: Some(proto::watch_request::Message::Hello(hello)),
    }
}

#[must_use]
pub fn say_alive() -> proto::WatchRequest {
    proto::WatchRequest {
        message: Some(proto::watch_request::Message::Heartbeat(
            proto::Heartbeat::default(),
        )),
    }
}

#[must_use]
pub fn say_relist(id: ClusterId) -> proto::WatchRequest {
    let cluster_id = id.get().into();
    proto::WatchRequest {
        message: Some(proto::watch_request::Message::Relist(proto::Relist {
            cluster_id,
        })),
    }
}

/// # Errors
/// The message is malformed.
pub fn relist(said: proto::Relist) -> Result<ClusterId> {
    id(said.cluster_id)
}

/// # Errors
/// The message is malformed.
pub fn consumer_hello(said: proto::ConsumerHello) -> Result<ConsumerHello> {
    let held = said.held.into_iter().map(|held| {
        let position = position(held.position.ok_or(Malformed("held.position"))?);
        Ok(Held {
            cluster: cluster(&held.cluster_name, held.cluster_id)?,
            position,
        })
    });
    Ok(ConsumerHello {
        cluster: cluster(&said.cluster_name, said.cluster_id)?,
        role: match proto::Role::try_from(said.role) {
            Ok(proto::Role::MeshServer) => Role::MeshServer,
            Ok(proto::Role::Agent) => Role::Agent,
            Ok(proto::Role::Unspecified) | Err(_) => return Err(Malformed("role")),
        },
        node: text(said.node, "node")?.to_string(),
        held: held.collect::<Result<_>>()?,
        stale_after: (said.stale_after_ms > 0)
            .then(|| Duration::from_millis(said.stale_after_ms.into())),
        versions: said.versions,
    })
}

#[must_use]
pub fn say(said: Sequenced) -> proto::WatchResponse {
    use proto::watch_response::Message;
    let message = match said.message {
        FromServer::Hello(hello) => Message::Hello(proto::ServerHello {
            cluster_name: hello.cluster.name.to_string(),
            cluster_id: hello.cluster.id.get().into(),
            epoch: hello.epoch.0,
            capabilities: Vec::new(),
            heartbeat_ms: millis32(hello.heartbeat),
            version: hello.version,
            quarantine_percent: hello.guard.percent.into(),
            quarantine_ms: millis32(hello.guard.grace),
            cidrs: hello.cidrs.iter().map(ToString::to_string).collect(),
        }),
        FromServer::Start { cluster, beginning } => Message::Start(proto::ClusterStart {
            cluster_id: cluster.id.get().into(),
            cluster_name: cluster.name.to_string(),
            beginning: say_beginning(beginning).into(),
        }),
        FromServer::Rows {
            id,
            changes,
            position,
            bad: _,
        } => Message::Rows(proto::RowBatch {
            cluster_id: id.get().into(),
            changes: changes.into_iter().map(say_change).collect(),
            position: position.map(say_position),
        }),
        FromServer::Complete { id, position } => Message::Complete(proto::ClusterComplete {
            cluster_id: id.get().into(),
            position: Some(say_position(position)),
        }),
        FromServer::Peers {
            reports,
            partial,
            troubles,
        } => Message::Peers(proto::PeerList {
            peers: reports.into_iter().map(say_peer).collect(),
            partial,
            troubles: troubles.into_iter().map(say_trouble).collect(),
        }),
        FromServer::Heartbeat(silences) => Message::Heartbeat(proto::Heartbeat {
            peers: silences.into_iter().map(say_silence).collect(),
        }),
    };
    proto::WatchResponse {
        sequence: said.sequence,
        message: Some(message),
    }
}

/// # Errors
/// The message is malformed.
pub fn hear(said: proto::WatchResponse) -> Result<Sequenced> {
    use proto::watch_response::Message;
    let message = match said.message.ok_or(Malformed("message"))? {
        Message::Hello(hello) => FromServer::Hello(ServerHello {
            cluster: cluster(&hello.cluster_name, hello.cluster_id)?,
            epoch: Epoch(hello.epoch),
            heartbeat: Duration::from_millis(hello.heartbeat_ms.into()),
            guard: Guard {
                percent: percent(hello.quarantine_percent)?,
                grace: Duration::from_millis(hello.quarantine_ms.into()),
            },
            cidrs: cidrs(&hello.cidrs)?,
            version: hello.version,
        }),
        Message::Start(start) => FromServer::Start {
            cluster: cluster(&start.cluster_name, start.cluster_id)?,
            beginning: beginning(start.beginning)?,
        },
        Message::Rows(rows) => {
            let (mut changes, mut bad) = (Vec::with_capacity(rows.changes.len()), Vec::new());
            for said in rows.changes {
                match change(said) {
                    Ok(change) => changes.push(change),
                    Err(wrong) => bad.push(wrong),
                }
            }
            FromServer::Rows {
                id: id(rows.cluster_id)?,
                changes,
                bad,
                position: rows.position.map(position),
            }
        }
        Message::Complete(complete) => FromServer::Complete {
            id: id(complete.cluster_id)?,
            position: position(complete.position.ok_or(Malformed("position"))?),
        },
        Message::Peers(list) => FromServer::Peers {
            reports: list.peers.into_iter().map(peer).collect::<Result<_>>()?,
            partial: list.partial,
            troubles: troubles(list.troubles)?,
        },
        Message::Heartbeat(heartbeat) => FromServer::Heartbeat(
            heartbeat
                .peers
                .into_iter()
                .map(silence)
                .collect::<Result<_>>()?,
        ),
    };
    Ok(Sequenced {
        sequence: said.sequence,
        message,
    })
}

fn cidrs(said: &[String]) -> Result<Vec<IpNet>> {
    if said.len() > CIDRS_MAX {
        return Err(Malformed("cidrs"));
    }
    let cidr = |said: &String| said.parse::<IpNet>().map(|cidr| cidr.trunc());
    let cidrs: std::result::Result<_, _> = said.iter().map(cidr).collect();
    cidrs.map_err(|_| Malformed("cidrs"))
}

fn percent(said: u32) -> Result<u8> {
    let percent = u8::try_from(said).ok().filter(|percent| *percent <= 100);
    percent.ok_or(Malformed("quarantine_percent"))
}

fn say_beginning(beginning: Beginning) -> proto::Beginning {
    match beginning {
        Beginning::Resumed => proto::Beginning::Resumed,
        Beginning::First => proto::Beginning::First,
        Beginning::HistoryGone => proto::Beginning::HistoryGone,
        Beginning::Lagged => proto::Beginning::Lagged,
        Beginning::Asked => proto::Beginning::Asked,
    }
}

fn beginning(said: i32) -> Result<Beginning> {
    let known = |beginning: &Beginning| i32::from(say_beginning(*beginning)) == said;
    let found = Beginning::ALL.into_iter().find(known);
    found.ok_or(Malformed("beginning"))
}

fn say_silence(silence: PeerSilence) -> proto::PeerSilence {
    proto::PeerSilence {
        cluster_id: silence.id.get().into(),
        witnessed_ms: millis(silence.witnessed),
        last_word_ms: silence.last_word.map(millis),
    }
}

fn silence(said: proto::PeerSilence) -> Result<PeerSilence> {
    Ok(PeerSilence {
        id: id(said.cluster_id)?,
        witnessed: Duration::from_millis(said.witnessed_ms),
        last_word: said.last_word_ms.map(Duration::from_millis),
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use std::net::Ipv4Addr;

    use isthmus_core::mesh::{BadRow, RowKey};
    use isthmus_core::model::{
        Affinity, Condition, EndpointPort, EndpointRow, ObjectName, PortRow, Protocol, RowChange,
        ServiceRow,
    };

    use super::*;

    fn rows() -> Vec<RowChange> {
        let name = ObjectName::new("production", "backend");
        let service = ServiceRow {
            name: name.clone(),
            addresses: vec![],
            ports: vec![PortRow {
                name: "http".into(),
                protocol: Protocol::Udp,
                port: 65535,
            }],
            global: true,
            shared: true,
            affinity: Affinity::None,
            rules: isthmus_core::model::ServiceRules::default(),
        };
        let endpoint = |address: &str| EndpointRow {
            service: name.clone(),
            address: address.parse().unwrap(),
            ports: vec![EndpointPort {
                name: "http".into(),
                protocol: Protocol::Sctp,
                port: 1,
            }],
            condition: Condition::ServingTerminating,
            reason: "terminating".into(),
            node: "west-1".into(),
            zone: "a".into(),
        };
        let (v4, v6) = (endpoint("10.0.0.1"), endpoint("fd00::1"));
        vec![
            RowChange::EndpointGone(v4.key()),
            RowChange::EndpointGone(v6.key()),
            RowChange::Endpoint(Arc::new(v4)),
            RowChange::Endpoint(Arc::new(v6)),
            RowChange::Service(Arc::new(service)),
            RowChange::ServiceGone(name.clone()),
        ]
    }

    #[test]
    fn rows_cross_unchanged() {
        for row in rows() {
            assert_eq!(change(say_change(row.clone())), Ok(row));
        }
    }

    #[test]
    fn bad_rows_cost_nobody_but_themselves() {
        let mut changes: Vec<_> = rows().into_iter().map(say_change).collect();
        changes[4].change = None;
        let message = proto::watch_response::Message::Rows(proto::RowBatch {
            cluster_id: 2,
            changes,
            position: None,
        });
        let said = proto::WatchResponse {
            sequence: 1,
            message: Some(message),
        };
        let FromServer::Rows { changes, bad, .. } = hear(said).unwrap().message else {
            unreachable!()
        };
        assert_eq!((changes.len(), bad.len()), (rows().len() - 1, 1));
    }

    #[test]
    fn wrong_fields_are_named() {
        let mut said = say_change(rows().remove(2));
        let Some(proto::row_change::Change::Endpoint(row)) = &mut said.change else {
            unreachable!()
        };
        row.ports[0].port = 70_000;
        let key = RowKey::of(&rows()[2]);
        let bad = |key, field| Err(BadRow { key, field });
        assert_eq!(change(said.clone()), bad(Some(key), "port"));
        let Some(proto::row_change::Change::Endpoint(row)) = &mut said.change else {
            unreachable!()
        };
        row.ports.clear();
        row.key.as_mut().unwrap().address = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets().to_vec();
        assert_eq!(change(said), bad(None, "address"));
        assert_eq!(change(proto::RowChange::default()), bad(None, "change"));
        assert_eq!(
            hear(proto::WatchResponse::default()).unwrap_err(),
            Malformed("message")
        );
        let said = proto::ConsumerHello {
            cluster_name: "west".into(),
            cluster_id: 512,
            ..Default::default()
        };
        assert_eq!(consumer_hello(said).unwrap_err(), Malformed("cluster_id"));
    }
}
