use isthmus_proto::node::v1 as proto;
use time::OffsetDateTime;

use super::*;

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

fn program(name: &str, hook: &str, id: u32) -> proto::Program {
    proto::Program {
        name: name.to_owned(),
        hook: hook.to_owned(),
        link_id: Some(id + 100),
        program_id: Some(id),
        position: Some(1),
        ..proto::Program::default()
    }
}

/// A node without a fault.
fn healthy() -> proto::GetStatusResponse {
    let source = proto::Source {
        name: "dir:/etc/isthmus/manifests".to_owned(),
        files: 3,
        services: 4,
        endpoints: 12,
        complete: true,
        last_change_seconds: Some(12.0),
        ..proto::Source::default()
    };
    let frontends = proto::MapUsage {
        name: "frontends4".to_owned(),
        map_id: Some(31),
        entries: Some(4),
        capacity: 65_536,
        memlock_bytes: Some(5 << 20),
        flag: "--lb-services-max".to_owned(),
    };
    proto::GetStatusResponse {
        node: Some(node()),
        sources: vec![source],
        programs: vec![
            program("connect4", "cgroup_inet4_connect", 40),
            program("connect6", "cgroup_inet6_connect", 41),
        ],
        maps: vec![frontends],
        reconcile: Some(proto::Reconcile {
            writes: 37,
            last_change_seconds: Some(12.0),
            last_latency_seconds: Some(0.0019),
            ..proto::Reconcile::default()
        }),
        kernel: Some(proto::Kernel {
            release: "6.18.0".to_owned(),
            cgroup: "/sys/fs/cgroup".to_owned(),
            cgroup_proved: Some(true),
            cgroup_proof: "a socket of a sibling cgroup met connect4".to_owned(),
            bpffs: "/sys/fs/bpf/isthmus/east-1".to_owned(),
        }),
        health: Some(proto::Health {
            passive: true,
            ..proto::Health::default()
        }),
        ..proto::GetStatusResponse::default()
    }
}

fn alone() -> ClusterMeshStatus {
    let answer = proto::GetClusterMeshResponse {
        node: Some(node()),
        ..proto::GetClusterMeshResponse::default()
    };
    ClusterMeshStatus::new(answer, OffsetDateTime::UNIX_EPOCH)
}

fn judged(change: impl FnOnce(&mut proto::GetStatusResponse)) -> NodeStatus {
    let mut answer = healthy();
    change(&mut answer);
    NodeStatus::new(answer, &alone())
}

#[test]
fn a_healthy_node_is_shown_whole_and_exits_0() {
    let status = judged(|_| {});
    let wanted = "\
Cluster east (id 1), node east-1, isthmus-agent 0.1.0, up 4m12s, ready
Kernel   6.18.0, cgroup /sys/fs/cgroup (sockets there meet our hooks), pins in /sys/fs/bpf/isthmus/east-1
Rows     the kernel holds all that it should; 37 writes, the last 12s ago, 1.9ms after its cause
Mesh     none: this cluster is alone (isthmus-agent --mesh joins it to others)
Health   passive health on; no backend ejected; 0 ejections so far, 0 connects refused

SOURCE                      STATE     FILES  SERVICES  ENDPOINTS  LAST CHANGE
dir:/etc/isthmus/manifests  complete  3      4         12         12s ago

PROGRAM   HOOK                  ORDER   PROGRAM ID  LINK ID  STATE
connect4  cgroup_inet4_connect  1 of 1  40          140      attached
connect6  cgroup_inet6_connect  1 of 1  41          141      attached

MAP         MAP ID  ENTRIES  CAPACITY  FILL  MEMORY
frontends4  31      4        65536     0%    5.0 MiB
";
    assert_eq!(status.text(false, Style::PLAIN), wanted);
    assert!(!status.is_bad());
}

type Change = fn(&mut proto::GetStatusResponse);

#[test]
fn every_fault_of_the_contract_exits_1_with_its_cause() {
    let cases: [(Change, &str); 8] = [
        (
            |s| s.not_ready_because = vec!["first list of dir:/m is not complete".to_owned()],
            "! not ready  first list of dir:/m is not complete\n",
        ),
        (
            |s| {
                let problem = proto::Problem {
                    kind: proto::ProblemKind::Broken.into(),
                    place: "backend.yaml:9".to_owned(),
                    object: "Service production/backend".to_owned(),
                    field: "spec.ports[0].port".to_owned(),
                    message: "80800 is not 1..65535; last good version (12s old) stays".to_owned(),
                    age_seconds: Some(7.0),
                };
                s.sources[0].problems = vec![problem];
            },
            "! broken  backend.yaml:9: Service production/backend: spec.ports[0].port: 80800 is not 1..65535; last good version (12s old) stays (for 7s)\n",
        ),
        (
            |s| {
                s.sources[0].unreadable_because =
                    "the directory is gone; its objects stay".to_owned();
                s.sources[0].unreadable_seconds = Some(5.0);
            },
            "! source  dir:/etc/isthmus/manifests cannot be read for 5s: the directory is gone; its objects stay\n",
        ),
        (
            |s| {
                s.programs[0] = proto::Program {
                    link_id: None,
                    position: None,
                    missing_because: "the kernel refused: EPERM; run as root".to_owned(),
                    ..s.programs[0].clone()
                };
            },
            "! connect4  not attached to cgroup_inet4_connect: the kernel refused: EPERM; run as root\n",
        ),
        (
            |s| {
                s.programs[0].position = Some(2);
                s.programs[0].foreign = vec![proto::ForeignProgram {
                    name: "cil_sock4_connect".to_owned(),
                    program_id: 7,
                    position: 1,
                    hides_services: true,
                }];
            },
            "! connect4  cil_sock4_connect (program id 7) runs before it on cgroup_inet4_connect: addresses it changes are no longer services to us\n            bpftool prog show id 7 says whose it is; turn that load balancer off, or attach it after ours.\n",
        ),
        (
            |s| {
                s.reconcile = Some(proto::Reconcile {
                    pending: 2,
                    failing: vec![proto::FailingRow {
                        table: "frontends4".to_owned(),
                        row: "10.96.71.4:8080/TCP".to_owned(),
                        service: "production/backend".to_owned(),
                        error: "service map full: 65536 of 65536 entries; raise --lb-services-max"
                            .to_owned(),
                        age_seconds: 4.0,
                        tries: 3,
                        next_try_seconds: Some(2.5),
                    }],
                    failed_writes: 3,
                    ..proto::Reconcile::default()
                });
            },
            "! frontends4  production/backend, 10.96.71.4:8080/TCP: service map full: 65536 of 65536 entries; raise --lb-services-max (tried 3 times for 4s, again in 2.5s)\n",
        ),
        (
            |s| {
                if let Some(kernel) = &mut s.kernel {
                    kernel.cgroup_proved = Some(false);
                    kernel.cgroup_proof = "no connect was counted".to_owned();
                }
            },
            "! cgroup  no hook sees sockets of /sys/fs/cgroup: no connect was counted\n          Give the cgroup2 root of the host in isthmus-agent --cgroup.\n",
        ),
        (
            |s| {
                let problem = proto::Problem {
                    kind: proto::ProblemKind::Conflict.into(),
                    message: "a.yaml and b.yaml both define it; a.yaml holds".to_owned(),
                    ..proto::Problem::default()
                };
                s.sources[0].problems = vec![problem];
            },
            "! conflict  a.yaml and b.yaml both define it; a.yaml holds\n",
        ),
    ];
    for (change, wanted) in cases {
        let status = judged(change);
        let text = status.text(false, Style::PLAIN);
        assert!(status.is_bad(), "{text}");
        assert!(
            text.ends_with(&format!("{wanted}1 thing needs attention\n")),
            "{text}"
        );
    }
}

#[test]
fn what_is_not_handled_unknown_or_nearly_full_is_a_note() {
    let status = judged(|s| {
        s.sources[0].problems = vec![proto::Problem {
            kind: proto::ProblemKind::NotHandled.into(),
            object: "Service a/b".to_owned(),
            field: "spec.sessionAffinity".to_owned(),
            message: "not done by this version".to_owned(),
            age_seconds: Some(7.0),
            ..proto::Problem::default()
        }];
        s.sources[0].unknown_kinds = vec![proto::UnknownKind {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            objects: 2,
        }];
        s.maps[0].entries = Some(60_000);
    });
    let text = status.text(false, Style::PLAIN);
    let wanted = "
- not handled  Service a/b: spec.sessionAffinity: not done by this version
- unknown      apps/v1 Deployment: 2 read and not used, this version knows no such kind
- frontends4   60000 of 65536 entries used
               Raise --lb-services-max and restart isthmus-agent.
";
    assert!(text.ends_with(wanted), "{text}");
    assert!(!status.is_bad());
}

#[test]
fn ejected_backends_are_lines_and_no_fault() {
    let status = judged(|s| {
        let backend = proto::EjectedBackend {
            service: "production/backend".to_owned(),
            address: "10.11.1.5".to_owned(),
            port: 8080,
            cluster: "east".to_owned(),
            health: Some(proto::BackendHealth {
                kind: proto::HealthKind::Ejected.into(),
                since_seconds: Some(1.9),
                until_seconds: Some(3.1),
                doublings: 0,
                failures: Some(proto::FailureCounts {
                    refused: 3,
                    ..proto::FailureCounts::default()
                }),
                closed_clients: 0,
            }),
        };
        s.health = Some(proto::Health {
            passive: true,
            ejected: 3,
            suspect: 1,
            ejections: 4,
            refused: 6,
            all_ejected: 2,
            backends: vec![backend],
            not_listed: 2,
            ..proto::Health::default()
        });
    });
    let text = status.text(false, Style::PLAIN);
    let line = "Health   passive health on; 3 ejected and 1 suspect; 4 ejections so far, 6 connects refused, 2 drawn with all ejected\n";
    assert!(text.contains(line), "{text}");
    let wanted = "
- ejected  production/backend 10.11.1.5:8080 (east): ejected 1.9s: refused x3, trial in 3.1s
- ejected  2 more backends ejected
";
    assert!(text.ends_with(wanted), "{text}");
    assert!(!status.is_bad());
}

#[test]
fn programs_stand_in_the_kernel_s_order_others_included() {
    let status = judged(|s| {
        s.programs.truncate(1);
        s.programs[0].foreign = vec![proto::ForeignProgram {
            name: "other".to_owned(),
            program_id: 9,
            position: 2,
            hides_services: false,
        }];
    });
    let text = status.text(false, Style::PLAIN);
    let wanted = "\
connect4  cgroup_inet4_connect  1 of 2  40          140      attached
other     cgroup_inet4_connect  2 of 2  9           -        foreign
";
    assert!(text.contains(wanted), "{text}");
    assert!(!status.is_bad(), "after ours it harms nobody");
}

#[test]
fn a_bad_mesh_is_one_line_here() {
    let mut feed = proto::Feed {
        server: "10.1.0.2:4260".to_owned(),
        state_seconds: 12.0,
        ..proto::Feed::default()
    };
    feed.set_state(proto::FeedState::Lost);
    let answer = proto::GetClusterMeshResponse {
        node: Some(node()),
        feed: Some(feed),
        ..proto::GetClusterMeshResponse::default()
    };
    let mesh = ClusterMeshStatus::new(answer, OffsetDateTime::UNIX_EPOCH);
    let status = NodeStatus::new(healthy(), &mesh);
    let text = status.text(false, Style::PLAIN);
    assert!(
        text.contains("Mesh     feed lost 12s, no peer linked\n"),
        "{text}"
    );
    assert!(
        text.contains(
            "! mesh  feed lost 12s, no peer linked\n        agentctl clustermesh status says more\n"
        ),
        "{text}"
    );
    assert!(status.is_bad());
}
