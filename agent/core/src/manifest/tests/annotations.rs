//! What Services and Namespaces say of other clusters.

use super::*;
use crate::model::Affinity;

#[test]
fn annotations_mean_what_they_mean_to_cilium() {
    use Affinity::{Local, None, Remote};
    let (global, old_global) = ("service.cilium.io/global", "io.cilium/global-service");
    let (shared, old_shared) = ("service.cilium.io/shared", "io.cilium/shared-service");
    let (affinity, old_affinity) = ("service.cilium.io/affinity", "io.cilium/service-affinity");
    /// Annotations; global, shared and affinity; how many problems.
    type Row<'a> = (&'a [(&'a str, &'a str)], (bool, bool, Affinity), usize);
    let rows: &[Row<'_>] = &[
        (&[], (false, false, None), 0),
        (&[(global, "true")], (true, true, None), 0),
        (&[(global, "TRUE")], (true, true, None), 0),
        (&[(old_global, "true")], (true, true, None), 0),
        (&[(global, "false")], (false, false, None), 0),
        (&[(global, "yes")], (false, false, None), 1),
        (
            &[(global, "true"), (shared, "false")],
            (true, false, None),
            0,
        ),
        (
            &[(global, "true"), (old_shared, "False")],
            (true, false, None),
            0,
        ),
        (
            &[(global, "true"), (shared, "maybe")],
            (true, false, None),
            1,
        ),
        (&[(shared, "true")], (false, false, None), 1),
        (&[(shared, "false")], (false, false, None), 0),
        (
            &[(global, "true"), (affinity, "local")],
            (true, true, Local),
            0,
        ),
        (
            &[(global, "true"), (affinity, "Remote")],
            (true, true, Remote),
            0,
        ),
        (
            &[(global, "true"), (old_affinity, "local")],
            (true, true, Local),
            0,
        ),
        (
            &[(global, "true"), (affinity, "none")],
            (true, true, None),
            0,
        ),
        (
            &[(global, "true"), (affinity, "nearest")],
            (true, true, None),
            1,
        ),
        (&[(affinity, "local")], (false, false, None), 1),
        (
            &[(global, "true"), (old_global, "true")],
            (true, true, None),
            0,
        ),
        (
            &[(global, "true"), (old_global, "false")],
            (true, true, None),
            1,
        ),
        (
            &[(global, "false"), (old_global, "true")],
            (false, false, None),
            1,
        ),
        (
            &[
                (global, "true"),
                (affinity, "remote"),
                (old_affinity, "local"),
            ],
            (true, true, Remote),
            1,
        ),
        (
            &[
                (global, "true"),
                ("service.cilium.io/lb-algorithm", "maglev"),
            ],
            (true, true, None),
            1,
        ),
        (
            &[("mesh.isthmus.dev/passive-health", "off")],
            (false, false, None),
            0,
        ),
        (
            &[("mesh.isthmus.dev/passive-health", "disabled")],
            (false, false, None),
            1,
        ),
        (
            &[("mesh.isthmus.dev/active-health", "on")],
            (false, false, None),
            1,
        ),
        (
            &[(
                "service.alpha.kubernetes.io/tolerate-unready-endpoints",
                "false",
            )],
            (false, false, None),
            0,
        ),
        (
            &[(
                "service.alpha.kubernetes.io/tolerate-unready-endpoints",
                "true",
            )],
            (false, false, None),
            1,
        ),
    ];
    for (annotations, wanted, problems) in rows {
        let annotations: Vec<_> = annotations
            .iter()
            .map(|(key, value)| format!("{key}: \"{value}\""))
            .collect();
        let annotations = annotations.join(", ");
        let mut source = Source::new();
        source.write(
            "s.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n, annotations: {{{annotations}}}}}\n\
                 spec: {{ports: [{{port: 80}}]}}\n"
            ),
        );
        let row = source.service("n/s");
        assert_eq!(
            (row.global, row.shared, row.affinity),
            *wanted,
            "{annotations}"
        );
        assert_eq!(
            source.problems().len(),
            *problems,
            "{annotations}: {:?}",
            source.problems()
        );
    }
}

/// A Namespace `n`, with its annotation for Services of several clusters.
fn namespace(global: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n, annotations: {{clustermesh.cilium.io/global: \"{global}\"}}}}\n"
    )
}

/// A Service of `namespace` that says that it is global.
fn global(namespace: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\n  namespace: {namespace}\n  annotations:\n    \
         service.cilium.io/global: \"true\"\n    service.cilium.io/affinity: local\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}

#[test]
fn a_namespace_that_is_not_global_keeps_its_services_at_home() {
    let overruled = "NotHandled s.yaml:1: Service n/s: metadata.annotations: has backends of this cluster only: \
                     Namespace n says clustermesh.cilium.io/global: \"false\"";
    let unclear = |value: &str| {
        format!(
            "NotHandled n.yaml:3: Namespace n: metadata.annotations[clustermesh.cilium.io/global]: {value:?} is neither \
             true nor false; taken as false"
        )
    };
    let rows: [(&str, bool, Vec<String>); 5] = [
        ("true", true, vec![]),
        ("TRUE", true, vec![]),
        ("false", false, vec![overruled.to_owned()]),
        ("", false, vec![unclear(""), overruled.to_owned()]),
        ("off", false, vec![unclear("off"), overruled.to_owned()]),
    ];
    let mesh = |source: &Source, name: &str| {
        let row = source.service(name);
        (row.global, row.shared, row.affinity)
    };
    let (abroad, at_home) = (
        (true, true, Affinity::Local),
        (false, false, Affinity::None),
    );
    for (value, wanted, problems) in rows {
        for namespace_first in [true, false] {
            let mut source = Source::new();
            if namespace_first {
                source.write("n.yaml", &namespace(value));
            }
            source.write("s.yaml", &global("n"));
            source.write("other.yaml", &global("other"));
            source.write("n.yaml", &namespace(value));
            let wanted = if wanted { abroad } else { at_home };
            assert_eq!(mesh(&source, "n/s"), wanted, "{value:?}");
            assert_eq!(mesh(&source, "other/s"), abroad, "{value:?}: another's");
            assert_eq!(source.problems(), problems, "{value:?}");
            // Without the Namespace, and without its word, Services are what they say.
            source.remove("n.yaml");
            assert_eq!(mesh(&source, "n/s"), abroad, "{value:?}");
            assert_eq!(source.problems(), [""; 0]);
            assert!(source.manifests.summary().unknown_kinds.is_empty());
        }
    }
}

#[test]
fn a_namespace_changes_its_mind_and_a_service_goes() {
    let mut source = Source::new();
    source.write("s.yaml", &global("n"));
    assert_eq!(source.write("n.yaml", &namespace("false")), 1);
    assert!(!source.service("n/s").global);
    let revision = source.manifests.problems_revision();
    source.remove("s.yaml");
    assert_eq!(source.problems(), [""; 0]);
    assert_ne!(source.manifests.problems_revision(), revision);
    source.write("s.yaml", &global("n"));
    assert_eq!(source.write("n.yaml", &namespace("true")), 1);
    assert!(source.service("n/s").global);
    assert_eq!(source.write("n.yaml", &namespace("true")), 0);
    // What else a Namespace asks of the mesh is not done.
    let asks = "apiVersion: v1\nkind: Namespace\nmetadata: {name: n, annotations: {mesh.isthmus.dev/socket-lb: \"off\"}}\n";
    source.write("n.yaml", asks);
    assert_eq!(
        source.problems(),
        [
            "NotHandled n.yaml:3: Namespace n: metadata.annotations[mesh.isthmus.dev/socket-lb]: this version has no such annotation"
        ]
    );
}

#[test]
fn a_contradiction_names_both() {
    let mut source = Source::new();
    source.write(
        "s.yaml",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: s\n  annotations:\n    service.cilium.io/global: \"true\"\n    \
         io.cilium/global-service: \"false\"\nspec: {ports: [{port: 80}]}\n",
    );
    assert_eq!(
        source.problems(),
        [
            "Conflict s.yaml:7: Service default/s: metadata.annotations[io.cilium/global-service]: contradicts \
          service.cilium.io/global, which holds; remove this one"
        ]
    );
}
