use isthmus_proto::node::v1 as proto;
use time::{Duration, OffsetDateTime};

use super::*;

mod waiting;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn node() -> proto::NodeInfo {
    proto::NodeInfo {
        version: "0.1.0".to_owned(),
        cluster: "east".to_owned(),
        cluster_id: 1,
        node: "east-1".to_owned(),
        uptime_seconds: 252.0,
        abi_version: 1,
    }
}

fn feed() -> proto::Feed {
    proto::Feed {
        server: "10.1.0.2:4260".to_owned(),
        state: proto::FeedState::Connected.into(),
        state_seconds: 252.0,
        last_word_seconds: Some(0.4),
        resumed: 1,
        last_resumed_seconds: Some(63.0),
        listed: true,
        ..proto::Feed::default()
    }
}

fn peer(name: &str, id: u32) -> proto::Peer {
    proto::Peer {
        name: name.to_owned(),
        id: Some(id),
        state: proto::PeerState::Connected.into(),
        state_seconds: Some(250.0),
        last_word_seconds: Some(0.6),
        hears_us: Some(true),
        hears_us_seconds: Some(250.0),
        epoch: Some(0x7f3a_0000_0000_0001),
        revision: Some(1842),
        complete: true,
        services: 4,
        endpoints: 12,
        endpoint: "10.3.0.2:4260".to_owned(),
        ..proto::Peer::default()
    }
}

fn stale_west() -> proto::Peer {
    proto::Peer {
        state: proto::PeerState::Stale.into(),
        last_word_seconds: Some(41.0),
        hears_us: None,
        hears_us_seconds: None,
        epoch: Some(0x19c0_0000_0000_0002),
        revision: Some(77),
        services: 1,
        endpoints: 2,
        endpoint: "10.2.0.2:4260".to_owned(),
        last_error: Some(proto::LinkError {
            text: "10.2.0.2:4260 does not answer TCP: firewall, route, or mesh server down?"
                .to_owned(),
            age_seconds: 38.0,
            tries: 9,
        }),
        dropped_in_seconds: Some(259.0),
        ..peer("west", 2)
    }
}

fn status(feed: Option<proto::Feed>, peers: Vec<proto::Peer>) -> ClusterMeshStatus {
    let answer = proto::GetClusterMeshResponse {
        node: Some(node()),
        feed,
        peers,
        peer_stale_after_seconds: 3.0,
        cluster_ttl_seconds: 300.0,
    };
    ClusterMeshStatus::new(answer, NOW)
}

fn text(status: &ClusterMeshStatus) -> String {
    status.text(false, Style::PLAIN)
}

#[test]
fn stale_and_deaf_peers_stand_with_cause_and_way_out() {
    let deaf = proto::Peer {
        hears_us: Some(false),
        hears_us_seconds: Some(130.0),
        ..peer("north", 3)
    };
    let status = status(Some(feed()), vec![deaf, stale_west()]);
    let wanted = "\
Cluster east (id 1), node east-1, isthmus-agent 0.1.0
Feed     mesh server 10.1.0.2:4260: connected 4m12s, last word 0.4s ago, resumed 1 time (1m03s ago)

PEER   ID  STATE      LAST WORD  HEARS US    REVISION   SERVICES  ENDPOINTS  LAST ERROR
north  3   connected  0.6s ago   no (2m10s)  7f3a/1842  4         12         -
west   2   stale      41s ago    -           19c0/77    1         2          10.2.0.2:4260 does not answer TCP: firewall, ro…, 38s ago, 9 tries

! north  does not watch east: requests go there, none come here. On north:
         agentctl clustermesh connect east --id 1 --endpoint 10.1.0.2:4260
! west   silent for 41s. Its 2 endpoints serve only when nothing else does; dropped in 4m19s (--cluster-ttl 5m).
         10.2.0.2:4260 does not answer TCP: firewall, route, or mesh server down?
2 of 2 peers need attention
";
    assert_eq!(text(&status), wanted);
    assert!(status.is_bad() && !status.is_settled());
}

#[test]
fn a_healthy_mesh_says_nothing_more_than_its_table() {
    let status = status(Some(feed()), vec![peer("west", 2)]);
    let wanted = "\
Cluster east (id 1), node east-1, isthmus-agent 0.1.0
Feed     mesh server 10.1.0.2:4260: connected 4m12s, last word 0.4s ago, resumed 1 time (1m03s ago)

PEER  ID  STATE      LAST WORD  HEARS US  REVISION   SERVICES  ENDPOINTS  LAST ERROR
west  2   connected  0.6s ago   yes       7f3a/1842  4         12         -
";
    assert_eq!(text(&status), wanted);
    assert!(!status.is_bad() && status.is_settled());
    assert!(status.is_connected("west") && !status.is_connected("north"));
    assert_eq!(status.summary(), "feed connected 4m12s, 1 of 1 peers well");
    let wide = status.text(true, Style::PLAIN);
    assert!(
        wide.contains("7f3a000000000001/1842") && wide.contains("10.3.0.2:4260"),
        "{wide}"
    );
}

#[test]
fn a_lost_feed_freezes_the_peers_and_is_the_fault_itself() {
    let lost = proto::Feed {
        state: proto::FeedState::Lost.into(),
        state_seconds: 12.0,
        last_word_seconds: Some(12.4),
        resumed: 0,
        last_error: Some(proto::LinkError {
            text: "10.1.0.2:4260 refused the connection: nothing listens there".to_owned(),
            age_seconds: 0.3,
            tries: 5,
        }),
        ..feed()
    };
    let status = status(Some(lost), vec![peer("west", 2)]);
    let wanted = "\
Cluster east (id 1), node east-1, isthmus-agent 0.1.0
Feed     mesh server 10.1.0.2:4260: lost 12s, last word 12s ago

PEER  ID  STATE                          LAST WORD  HEARS US  REVISION   SERVICES  ENDPOINTS  LAST ERROR
west  2   feed lost 12s (was connected)  0.6s ago   yes       7f3a/1842  4         12         -

! feed  lost for 12s: peers are shown as last known. No tier changes and nothing is dropped meanwhile.
        10.1.0.2:4260 refused the connection: nothing listens there
";
    assert_eq!(text(&status), wanted);
    assert!(status.is_bad());
    assert!(!status.is_connected("west"), "not while the feed is lost");
    assert_eq!(status.peers_needing_attention, 0);
}

#[test]
fn a_duplicate_is_refused_with_both_names() {
    let duplicate = r#"cluster id 2 is taken: "west" and "lab2" both use it; give one another id in its --cluster-id, then restart it"#;
    let refused = proto::Peer {
        state: proto::PeerState::Refused.into(),
        last_error: Some(proto::LinkError {
            text: duplicate.to_owned(),
            age_seconds: 2.0,
            tries: 1,
        }),
        last_word_seconds: None,
        hears_us: None,
        epoch: None,
        revision: None,
        complete: false,
        services: 0,
        endpoints: 0,
        ..peer("lab2", 2)
    };
    let status = status(Some(feed()), vec![refused, peer("west", 2)]);
    let text = text(&status);
    let row = "lab2  2   refused    never      -         -          0         0          cluster id 2 is taken: \"west\" and \"lab2\" both u…, 2s ago, 1 try\n";
    assert!(text.contains(row), "{text}");
    let lines = format!(
        "! lab2  refused. Nothing of it is used.\n        {duplicate}\n1 of 2 peers needs attention\n"
    );
    assert!(text.ends_with(&lines), "{text}");
}

type Change = fn(&mut proto::Peer);

#[test]
fn every_state_of_a_peer_has_its_sentence() {
    let with = |change: Change| {
        let mut peer = peer("west", 2);
        change(&mut peer);
        let status = status(Some(feed()), vec![peer]);
        let cause = status.attention.first().map(|a| a.cause.clone());
        (cause.unwrap_or_default(), status.is_bad())
    };
    let cases: [(Change, &str, bool); 7] = [
        (
            |p| {
                p.set_state(proto::PeerState::Connecting);
                p.last_word_seconds = None;
                p.state_seconds = Some(7.0);
            },
            "never heard; tried for 7s.",
            true,
        ),
        (
            |p| p.set_state(proto::PeerState::Connecting),
            "not connected; last heard 0.6s ago.",
            true,
        ),
        (
            |p| {
                p.set_state(proto::PeerState::Dropped);
                p.last_word_seconds = Some(420.0);
            },
            "silent for 7m: what was known of it is dropped (--cluster-ttl 5m) until it is heard again.",
            true,
        ),
        (
            |p| {
                p.set_state(proto::PeerState::Stale);
                p.endpoints = 1;
            },
            "silent for 0.6s. Its 1 endpoint serves only when nothing else does.",
            true,
        ),
        (
            |p| {
                p.set_state(proto::PeerState::Refused);
            },
            "refused. What was known of it stays for now: 12 endpoints.",
            true,
        ),
        (
            |p| p.state = 99,
            "in a state that this agentctl does not know.",
            true,
        ),
        (
            |p| {
                p.quarantine = Some(proto::Quarantine {
                    rows: 11,
                    held: 16,
                    age_seconds: 18.0,
                    left_seconds: 42.0,
                });
            },
            "its list of 18s ago left out 11 of 16 rows: they stay for 42s more.",
            true,
        ),
    ];
    for (change, cause, bad) in cases {
        assert_eq!(with(change), (cause.to_owned(), bad));
    }
}

fn refused(reason: &str, rows: u64) -> proto::Refusal {
    proto::Refusal {
        reason: reason.to_owned(),
        rows,
        total: 12,
        example: "endpoint 10.9.1.5 of production/backend".to_owned(),
    }
}

#[test]
fn refused_rows_stand_with_reason_example_and_way_out() {
    let west = proto::Peer {
        refused_rows: 24,
        refusals: vec![refused("foreign-cluster", 0), refused("outside-address", 3)],
        allowed_cidrs: vec!["10.12.0.0/16".to_owned()],
        cidrs_from: "learnt".to_owned(),
        announced_cidrs: vec!["10.0.0.0/8".to_owned()],
        ..peer("west", 2)
    };
    let status = status(Some(feed()), vec![west]);
    let text = text(&status);
    let wanted = "
! west  3 rows refused: their addresses are outside 10.12.0.0/16, as it said when it was first connected; the last was endpoint 10.9.1.5 of production/backend.
        If they should be used, allow them: spec.cidrs of the link, or clustermesh connect --cidr.
- west  12 rows refused since the mesh server started: they are another cluster's; the last was endpoint 10.9.1.5 of production/backend.
- west  says that its endpoints are in 10.0.0.0/8; 10.12.0.0/16 holds, as it said when it was first connected.
        To accept that: spec.cidrs of the link, or clustermesh connect --cidr.
1 of 1 peer needs attention
";
    assert!(text.ends_with(wanted), "{text}");
    assert!(status.is_bad());
    let wide = status.text(true, Style::PLAIN);
    assert!(
        wide.contains("  24            10.12.0.0/16 (learnt)  "),
        "{wide}"
    );
    let json = serde_json::to_value(&status).expect("a report is JSON");
    assert_eq!(json["peers"][0]["refusals"][1]["reason"], "outside-address");
    assert_eq!(json["peers"][0]["cidrs"]["from"], "learnt");
}

#[test]
fn every_reason_of_a_refusal_has_its_words() {
    for reason in isthmus_core::mesh::Refusal::ALL {
        let west = proto::Peer {
            refusals: vec![refused(reason.name(), 1)],
            ..peer("west", 2)
        };
        let status = status(Some(feed()), vec![west]);
        let said = &status.attention[0];
        assert!(!said.cause.contains(reason.name()), "{}", said.cause);
        assert_eq!(said.way_out.len(), 1);
    }
}

#[test]
fn troubles_of_this_side_stand_with_cause_and_way_out() {
    let trouble = |about: &str, cause: &str, way_out: &str, age| proto::Trouble {
        about: about.to_owned(),
        cause: cause.to_owned(),
        way_out: way_out.to_owned(),
        age_seconds: age,
    };
    let troubles = vec![
        trouble(
            "state file",
            "/s/peers.state could not be used.",
            "Look at it.",
            None,
        ),
        trouble(
            "link x.yaml:5",
            "spec.id: 0 is not 1..511.",
            "Correct it.",
            Some(61.0),
        ),
    ];
    let feed = proto::Feed { troubles, ..feed() };
    let status = status(Some(feed), vec![peer("west", 2)]);
    let wanted = "
! state file     /s/peers.state could not be used.
                 Look at it.
! link x.yaml:5  spec.id: 0 is not 1..511. (for 1m01s)
                 Correct it.
";
    let text = text(&status);
    assert!(text.ends_with(wanted), "{text}");
    assert!(status.is_bad() && !status.is_settled());
    assert_eq!(
        status.summary(),
        "feed connected 4m12s, 1 of 1 peers well, 2 troubles"
    );
    let json = serde_json::to_value(&status).expect("a report is JSON");
    assert_eq!(json["feed"]["troubles"][1]["about"], "link x.yaml:5");
}

#[test]
fn a_cluster_alone_is_well() {
    let status = status(None, Vec::new());
    let wanted = "\
Cluster east (id 1), node east-1, isthmus-agent 0.1.0
Feed     none: this cluster is alone (isthmus-agent --mesh joins it to others)
";
    assert_eq!(text(&status), wanted);
    assert!(!status.is_bad() && status.is_settled());
}

#[test]
fn a_certificate_that_ends_is_a_note_and_one_that_ended_a_fault() {
    let ending = |left: Duration| {
        let certificate = proto::Certificate {
            name: "agent.east.mesh.isthmus.dev".to_owned(),
            not_after_unix_seconds: left.whole_seconds(),
        };
        let feed = proto::Feed {
            certificate: Some(certificate),
            ..feed()
        };
        let status = status(Some(feed), vec![peer("west", 2)]);
        let cause = status.attention.first().map(|a| a.cause.clone());
        (cause, status.is_bad())
    };
    assert_eq!(ending(Duration::days(30)), (None, false));
    let soon = "agent.east.mesh.isthmus.dev expires in 3d.";
    assert_eq!(ending(Duration::days(3)), (Some(soon.to_owned()), false));
    let over = "agent.east.mesh.isthmus.dev expired 1h ago.";
    assert_eq!(ending(Duration::hours(-1)), (Some(over.to_owned()), true));
}

#[test]
fn the_other_side_is_told_an_address_that_it_can_reach() {
    let endpoint = |server: &str| {
        let feed = proto::Feed {
            server: server.to_owned(),
            ..feed()
        };
        status(Some(feed), Vec::new())
            .own_endpoint()
            .map(str::to_owned)
    };
    assert_eq!(endpoint("10.1.0.2:4260").as_deref(), Some("10.1.0.2:4260"));
    for own in [
        "unix:/run/isthmus/mesh.sock",
        "127.0.0.1:4260",
        "[::1]:4260",
        "localhost:4260",
    ] {
        assert_eq!(endpoint(own), None, "{own}");
    }
}

#[test]
fn words_of_others_do_not_reach_the_terminal_raw() {
    let mut evil = stale_west();
    evil.name = "we\u{1b}[2Jst".to_owned();
    let status = status(Some(feed()), vec![evil]);
    assert!(!text(&status).contains('\u{1b}'));
}

#[test]
fn json_keeps_unknown_as_null_and_times_as_rfc_3339() {
    let certificate = proto::Certificate {
        name: "agent.east.mesh.isthmus.dev".to_owned(),
        not_after_unix_seconds: 86_400,
    };
    let feed = proto::Feed {
        certificate: Some(certificate),
        ..feed()
    };
    let status = status(Some(feed), vec![stale_west()]);
    let json = serde_json::to_value(crate::output::Document::new(&status));
    let json = json.expect("a report is JSON");
    assert_eq!(json["apiVersion"], "isthmus.dev/v1");
    assert_eq!(json["kind"], "ClusterMeshStatus");
    assert_eq!(
        json["feed"]["certificate"]["notAfter"],
        "1970-01-02T00:00:00Z"
    );
    let west = &json["peers"][0];
    assert_eq!(west["state"], "stale");
    assert_eq!(west["lastWordSeconds"], 41.0);
    assert_eq!(west["droppedInSeconds"], 259.0);
    assert_eq!(west["epoch"], "19c0000000000002");
    assert!(west["hearsUs"].is_null() && west.get("hearsUs").is_some());
    assert_eq!(json["peersNeedingAttention"], 1);
}
