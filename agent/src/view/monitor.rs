//! What happens, as it happens, for one who listens.

use std::sync::Arc;
use std::time::Instant;

use isthmus_abi::EventKind;
use isthmus_core::mesh::PeerState;
use isthmus_proto::node::v1 as pb;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::View;
use crate::events::{Happening, Health, ServicePort, What};

/// Events that wait for the connection; behind them is the backlog of [`crate::events::Monitors`].
const QUEUE: usize = 64;

impl View {
    /// Begins to listen now. Ends when the listener leaves, or the agent stops.
    pub(super) fn monitor(
        self: &Arc<Self>,
        asked: pb::MonitorRequest,
    ) -> ReceiverStream<pb::MonitorEvent> {
        let mut happenings = self.monitors.listen();
        let (sender, receiver) = mpsc::channel(QUEUE);
        let view = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let received = tokio::select! {
                    () = view.shutdown.cancelled() => return,
                    () = sender.closed() => return,
                    received = happenings.recv() => received,
                };
                let event = match received {
                    Ok(happening) => view.event(&happening),
                    Err(RecvError::Lagged(lost)) => {
                        view.monitors.note_missed(lost);
                        loss(pb::MonitorKind::Lost, lost)
                    }
                    Err(RecvError::Closed) => return,
                };
                if !wants(&asked, &event) {
                    continue;
                }
                let sent = tokio::select! {
                    () = view.shutdown.cancelled() => return,
                    sent = sender.send(event) => sent,
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(receiver)
    }

    fn event(&self, happening: &Happening) -> pb::MonitorEvent {
        let mut event = match &happening.what {
            What::Health(health) => self.of_health(health, happening.at),
            What::Tier { port, before, now } => pb::MonitorEvent {
                kind: pb::MonitorKind::Tier.into(),
                tier_before: before.unwrap_or_default().to_owned(),
                tier: now.unwrap_or_default().to_owned(),
                ..of_port(port)
            },
            What::Peer {
                name,
                id,
                before,
                now,
                error,
            } => pb::MonitorEvent {
                kind: pb::MonitorKind::Peer.into(),
                cluster: name.to_string(),
                cluster_id: id.map(|id| id.get().into()),
                cause: error.clone().unwrap_or_default(),
                peer_before: peer_state(*before).into(),
                peer: peer_state(*now).into(),
                ..pb::MonitorEvent::default()
            },
            What::Untold(number) => loss(pb::MonitorKind::Untold, *number),
        };
        event.age_seconds = Instant::now()
            .saturating_duration_since(happening.at)
            .as_secs_f64();
        event
    }

    fn of_health(&self, health: &Health, at: Instant) -> pb::MonitorEvent {
        let mut event = health.port.as_deref().map(of_port).unwrap_or_default();
        event.set_kind(kind(health.kind));
        event.service_index = Some(health.service);
        event.cause = health.cause.to_owned();
        event.lasts_seconds = health
            .until
            .map(|until| until.saturating_duration_since(at).as_secs_f64());
        event.doublings = health.doublings.into();
        event.client = health.client.map(u32::from);
        if let Some(backend) = health.backend {
            let published = self.published();
            event.address = backend.address.to_string();
            event.port = backend.port.into();
            let id = backend.cluster.get();
            event.cluster = self.cluster_name(&published, id);
            event.cluster_id = Some(id.into());
        }
        event
    }
}

fn of_port(port: &ServicePort) -> pb::MonitorEvent {
    pb::MonitorEvent {
        service: port.service.to_string(),
        port_name: port.key.name.to_string(),
        protocol: port.key.protocol.to_string(),
        ..pb::MonitorEvent::default()
    }
}

fn loss(kind: pb::MonitorKind, lost: u64) -> pb::MonitorEvent {
    pb::MonitorEvent {
        kind: kind.into(),
        lost,
        ..pb::MonitorEvent::default()
    }
}

fn kind(kind: EventKind) -> pb::MonitorKind {
    match kind {
        EventKind::Ejected => pb::MonitorKind::Ejected,
        EventKind::TrialBegan => pb::MonitorKind::TrialBegan,
        EventKind::TrialFailed => pb::MonitorKind::TrialFailed,
        EventKind::TrialAbandoned => pb::MonitorKind::TrialAbandoned,
        EventKind::Returned => pb::MonitorKind::Returned,
        EventKind::Closed => pb::MonitorKind::Closed,
        EventKind::Disbelieved => pb::MonitorKind::Disbelieved,
        EventKind::Capped => pb::MonitorKind::Capped,
        EventKind::Refused => pb::MonitorKind::Refused,
        EventKind::AllEjected => pb::MonitorKind::AllEjected,
    }
}

fn peer_state(state: Option<PeerState>) -> pb::PeerState {
    state.map_or(pb::PeerState::Unspecified, super::mesh::peer_state)
}

fn wants(asked: &pb::MonitorRequest, event: &pb::MonitorEvent) -> bool {
    if matches!(
        event.kind(),
        pb::MonitorKind::Lost | pb::MonitorKind::Untold
    ) {
        return true;
    }
    (asked.kinds.is_empty() || asked.kinds.contains(&event.kind))
        && (asked.service.is_empty() || asked.service == event.service)
        && (asked.cluster.is_empty() || asked.cluster == event.cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_leave_out_what_was_not_asked_for_and_never_a_loss() {
        let event = pb::MonitorEvent {
            kind: pb::MonitorKind::Ejected.into(),
            service: "production/backend".to_owned(),
            cluster: "east".to_owned(),
            ..pb::MonitorEvent::default()
        };
        let asked = |service: &str, kinds: &[pb::MonitorKind], cluster: &str| pb::MonitorRequest {
            service: service.to_owned(),
            kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
            cluster: cluster.to_owned(),
        };
        let (ejected, peer) = (pb::MonitorKind::Ejected, pb::MonitorKind::Peer);
        for (request, wanted) in [
            (asked("", &[], ""), true),
            (asked("production/backend", &[peer, ejected], "east"), true),
            (asked("production/other", &[], ""), false),
            (asked("", &[peer], ""), false),
            (asked("", &[], "west"), false),
        ] {
            assert_eq!(wants(&request, &event), wanted, "{request:?}");
            assert!(wants(&request, &loss(pb::MonitorKind::Lost, 3)));
            assert!(wants(&request, &loss(pb::MonitorKind::Untold, 3)));
        }
    }
}
