//! `clustermesh status` tells the truth: through a cut, restarts, one-way links, a taken id, and certificates that are
//! too old, of another authority, or of another cluster.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use isthmus_tests::{Cluster, Lab, Node, wait_for};

use super::books::Ledger;
use super::common::{
    PORT, SERVICE, SOON, TWO_SMALL, client, expect_answers, running, service, world,
};

/// Waits until `clustermesh status` exits with `exit` and says all of `words`.
fn wait_status(node: Node<'_>, exit: i32, words: &[&str]) -> String {
    let what = format!(
        "{}: `clustermesh status` exits {exit} and says {words:?}",
        node.name()
    );
    let (_, text) = wait_for(&what, SOON, || {
        let output = node.agentctl(&["clustermesh", "status"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let fits = output.status.code() == Some(exit) && words.iter().all(|w| text.contains(w));
        anyhow::ensure!(fits, "exit {:?}\n{text}", output.status.code());
        Ok(Some(text))
    })
    .unwrap();
    text
}

/// Starts everything in two clusters, whatever the links come to.
fn start_apart(lab: &Lab) {
    for cluster in lab.clusters() {
        cluster
            .manifests()
            .write_objects(
                "backend.yaml",
                &[service(&[("service.cilium.io/global", "true")])],
            )
            .unwrap();
        cluster.make_certificates().unwrap();
    }
}

fn start_linked(lab: &Lab) {
    for cluster in lab.clusters() {
        cluster.start_mesh(&[]).unwrap();
        cluster.first_node().start_agent(&[]).unwrap();
    }
    let (east, west) = (lab.cluster("east").unwrap(), lab.cluster("west").unwrap());
    east.connect(&west).unwrap();
    west.connect(&east).unwrap();
}

#[test]
fn a_cut_and_a_restart_are_told_and_resumed() {
    let lab = running("cut", TWO_SMALL);
    let east = lab.node("east-1").unwrap();
    let waited = east
        .agentctl(&["clustermesh", "status", "--wait=15s"])
        .unwrap();
    assert!(
        waited.status.success(),
        "{}",
        String::from_utf8_lossy(&waited.stdout)
    );
    let before = east.peer("west").unwrap();
    assert_eq!(before.hears_us, Some(true));

    let wire = lab.wire("east", "west").unwrap();
    wire.cut().unwrap();
    let (took, stale) = east.wait_peer("west", "stale").unwrap();
    assert!(
        took >= Duration::from_secs(2),
        "stale after {took:?}, and not after 3 s of silence"
    );
    assert_eq!(
        stale.endpoints, before.endpoints,
        "a stale peer's backends stay"
    );
    // At first a silent stream, then a server that does not answer: each with the way out.
    let way_out = "firewall, route, or mesh server down?";
    wait_status(east, 1, &["west", "stale", way_out]);
    let unanswered = format!("does not answer TCP: {way_out}");
    wait_status(east, 1, &["west", "stale", &unanswered]);
    let timed_out = east
        .agentctl(&["clustermesh", "status", "--wait=300ms"])
        .unwrap();
    assert_eq!(
        timed_out.status.code(),
        Some(1),
        "the time of --wait is over"
    );
    wire.mend().unwrap();
    let (_, after) = east.wait_peer("west", "connected").unwrap();
    assert_eq!(
        (after.epoch, after.revision),
        (before.epoch.clone(), before.revision),
        "nothing had changed"
    );
    wait_status(east, 0, &["connected"]);

    // A mesh server that is killed keeps its epoch.
    let west = lab.cluster("west").unwrap();
    west.kill_mesh().unwrap();
    east.wait_peer("west", "stale").unwrap();
    west.start_mesh(&[]).unwrap();
    let (_, again) = east.wait_peer("west", "connected").unwrap();
    assert_eq!(
        again.epoch, before.epoch,
        "its state directory is its epoch's life"
    );
    assert!(again.revision >= before.revision);
    wait_status(east, 0, &["connected"]);

    // Our own feed is lost: nothing about peers is claimed, and no backend sinks.
    let ledger = Ledger::open(east, SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(2000.0).unwrap();
    lab.cluster("east").unwrap().kill_mesh().unwrap();
    let text = wait_status(east, 1, &["lost"]);
    assert!(
        !text.contains("stale"),
        "only a living mesh server witnesses silence:\n{text}"
    );
    expect_answers(&mut traffic, &["east", "west"], "without a feed");
    lab.cluster("east").unwrap().start_mesh(&[]).unwrap();
    wait_status(east, 0, &["connected"]);
    ledger.balance_with(&mut traffic);
}

#[test]
fn troubles_of_files_are_told_on_every_node() {
    let lab = running("troubles", TWO_SMALL);
    let (cluster, node) = (lab.cluster("east").unwrap(), lab.node("east-1").unwrap());
    wait_status(node, 0, &["connected"]);
    let broken = cluster.links_dir().join("north.yaml");
    fs::write(
        &broken,
        "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: Link\n",
    )
    .unwrap();
    let directory = cluster.links_dir().display().to_string();
    let text = wait_status(node, 1, &["! link north.yaml:", &directory]);
    assert!(text.contains("connected"), "west is not to blame:\n{text}");
    fs::remove_file(&broken).unwrap();
    wait_status(node, 0, &["connected"]);
}

#[test]
fn a_link_is_one_direction() {
    let lab = running("oneway", TWO_SMALL);
    let (east, west) = (lab.node("east-1").unwrap(), lab.node("west-1").unwrap());
    wait_status(east, 0, &["connected"]);
    lab.cluster("west").unwrap().disconnect("east").unwrap();
    let text = wait_status(east, 1, &["agentctl clustermesh connect east"]);
    assert!(text.contains("connected"), "east still hears west:\n{text}");
    west.wait_frontend(SERVICE, PORT, "has its own backend only", |f| {
        f.backends.len() == 1
    })
    .unwrap();
    let (a, b) = (lab.cluster("west").unwrap(), lab.cluster("east").unwrap());
    a.connect(&b).unwrap();
    wait_status(east, 0, &["connected"]);
    west.wait_frontend(SERVICE, PORT, "has both backends", |f| f.serving() == 2)
        .unwrap();
}

/// What a peer may not be is refused by name, and costs nothing of our own.
fn expect_refused(lab: &Lab, words: &[&str]) {
    let east = lab.node("east-1").unwrap();
    let text = wait_status(east, 1, words);
    assert!(!text.contains("  connected "), "{text}");
    let frontend = east.frontend(SERVICE, PORT, false).unwrap();
    assert!(
        frontend.backends.iter().all(|b| b.cluster == "east"),
        "{frontend:?}"
    );
    let ledger = Ledger::open(east, SERVICE);
    let mut traffic = client(lab, "east/client", "east-1");
    traffic.rate(2000.0).unwrap();
    expect_answers(&mut traffic, &["east"], "the peer is refused");
    ledger.balance_with(&mut traffic);
}

#[test]
fn a_taken_id_is_refused_with_both_names() {
    let lab = world("sameid", &TWO_SMALL.replace("id: 2", "id: 1"));
    start_apart(&lab);
    start_linked(&lab);
    expect_refused(&lab, &["cluster id 1", "east", "west"]);
}

#[test]
fn a_pinned_id_must_be_the_peers() {
    let lab = world("pinned", TWO_SMALL);
    start_apart(&lab);
    for cluster in lab.clusters() {
        cluster.start_mesh(&[]).unwrap();
        cluster.first_node().start_agent(&[]).unwrap();
    }
    let (east, west) = (lab.cluster("east").unwrap(), lab.cluster("west").unwrap());
    west.connect(&east).unwrap();
    let linked = east
        .connect_command(&west)
        .unwrap()
        .args(["--id", "7"])
        .output()
        .unwrap();
    assert!(
        linked.status.success(),
        "{}",
        String::from_utf8_lossy(&linked.stderr)
    );
    expect_refused(&lab, &["west", "7"]);
}

/// Signs a mesh server's certificate with a cluster's authority, for `name`, until `year`.
fn sign(lab: &Lab, of: &Cluster<'_>, name: &str, year: i32) {
    use rcgen::{CertificateParams, Issuer, KeyPair, date_time_ymd};
    let authority = lab.authority();
    let read = |file: &str| fs::read_to_string(authority.join(file)).unwrap();
    let issuer =
        Issuer::from_ca_cert_pem(&read("ca.crt"), KeyPair::from_pem(&read("ca.key")).unwrap())
            .unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(year, 1, 1);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    put(&of.certificates(), "mesh.crt", &certificate.pem());
    put(&of.certificates(), "mesh.key", &key.serialize_pem());
}

fn put(dir: &Path, file: &str, text: &str) {
    let half = dir.join(format!(".{file}.new"));
    fs::write(&half, text).unwrap();
    fs::rename(half, dir.join(file)).unwrap();
}

#[test]
fn an_expired_certificate_is_told_and_a_new_one_is_taken_up() {
    let lab = world("expired", TWO_SMALL);
    start_apart(&lab);
    let west = lab.cluster("west").unwrap();
    sign(&lab, &west, "mesh.west.mesh.isthmus.dev", 2021);
    let east = lab.cluster("east").unwrap();
    east.start_mesh(&[]).unwrap();
    east.first_node().start_agent(&[]).unwrap();
    west.spawn_mesh(&[]).unwrap();
    east.connect(&west).unwrap();
    west.connect(&east).unwrap();
    expect_refused(&lab, &["west", "expired"]);
    // Files are read again when they change: nobody is restarted.
    sign(&lab, &west, "mesh.west.mesh.isthmus.dev", 2090);
    east.first_node().wait_peer("west", "connected").unwrap();
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let lab = world("stranger", TWO_SMALL);
    start_apart(&lab);
    let west = lab.cluster("west").unwrap();
    // West's people made their own authority, and told nobody.
    fs::remove_dir_all(west.certificates()).unwrap();
    west.make_certificates_of(&west.certificates().join("authority"))
        .unwrap();
    start_linked(&lab);
    expect_refused(&lab, &["west", "certificate"]);
}

#[test]
fn a_certificate_of_another_cluster_is_refused() {
    let lab = world("impostor", TWO_SMALL);
    start_apart(&lab);
    let (east, west) = (lab.cluster("east").unwrap(), lab.cluster("west").unwrap());
    for cluster in [&east, &west] {
        cluster.start_mesh(&[]).unwrap();
    }
    east.first_node().start_agent(&[]).unwrap();
    // A mesh server does not start with such a certificate; it can be given one while it runs.
    sign(&lab, &west, "mesh.north.mesh.isthmus.dev", 2090);
    east.connect(&west).unwrap();
    west.connect(&east).unwrap();
    expect_refused(&lab, &["west", "certificate"]);
}

/// Nothing waits for a dead peer: not the start, not readiness, not the end.
#[test]
fn dead_peers_hold_nothing_up() {
    let lab = world("dead", TWO_SMALL);
    start_apart(&lab);
    lab.wire("east", "west").unwrap().cut().unwrap();
    let (east, west) = (lab.cluster("east").unwrap(), lab.cluster("west").unwrap());
    east.connect(&west).unwrap();
    let mesh = east.start_mesh(&[]).unwrap();
    let agent = east.first_node().start_agent(&[]).unwrap();
    assert!(
        mesh + agent < Duration::from_secs(15),
        "ready after {mesh:?} and {agent:?}"
    );
    wait_status(east.first_node(), 1, &["west"]);
    let ledger = Ledger::open(east.first_node(), SERVICE);
    let mut traffic = client(&lab, "east/client", "east-1");
    traffic.rate(2000.0).unwrap();
    expect_answers(&mut traffic, &["east"], "alone");
    ledger.balance_with(&mut traffic);
    east.disconnect("west").unwrap();
    wait_status(east.first_node(), 0, &[]);
    east.first_node().stop_agent().unwrap();
}
