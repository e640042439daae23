//! Manifests as people and programs really leave them, under a running agent.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::fs;

use isthmus_tests::{Lab, Node, wait_for};

use super::books::Ledger;
use super::common::{
    ALONE, PORT, SERVICE, SOON, at_least, client, named_service, running, service, wait_status,
};

/// A fault that `status` names and exits 1 for.
fn wait_problem(node: Node<'_>, what: &str) -> String {
    wait_status(node, 1, what)
}

fn wait_well(node: Node<'_>) {
    wait_status(node, 0, "");
}

fn expect_served(lab: &Lab) {
    let ledger = Ledger::open(lab.node("east-1").unwrap(), SERVICE);
    let mut traffic = client(lab, "client", "east-1");
    traffic.rate(2000.0).unwrap();
    let report = at_least(&mut traffic, 200);
    assert_eq!(report.failed(), 0, "{:?}", report.told);
    assert_eq!(report.answers.len(), 2, "{:?}", report.answers);
    ledger.balance_with(&mut traffic);
}

#[test]
fn bad_files_change_nothing_and_are_named() {
    let lab = running("traps", ALONE);
    let node = lab.node("east-1").unwrap();
    let manifests = lab.cluster("east").unwrap().manifests();
    let good = manifests.read("backend.yaml").unwrap();
    wait_well(node);

    // Half written, in place: the last good version stays.
    fs::write(manifests.path("backend.yaml"), &good[..good.len() / 2]).unwrap();
    wait_problem(node, "backend.yaml");
    expect_served(&lab);
    manifests.write("backend.yaml", &good).unwrap();
    wait_well(node);

    // A value out of its range is named with its field.
    manifests
        .write("backend.yaml", &good.replace("8080", "80800"))
        .unwrap();
    let said = wait_problem(node, "80800");
    assert!(said.contains("spec.ports[0].port"), "{said}");
    expect_served(&lab);
    manifests.write("backend.yaml", &good).unwrap();
    wait_well(node);

    // Bytes that are no text at all.
    fs::write(manifests.path("noise.yaml"), [0xff, 0x00, 0xfe, b'{', 0x80]).unwrap();
    wait_problem(node, "noise.yaml");
    expect_served(&lab);
    manifests.remove("noise.yaml").unwrap();
    wait_well(node);

    // The same object twice: the first path holds, both are named.
    let mut other = service(&[]);
    other["spec"]["selector"]["app"] = "nobody".into();
    manifests.write_objects("zzz.yaml", &[other]).unwrap();
    let said = wait_problem(node, "zzz.yaml");
    assert!(said.contains("backend.yaml"), "{said}");
    expect_served(&lab);
    manifests.remove("zzz.yaml").unwrap();
    wait_well(node);

    // Editors' leavings mean nothing.
    fs::write(manifests.path(".backend.yaml.swp"), "{{{").unwrap();
    fs::write(manifests.path("backend.yaml~"), "{{{").unwrap();
    wait_well(node);
    expect_served(&lab);
}

#[test]
fn a_directory_that_vanishes_removes_nothing() {
    let lab = running("vanish", ALONE);
    let node = lab.node("east-1").unwrap();
    let manifests = lab.cluster("east").unwrap().manifests();
    let aside = manifests.dir().with_file_name("aside");
    fs::rename(manifests.dir(), &aside).unwrap();
    wait_problem(node, "manifests");
    expect_served(&lab);
    fs::rename(&aside, manifests.dir()).unwrap();
    wait_well(node);
    // It is watched again.
    manifests
        .write_objects("late.yaml", &[named_service("late", 81, PORT, &[])])
        .unwrap();
    node.wait_frontend("production/late", 81, "came with a file", |f| {
        f.serving() == 2
    })
    .unwrap();
    manifests.remove("late.yaml").unwrap();
    wait_for("the service went with its file", SOON, || {
        Ok(node
            .frontends()?
            .iter()
            .all(|f| f.service != "production/late")
            .then_some(()))
    })
    .unwrap();
}

/// As Kubernetes mounts a ConfigMap: files are links through `..data`, which is swapped by rename.
#[test]
fn a_swapped_symlink_is_a_change() {
    let lab = running("symlinks", ALONE);
    let node = lab.node("east-1").unwrap();
    let manifests = lab.cluster("east").unwrap().manifests();
    let dir = manifests.dir();
    let version = |number: u16, port: u16| {
        let data = dir.join(format!("..2026_{number}"));
        fs::create_dir(&data).unwrap();
        let text = serde_json::to_string(&named_service("mounted", port, PORT, &[])).unwrap();
        fs::write(data.join("mounted.yaml"), text).unwrap();
        std::os::unix::fs::symlink(format!("..2026_{number}"), dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    version(1, 91);
    std::os::unix::fs::symlink("..data/mounted.yaml", dir.join("mounted.yaml")).unwrap();
    node.wait_frontend("production/mounted", 91, "is there", |f| f.serving() == 2)
        .unwrap();
    version(2, 92);
    node.wait_frontend("production/mounted", 92, "followed the swap", |f| {
        f.serving() == 2
    })
    .unwrap();
    assert!(node.frontend(SERVICE, PORT, false).unwrap().serving() == 2);
}

#[test]
fn a_colliding_address_leaves_the_smaller_name_with_it() {
    let lab = running("collide", ALONE);
    let node = lab.node("east-1").unwrap();
    let manifests = lab.cluster("east").unwrap().manifests();
    let taken = node
        .frontend(SERVICE, PORT, false)
        .unwrap()
        .target()
        .unwrap()
        .ip()
        .to_string();
    let mut rival = named_service("rival", 80, PORT, &[]);
    rival["spec"]["clusterIP"] = taken.as_str().into();
    rival["spec"]["ipFamilyPolicy"] = "SingleStack".into();
    manifests.write_objects("rival.yaml", &[rival]).unwrap();
    let said = wait_problem(node, "production/rival");
    assert!(said.contains(SERVICE), "both are named: {said}");
    manifests.remove("rival.yaml").unwrap();
    wait_well(node);
    expect_served(&lab);
}
