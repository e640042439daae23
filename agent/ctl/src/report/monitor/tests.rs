use super::*;

/// 2026-01-02T03:04:05.678Z.
fn now() -> OffsetDateTime {
    time::macros::datetime!(2026-01-02 03:04:05.678 UTC)
}

fn told(event: proto::MonitorEvent) -> String {
    MonitorEvent::new(event, now()).text(false, Style::PLAIN)
}

fn event(kind: proto::MonitorKind) -> proto::MonitorEvent {
    proto::MonitorEvent {
        kind: kind.into(),
        service: "production/backend".to_owned(),
        port_name: "http".to_owned(),
        protocol: "TCP".to_owned(),
        service_index: Some(5),
        address: "10.11.1.5".to_owned(),
        port: 8080,
        cluster: "east".to_owned(),
        cluster_id: Some(1),
        client: Some(17),
        ..proto::MonitorEvent::default()
    }
}

#[test]
fn every_kind_is_a_line_with_its_full_name() {
    use proto::MonitorKind as Kind;
    let refused = |kind| proto::MonitorEvent {
        cause: "refused".to_owned(),
        lasts_seconds: Some(5.2),
        ..event(kind)
    };
    let of_service = |kind| proto::MonitorEvent {
        address: String::new(),
        port: 0,
        cluster: String::new(),
        cluster_id: None,
        client: None,
        ..event(kind)
    };
    let peer = proto::MonitorEvent {
        kind: Kind::Peer.into(),
        cluster: "west".to_owned(),
        cause: "heartbeat timed out".to_owned(),
        peer_before: proto::PeerState::Connected.into(),
        peer: proto::PeerState::Stale.into(),
        ..proto::MonitorEvent::default()
    };
    let lost = |kind: Kind| proto::MonitorEvent {
        kind: kind.into(),
        lost: 12,
        ..proto::MonitorEvent::default()
    };
    let events = [
        refused(Kind::Ejected),
        event(Kind::TrialBegan),
        proto::MonitorEvent {
            doublings: 2,
            ..refused(Kind::TrialFailed)
        },
        event(Kind::TrialAbandoned),
        event(Kind::Returned),
        refused(Kind::Closed),
        event(Kind::Disbelieved),
        of_service(Kind::Capped),
        proto::MonitorEvent {
            cause: "no_backend".to_owned(),
            ..of_service(Kind::Refused)
        },
        of_service(Kind::AllEjected),
        proto::MonitorEvent {
            tier: "remote ready".to_owned(),
            tier_before: "local ready".to_owned(),
            service_index: None,
            ..of_service(Kind::Tier)
        },
        peer,
        lost(Kind::Untold),
        lost(Kind::Lost),
        proto::MonitorEvent {
            service: String::new(),
            port_name: String::new(),
            protocol: String::new(),
            ..of_service(Kind::Capped)
        },
        proto::MonitorEvent::default(),
    ];
    let text: String = events.into_iter().map(told).collect();
    let wanted = "\
ejected          production/backend http/TCP 10.11.1.5:8080 (east): refused, left out for 5.2s
trial-began      production/backend http/TCP 10.11.1.5:8080 (east): client 17 tries it
trial-failed     production/backend http/TCP 10.11.1.5:8080 (east): refused, left out for 5.2s, the 3. time in a row
trial-abandoned  production/backend http/TCP 10.11.1.5:8080 (east): it ended without a word, the next client tries
returned         production/backend http/TCP 10.11.1.5:8080 (east): takes connections again
closed           production/backend http/TCP 10.11.1.5:8080 (east): refused, closed to client 17 alone for 5.2s
disbelieved      production/backend http/TCP 10.11.1.5:8080 (east): client 17 failed at two backends, its failures do not count until it succeeds
capped           production/backend http/TCP: an ejection was due, and the limit does not allow it
refused          production/backend http/TCP: a connect was refused, no backend
all-ejected      production/backend http/TCP: every backend is ejected, drawn as if none were
tier             production/backend http/TCP: remote ready serves now, local ready before
peer             west: stale now, connected before, last error heartbeat timed out
untold           12 more came too fast to be told one by one
lost             12 events lost: this monitor was too slow
capped           service 5, gone meanwhile: an ejection was due, and the limit does not allow it
unknown          -: this agentctl does not know what the agent said
";
    let time = "2026-01-02T03:04:05.678Z  ";
    let wanted: String = wanted
        .lines()
        .map(|line| format!("{time}{line}\n"))
        .collect();
    assert_eq!(text, wanted);
}

#[test]
fn the_time_is_the_event_s_and_what_is_not_known_is_null() {
    let event = proto::MonitorEvent {
        age_seconds: 0.678,
        ..event(proto::MonitorKind::Returned)
    };
    let json = serde_json::to_value(MonitorEvent::new(event, now()));
    let json = json.unwrap_or_default();
    assert_eq!(json["time"], "2026-01-02T03:04:05Z");
    assert_eq!(
        (&json["event"], &json["port"]),
        (&"returned".into(), &8080.into())
    );
    for unknown in [
        "cause",
        "lastsSeconds",
        "tier",
        "peer",
        "peerBefore",
        "lost",
    ] {
        assert!(json[unknown].is_null(), "{unknown}: {json}");
    }
    let tier = proto::MonitorEvent {
        kind: proto::MonitorKind::Tier.into(),
        tier_before: "local ready".to_owned(),
        ..proto::MonitorEvent::default()
    };
    assert!(told(tier).ends_with("no backend serves now, local ready before\n"));
}

#[test]
fn what_a_terminal_would_obey_is_left_out() {
    let event = proto::MonitorEvent {
        service: "a\u{1b}[31m/b\n".to_owned(),
        ..event(proto::MonitorKind::Returned)
    };
    assert!(!told(event).trim_end().contains(char::is_control));
}
