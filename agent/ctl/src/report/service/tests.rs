use isthmus_proto::node::v1 as proto;

use super::*;

fn backend(cluster: &str, address: &str) -> proto::ServiceBackend {
    let number = if cluster == "east" { 1 } else { 2 };
    proto::ServiceBackend {
        address: address.to_owned(),
        port: 8080,
        cluster: cluster.to_owned(),
        cluster_id: number,
        local: cluster == "east",
        node: format!("{cluster}-1"),
        state: proto::BackendState::Active.into(),
        tier: Some(0),
        tier_name: "ready".to_owned(),
        preferred: true,
        slots: Some(1),
        tier_slots: Some(2),
        backend_id: Some(3),
        connects: Some(4012),
        ..proto::ServiceBackend::default()
    }
}

/// Not used, for a reason.
fn unused(backend: proto::ServiceBackend) -> proto::ServiceBackend {
    proto::ServiceBackend {
        state: proto::BackendState::NotReady.into(),
        reason: "Pod condition".to_owned(),
        state_seconds: Some(8.0),
        tier: None,
        tier_name: String::new(),
        preferred: false,
        slots: None,
        tier_slots: None,
        backend_id: None,
        connects: None,
        ..backend
    }
}

fn stale(backend: proto::ServiceBackend) -> proto::ServiceBackend {
    proto::ServiceBackend {
        state: proto::BackendState::Stale.into(),
        state_seconds: Some(41.0),
        ..backend
    }
}

/// Left out by the kernel.
fn ejected(backend: proto::ServiceBackend) -> proto::ServiceBackend {
    let failures = proto::FailureCounts {
        refused: 3,
        ..proto::FailureCounts::default()
    };
    proto::ServiceBackend {
        preferred: false,
        health: Some(proto::BackendHealth {
            kind: proto::HealthKind::Ejected.into(),
            since_seconds: Some(1.9),
            until_seconds: Some(3.1),
            doublings: 0,
            failures: Some(failures),
            closed_clients: 0,
        }),
        ..backend
    }
}

fn list(affinity: &str, backends: Vec<proto::ServiceBackend>) -> ServiceList {
    let frontend = proto::Frontend {
        service: "production/backend".to_owned(),
        address: "10.96.71.4".to_owned(),
        port: 8080,
        protocol: "TCP".to_owned(),
        r#type: "ClusterIP".to_owned(),
        affinity: affinity.to_owned(),
        global: true,
        shared: true,
        service_index: Some(5),
        backends,
        ..proto::Frontend::default()
    };
    ServiceList::new(proto::ListServicesResponse {
        node: None,
        frontends: vec![frontend],
    })
}

#[test]
fn a_service_served_from_elsewhere_says_so() {
    let list = list(
        "local",
        vec![
            ejected(backend("east", "10.11.1.5")),
            unused(backend("east", "10.11.2.5")),
            backend("west", "10.12.1.5"),
            backend("west", "10.12.2.5"),
        ],
    );
    let wanted = "\
SERVICE             FRONTEND             TYPE       AFFINITY  BACKEND         CLUSTER  NODE    STATE
production/backend  10.96.71.4:8080/TCP  ClusterIP  local     10.11.1.5:8080  east     east-1  ejected 1.9s: refused x3, trial in 3.1s
production/backend  10.96.71.4:8080/TCP  ClusterIP  local     10.11.2.5:8080  east     east-1  not ready 8s: Pod condition
production/backend  10.96.71.4:8080/TCP  ClusterIP  local     10.12.1.5:8080  west     west-1  active (preferred)
production/backend  10.96.71.4:8080/TCP  ClusterIP  local     10.12.2.5:8080  west     west-1  active (preferred)
production/backend is served by west: 0 of 2 local backends can take connections.
";
    assert_eq!(list.text(false, Style::PLAIN), wanted);
    assert!(!list.is_bad());
}

#[test]
fn preference_is_a_word_only_where_something_else_is_not_preferred() {
    let both = || vec![backend("east", "10.11.1.5"), backend("west", "10.12.1.5")];
    let shared = list("none", both());
    assert!(
        shared.frontends[0]
            .backends
            .iter()
            .all(|b| b.state_text == "active")
    );
    let mut local_first = both();
    local_first[1].preferred = false;
    let local_first = list("local", local_first);
    let texts: Vec<&str> = local_first.frontends[0]
        .backends
        .iter()
        .map(|b| b.state_text.as_str())
        .collect();
    assert_eq!(texts, ["active (preferred)", "active"]);
    assert!(shared.remarks.is_empty() && local_first.remarks.is_empty());
}

#[test]
fn health_stands_in_the_place_of_active_and_behind_what_is_worse() {
    let texts = |backends: Vec<proto::ServiceBackend>| -> Vec<String> {
        let list = list("none", backends);
        let backends = list.frontends[0].backends.iter();
        backends.map(|backend| backend.state_text.clone()).collect()
    };
    let east = || backend("east", "10.11.1.5");
    let suspect = proto::ServiceBackend {
        health: Some(proto::BackendHealth {
            kind: proto::HealthKind::Suspect.into(),
            ..proto::BackendHealth::default()
        }),
        ..east()
    };
    let out = "ejected 1.9s: refused x3, trial in 3.1s";
    assert_eq!(
        texts(vec![
            suspect,
            ejected(stale(east())),
            ejected(unused(east())),
        ]),
        [
            "suspect (preferred)".to_owned(),
            format!("stale 41s; {out}"),
            "not ready 8s: Pod condition".to_owned(),
        ]
    );
    // Drawn as if none were: then they are preferred.
    let both = ["10.11.1.5", "10.11.2.5"].map(|address| proto::ServiceBackend {
        preferred: true,
        ..ejected(backend("east", address))
    });
    let list = list("none", both.to_vec());
    assert_eq!(list.frontends[0].backends[0].state_text, out);
    assert_eq!(
        list.remarks,
        [
            "production/backend: every backend is ejected; connections are spread over east as if none were."
        ]
    );
    let json = serde_json::to_value(&list).unwrap_or_default();
    let backend = &json["frontends"][0]["backends"][0];
    assert_eq!(backend["health"]["state"], "ejected");
    assert_eq!(backend["health"]["failures"]["refused"], 3);
    assert_eq!(backend["health"]["sinceSeconds"], 1.9);
}

#[test]
fn remarks_are_made_only_when_true() {
    let east = || backend("east", "10.11.1.5");
    let west = || backend("west", "10.12.1.5");
    let terminating = proto::ServiceBackend {
        state: proto::BackendState::Terminating.into(),
        preferred: true,
        ..east()
    };
    let cases: [(Vec<proto::ServiceBackend>, &[&str]); 7] = [
        (vec![east(), west()], &[]),
        // No local backend at all: nothing is lost.
        (vec![west()], &[]),
        (vec![terminating], &[]),
        (
            vec![unused(east()), west()],
            &["production/backend is served by west: 0 of 1 local backend can take connections."],
        ),
        (
            vec![unused(east()), stale(west())],
            &[
                "production/backend is served by west alone, not heard for a while: nothing else is left.",
            ],
        ),
        (
            vec![unused(east())],
            &["production/backend has no backend that can take connections: they are refused."],
        ),
        (
            vec![],
            &["production/backend has no backend that can take connections: they are refused."],
        ),
    ];
    for (backends, remarks) in cases {
        assert_eq!(list("local", backends).remarks, remarks);
    }
    // With affinity `remote` others serve as wished, until the local ones could not even if asked.
    let mut waiting = east();
    waiting.preferred = false;
    assert!(list("remote", vec![waiting, west()]).remarks.is_empty());
}

#[test]
fn rules_are_shown_and_a_node_without_a_backend_is_explained() {
    let elsewhere = proto::ServiceBackend {
        state: proto::BackendState::Elsewhere.into(),
        tier: None,
        preferred: false,
        ..backend("east", "10.11.2.5")
    };
    let frontend = |backends: Vec<proto::ServiceBackend>| proto::Frontend {
        service: "production/backend".to_owned(),
        service_index: Some(5),
        affinity_seconds: 10_800,
        no_passive_health: true,
        node_only: true,
        backends,
        ..proto::Frontend::default()
    };
    let list = |backends| {
        ServiceList::new(proto::ListServicesResponse {
            node: None,
            frontends: vec![frontend(backends)],
        })
    };
    let both = list(vec![backend("east", "10.11.1.5"), elsewhere.clone()]);
    assert!(both.remarks.is_empty(), "{:?}", both.remarks);
    let text = both.text(true, Style::PLAIN);
    let rows: Vec<&str> = text.lines().collect();
    let rules = "sticky 10800s, this node only, never ejected";
    assert!(
        rows[1].ends_with(&format!("{rules}  active (preferred)")),
        "{text}"
    );
    assert!(rows[2].ends_with(&format!("{rules}  other node")), "{text}");
    let json = serde_json::to_value(&both).unwrap_or_default();
    assert_eq!(
        json["frontends"][0]["rules"],
        serde_json::json!({"sessionAffinitySeconds": 10_800, "passiveHealth": false, "nodeOnly": true})
    );
    assert_eq!(
        list(vec![elsewhere]).remarks,
        [
            "production/backend has no backend on this node, and internalTrafficPolicy is Local: connections from here are refused."
        ]
    );
}

#[test]
fn a_service_that_the_datapath_does_not_serve_shows_why() {
    let frontend = proto::Frontend {
        service: "a/collides".to_owned(),
        port: 80,
        protocol: "TCP".to_owned(),
        r#type: "ClusterIP".to_owned(),
        affinity: "none".to_owned(),
        problem: "no address: 10.96.3.4 is a/a's; set spec.clusterIP".to_owned(),
        ..proto::Frontend::default()
    };
    let v6 = proto::Frontend {
        address: "fd00:10:96::4".to_owned(),
        problem: String::new(),
        service_index: Some(6),
        backends: vec![stale(backend("west", "fd00::5"))],
        ..frontend.clone()
    };
    let list = ServiceList::new(proto::ListServicesResponse {
        node: None,
        frontends: vec![frontend, v6],
    });
    let wanted = "\
SERVICE     FRONTEND               TYPE       AFFINITY  BACKEND         CLUSTER  NODE    STATE
a/collides  -:80/TCP               ClusterIP  none      -               -        -       not served: no address: 10.96.3.4 is a/a's; set spec.clusterIP
a/collides  [fd00:10:96::4]:80/TCP ClusterIP  none      [fd00::5]:8080  west     west-1  stale 41s
a/collides is served by west alone, not heard for a while: nothing else is left.
";
    let wanted = wanted.replace(
        "FRONTEND               TYPE",
        "FRONTEND                TYPE",
    );
    let wanted = wanted.replace("-:80/TCP               C", "-:80/TCP                C");
    let wanted = wanted.replace("]:80/TCP C", "]:80/TCP  C");
    assert_eq!(list.text(false, Style::PLAIN), wanted);
}

#[test]
fn wide_shows_tier_share_and_the_kernel_s_count() {
    let text = list("none", vec![backend("east", "10.11.1.5")]).text(true, Style::PLAIN);
    let row = text
        .lines()
        .nth(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let wanted = "production/backend 10.96.71.4:8080/TCP ClusterIP none 10.11.1.5:8080 east east-1 - - 0 (ready) 50.0% 4012 3 - active";
    assert_eq!(row, Some(wanted.split(' ').collect()));
    assert_eq!(
        ServiceList::new(proto::ListServicesResponse::default()).text(false, Style::PLAIN),
        "No services.\n"
    );
}
