#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use clap::Parser;
use isthmus_proto::node::v1 as proto;
use time::OffsetDateTime;

use super::*;
use crate::cli::{Cli, Clustermesh, Command};

fn parse(directory: &Path, more: &[&str]) -> Connect {
    let directory = directory.to_str().unwrap();
    let args = [
        "agentctl",
        "clustermesh",
        "connect",
        "west",
        "--links",
        directory,
    ];
    let args = args
        .iter()
        .chain(&["--endpoint", "10.2.0.2:4260"])
        .chain(more);
    match Cli::try_parse_from(args).unwrap().command {
        Command::Clustermesh(Clustermesh::Connect(connect)) => connect,
        other => panic!("{other:?}"),
    }
}

/// The text of the link's file.
fn text_of(connect: &Connect, standing: Standing) -> Result<String> {
    link_text(&connect.name, &spec(connect, &standing.spec)?)
}

fn east(server: &str) -> ClusterMeshStatus {
    let answer = proto::GetClusterMeshResponse {
        node: Some(proto::NodeInfo {
            cluster: "east".to_owned(),
            cluster_id: 1,
            ..proto::NodeInfo::default()
        }),
        feed: Some(proto::Feed {
            server: server.to_owned(),
            ..proto::Feed::default()
        }),
        ..proto::GetClusterMeshResponse::default()
    };
    ClusterMeshStatus::new(answer, OffsetDateTime::UNIX_EPOCH)
}

#[test]
fn the_file_has_the_shape_of_the_custom_resource() {
    let directory = tempfile::tempdir().unwrap();
    let connect = parse(directory.path(), &["--id", "2"]);
    let text = text_of(&connect, Standing::default()).unwrap();
    let value: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(
        value,
        serde_json::json!({
            "apiVersion": "mesh.isthmus.dev/v1alpha1",
            "kind": "ClusterLink",
            "metadata": {"name": "west"},
            "spec": {
                "id": 2,
                "endpoints": ["10.2.0.2:4260"],
            },
        })
    );
    let ranges = ["--cidr", "10.12.0.0/16", "--cidr", "fd00:12::/48"];
    let ranged = text_of(&parse(directory.path(), &ranges), Standing::default()).unwrap();
    let value: Value = serde_saphyr::from_str(&ranged).unwrap();
    let wanted = serde_json::json!(["10.12.0.0/16", "fd00:12::/48"]);
    assert_eq!(value["spec"]["cidrs"], wanted);
    let unpinned = text_of(&parse(directory.path(), &[]), Standing::default()).unwrap();
    assert!(!unpinned.contains("id:"), "{unpinned}");
}

#[test]
fn what_the_command_does_not_name_stays_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = link_path(directory.path(), &"west".parse().unwrap());
    let old = "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: ClusterLink\nmetadata: {name: west}\nspec:\n  id: 2\n  \
               endpoints: [\"old:1\"]\n  cidrs: [10.12.0.0/16]\n  limits: {rows: 500, bytes: 70000}\n  \
               tls: {ca: a.crt, cert: b.crt, key: c.key}\n";
    fs::write(&file, old).unwrap();
    let rewrite = |more: &[&str]| -> Value {
        let text = text_of(&parse(directory.path(), more), standing(&file).unwrap()).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    };
    assert_eq!(
        rewrite(&[])["spec"],
        serde_json::json!({
            "id": 2,
            "endpoints": ["10.2.0.2:4260"],
            "cidrs": ["10.12.0.0/16"],
            "limits": {"rows": 500, "bytes": 70000},
            "tls": {"ca": "a.crt", "cert": "b.crt", "key": "c.key"},
        })
    );
    let renamed = rewrite(&["--id", "3", "--cidr", "10.13.0.0/16"]);
    assert_eq!(renamed["spec"]["id"], 3);
    assert_eq!(
        renamed["spec"]["cidrs"],
        serde_json::json!(["10.13.0.0/16"])
    );
    assert_eq!(renamed["spec"]["limits"]["rows"], 500);
    // Nowhere is not anywhere.
    fs::write(&file, old.replace("[10.12.0.0/16]", "[]")).unwrap();
    assert_eq!(rewrite(&[])["spec"]["cidrs"], serde_json::json!([]));
    fs::write(&file, "spec: [").unwrap();
    let error = standing(&file).unwrap_err().to_string();
    assert!(
        error.contains("west.yaml is there and cannot be read")
            && error.ends_with("correct or remove it first"),
        "{error}"
    );
}

#[test]
fn a_file_is_written_whole_and_nothing_is_left_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = link_path(&directory.path().join("links"), &"west".parse().unwrap());
    assert_eq!(write(&file, "a: 1\n").unwrap(), Done::Written);
    assert_eq!(write(&file, "a: 1\n").unwrap(), Done::Unchanged);
    assert_eq!(write(&file, "a: 2\n").unwrap(), Done::Written);
    assert_eq!(fs::read_to_string(&file).unwrap(), "a: 2\n");
    let there: Vec<_> = fs::read_dir(file.parent().unwrap()).unwrap().collect();
    assert_eq!(there.len(), 1);
    let mode = fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
}

#[test]
fn the_other_side_gets_what_is_known_and_capitals_for_the_rest() {
    let side = |own: Option<&ClusterMeshStatus>| {
        let mut report = report(
            &"west".parse().unwrap(),
            Path::new("west.yaml"),
            Done::Written,
        );
        report.describe_other_side(own, other_side);
        (report.other_side, report.other_side_is_incomplete)
    };
    let command = "agentctl clustermesh connect east --id 1 --endpoint 10.1.0.2:4260";
    assert_eq!(
        side(Some(&east("10.1.0.2:4260"))),
        (command.to_owned(), false)
    );
    let command = "agentctl clustermesh connect east --id 1 --endpoint HOST:4260";
    assert_eq!(
        side(Some(&east("unix:/run/isthmus/mesh.sock"))),
        (command.to_owned(), true)
    );
    let command = "agentctl clustermesh connect CLUSTER --endpoint HOST:4260";
    assert_eq!(side(None), (command.to_owned(), true));
}

#[test]
fn a_link_to_oneself_or_to_a_taken_id_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut connect = parse(directory.path(), &["--id", "1"]);
    let error = not_ourselves(&connect, &east("x:1"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(r#"cluster id 1 is taken: "east" and "west" both use it"#),
        "{error}"
    );
    connect.name = "east".parse().unwrap();
    connect.id = None;
    let error = not_ourselves(&connect, &east("x:1"))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "east is this cluster itself; name the other one");
}

#[test]
fn certificates_are_named_all_or_none_and_must_be_there() {
    let directory = tempfile::tempdir().unwrap();
    let at = |file: &str| directory.path().join(file).to_str().unwrap().to_owned();
    let (ca, cert, key) = (at("ca.crt"), at("mesh.crt"), at("mesh.key"));
    let flags = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let connect = parse(directory.path(), &flags);
    let error = format!("{:#}", text_of(&connect, Standing::default()).unwrap_err());
    assert!(
        error.contains("ca.crt cannot be used") && error.contains("clustermesh certs"),
        "{error}"
    );
    for file in [&ca, &cert, &key] {
        fs::write(file, "x").unwrap();
    }
    let value: Value =
        serde_saphyr::from_str(&text_of(&connect, Standing::default()).unwrap()).unwrap();
    assert_eq!(
        value["spec"]["tls"],
        serde_json::json!({"ca": ca, "cert": cert, "key": key})
    );
    let args = [
        "agentctl",
        "clustermesh",
        "connect",
        "west",
        "--endpoint",
        "a:1",
    ];
    assert!(Cli::try_parse_from(args.iter().chain(&flags[..4])).is_err());
}

/// West, connected for so long.
fn west(endpoint: &str, id: u32, state_seconds: f64, cidrs: &[&str]) -> ClusterMeshStatus {
    let west = proto::Peer {
        name: "west".to_owned(),
        id: Some(id),
        state: proto::PeerState::Connected.into(),
        state_seconds: Some(state_seconds),
        complete: true,
        endpoint: endpoint.to_owned(),
        allowed_cidrs: cidrs.iter().map(ToString::to_string).collect(),
        cidrs_from: if cidrs.is_empty() { "" } else { "link" }.to_owned(),
        ..proto::Peer::default()
    };
    let answer = proto::GetClusterMeshResponse {
        feed: Some(proto::Feed {
            state: proto::FeedState::Connected.into(),
            ..proto::Feed::default()
        }),
        peers: vec![west],
        ..proto::GetClusterMeshResponse::default()
    };
    ClusterMeshStatus::new(answer, OffsetDateTime::UNIX_EPOCH)
}

/// Is that what `--wait` waits for, a second after the link that said `before` was written?
fn is_there(connect: &Connect, before: &str, status: &ClusterMeshStatus) -> bool {
    let before: StandingSpec = serde_saphyr::from_str(before).unwrap();
    let spec = spec(connect, &before).unwrap();
    let awaited = Awaited {
        name: "west",
        anew: spec.leads_elsewhere(&before, &connect.links.links),
        spec: &spec,
    };
    let there = awaited.is_there(status, Duration::from_secs(1));
    if !there {
        let why = awaited.why_not(status);
        assert!(
            why.starts_with("it is still connected as its link said before"),
            "{why}"
        );
    }
    there
}

#[test]
fn what_was_connected_before_is_not_what_was_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let status = |endpoint, id, seconds| west(endpoint, id, seconds, &["10.12.0.0/16"]);
    let same = "{id: 2, endpoints: ['10.2.0.2:4260'], cidrs: [10.12.0.0/16]}";
    let (before, new) = ("10.2.0.1:4260", "10.2.0.2:4260");
    let rows = [
        ("{}", status(new, 2, 60.0), true),
        ("{}", status(before, 2, 0.1), false),
        ("{}", status(new, 3, 0.1), false),
        // Its stream goes on.
        (same, status(new, 2, 60.0), true),
        // What it leads to is tried, and the old stream was not yet seen to end.
        (
            "{endpoints: ['10.2.0.1:4260']}",
            status(new, 2, 60.0),
            false,
        ),
        ("{endpoints: ['10.2.0.1:4260']}", status(new, 2, 0.9), true),
        (
            "{id: 7, endpoints: ['10.2.0.2:4260']}",
            status(new, 2, 60.0),
            false,
        ),
        (
            "{id: 2, endpoints: ['10.2.0.2:4260'], tls: {ca: a, cert: b, key: c}}",
            status(new, 2, 60.0),
            true,
        ),
    ];
    let connect = parse(directory.path(), &["--id", "2"]);
    for (before, status, wanted) in rows {
        assert_eq!(
            is_there(&connect, before, &status),
            wanted,
            "{before} {status:?}"
        );
    }
}

#[test]
fn certificates_and_ranges_are_waited_for_as_written() {
    let directory = tempfile::tempdir().unwrap();
    let at = |file: &str| directory.path().join(file).to_str().unwrap().to_owned();
    let (ca, cert, key) = (at("ca.crt"), at("mesh.crt"), at("mesh.key"));
    for file in [&ca, &cert, &key] {
        fs::write(file, "x").unwrap();
    }
    let flags = ["--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let connect = parse(directory.path(), &flags);
    let endpoint = "10.2.0.2:4260";
    let link = |tls: &str| format!("{{endpoints: ['{endpoint}']{tls}}}");
    let other = link(", tls: {ca: a.crt, cert: mesh.crt, key: mesh.key}");
    for before in [link(""), other] {
        for (seconds, wanted) in [(60.0, false), (0.9, true)] {
            let status = west(endpoint, 2, seconds, &[]);
            assert_eq!(is_there(&connect, &before, &status), wanted, "{before}");
        }
    }
    // The same files by another path lead nowhere else.
    let same = link(", tls: {ca: ca.crt, cert: mesh.crt, key: mesh.key}");
    assert!(is_there(&connect, &same, &west(endpoint, 2, 60.0, &[])));

    let connect = parse(
        directory.path(),
        &["--cidr", "10.12.0.0/16", "--cidr", "FD00:12::/48"],
    );
    for (cidrs, wanted) in [
        (&[][..], false),
        (&["10.13.0.0/16"], false),
        (&["10.12.0.0/16", "fd00:12::/48"], true),
    ] {
        let status = west(endpoint, 2, 60.0, cidrs);
        assert_eq!(is_there(&connect, &link(""), &status), wanted, "{cidrs:?}");
    }
}
