use super::*;
use crate::model::ServiceRules;

#[test]
fn rules_come_from_the_spec_and_our_annotation() {
    let rules = |annotation: &str, spec: &str| {
        let mut source = Source::new();
        source.write(
            "s.yaml",
            &format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n, annotations: {{{annotation}}}}}\n\
                 spec: {{ports: [{{port: 80}}], {spec}}}\n"
            ),
        );
        (source.service("n/s").rules, source.problems())
    };
    let affinity = |affinity_seconds| ServiceRules {
        affinity_seconds,
        ..ServiceRules::default()
    };
    for (spec, wanted) in [
        ("", ServiceRules::default()),
        ("sessionAffinity: None", ServiceRules::default()),
        ("sessionAffinity: ClientIP", affinity(10_800)),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {}}",
            affinity(10_800),
        ),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}",
            affinity(1),
        ),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}",
            affinity(86_400),
        ),
        (
            "sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
            ServiceRules::default(),
        ),
        (
            "internalTrafficPolicy: Local",
            ServiceRules {
                node_only: true,
                ..ServiceRules::default()
            },
        ),
    ] {
        assert_eq!(rules("", spec), (wanted, vec![]), "{spec}");
    }
    let health = |value: &str| {
        let annotation = format!("mesh.isthmus.dev/passive-health: \"{value}\"");
        let (rules, problems) = rules(&annotation, "");
        (rules.no_passive_health, problems)
    };
    assert_eq!(health("off"), (true, vec![]));
    assert_eq!(health("on"), (false, vec![]));
    for wrong in ["Off", "false", "no", ""] {
        let (off, problems) = health(wrong);
        assert!(!off, "{wrong}");
        assert_eq!(
            problems,
            [format!(
                "NotHandled s.yaml:3: Service n/s: metadata.annotations[mesh.isthmus.dev/passive-health]: {wrong:?} is neither on nor off; taken as on"
            )]
        );
    }
}
