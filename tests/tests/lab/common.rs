//! Lab files and small steps that several scenarios share.

use isthmus_tests::{Lab, LabSpec, Programs};

/// Two linked clusters of two nodes; `production/backend` is served in both, and east has a client.
pub(crate) const TWO_CLUSTERS: &str = r"
clusters:
  - name: east
    id: 1
    nodes: 2
    pods:
      - {name: backend, count: 2, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
      - {name: client}
  - name: west
    id: 2
    nodes: 2
    pods:
      - {name: backend, count: 2, namespace: production, labels: {app: backend}, serves: {8080: production/backend}}
links: [{between: [east, west]}]
";

/// The world of a lab file, without agents.
pub(crate) fn world(name: &str, file: &str) -> Lab {
    let spec = LabSpec::parse(file).expect("a lab file");
    let programs = Programs::beside_this_one().expect("the binaries' directory");
    Lab::build(name, &spec, programs).expect("a lab")
}
