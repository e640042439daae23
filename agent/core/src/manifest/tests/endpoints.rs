use super::*;

const READY: &str = "conditions: [{type: Ready, status: \"True\"}]";

#[test]
fn pods_become_endpoints_as_kep_1669_says() {
    let rows: &[(&str, &str, &[&str])] = &[
        (
            &format!("podIP: 10.0.0.1, {READY}"),
            "",
            &["10.0.0.1 /TCP:80 Ready"],
        ),
        (
            &format!("phase: Running, podIPs: [{{ip: 10.0.0.1}}, {{ip: 'fd00::1'}}], {READY}"),
            "",
            &["10.0.0.1 /TCP:80 Ready"],
        ),
        (
            "podIP: 10.0.0.1",
            "",
            &["10.0.0.1 /TCP:80 NotReady Pod condition"],
        ),
        (
            "podIP: 10.0.0.1, conditions: [{type: Ready, status: \"False\"}]",
            "",
            &["10.0.0.1 /TCP:80 NotReady Pod condition"],
        ),
        (
            &format!("podIP: 10.0.0.1, {READY}"),
            "deletionTimestamp: 2026-01-01T00:00:00Z",
            &["10.0.0.1 /TCP:80 ServingTerminating terminating"],
        ),
        (
            "podIP: 10.0.0.1",
            "deletionTimestamp: 2026-01-01T00:00:00Z",
            &["10.0.0.1 /TCP:80 NotReady terminating"],
        ),
        (&format!("phase: Failed, podIP: 10.0.0.1, {READY}"), "", &[]),
        (
            &format!("phase: Succeeded, podIP: 10.0.0.1, {READY}"),
            "",
            &[],
        ),
        (READY, "", &[]),
        (&format!("podIP: '', {READY}"), "", &[]),
        ("", "", &[]),
    ];
    for (status, metadata, wanted) in rows {
        let mut source = Source::new();
        source.write(
            "s.yaml",
            &service("ports: [{port: 80}], selector: {app: a}"),
        );
        source.write("p.yaml", &pod_with("p", status, metadata));
        assert_eq!(source.endpoints("n/s"), *wanted, "{status}");
        assert_eq!(source.problems(), [""; 0]);
    }
}

#[test]
fn pods_that_are_not_ready_are_published_where_the_service_says_so() {
    let service = |publish: bool| {
        service(&format!(
            "ports: [{{port: 80}}], selector: {{app: a}}, publishNotReadyAddresses: {publish}"
        ))
    };
    let mut source = Source::new();
    source.write("s.yaml", &service(false));
    source.write("p.yaml", &pod_with("p", "podIP: 10.0.0.1", ""));
    let leaving = "deletionTimestamp: 2026-01-01T00:00:00Z";
    source.write("q.yaml", &pod_with("q", "podIP: 10.0.0.2", leaving));
    source.write(
        "r.yaml",
        &pod_with("r", "phase: Failed, podIP: 10.0.0.3", ""),
    );
    let unready = [
        "10.0.0.1 /TCP:80 NotReady Pod condition",
        "10.0.0.2 /TCP:80 NotReady terminating",
    ];
    assert_eq!(source.endpoints("n/s"), unready);
    source.write("s.yaml", &service(true));
    assert_eq!(
        source.endpoints("n/s"),
        ["10.0.0.1 /TCP:80 Ready", "10.0.0.2 /TCP:80 Ready"],
        "but for one that is over"
    );
    source.write("s.yaml", &service(false));
    assert_eq!(source.endpoints("n/s"), unready);
    assert_eq!(source.problems(), [""; 0]);
}

#[test]
fn target_ports_are_numbers_or_names() {
    let rows: &[(&str, &str)] = &[
        ("{port: 8080}", "10.0.0.1 /TCP:8080 Ready"),
        ("{port: 8080, targetPort: 9}", "10.0.0.1 /TCP:9 Ready"),
        ("{port: 8080, targetPort: http}", "10.0.0.1 /TCP:80 Ready"),
        (
            "{port: 8080, name: web, targetPort: http}",
            "10.0.0.1 web/TCP:80 Ready",
        ),
        (
            "{port: 8080, targetPort: https}",
            "10.0.0.1  NotReady no container port named \"https\"",
        ),
        (
            "{port: 8080, protocol: UDP, targetPort: http}",
            "10.0.0.1  NotReady no container port named \"http\"",
        ),
        (
            "{port: 1, name: a}, {port: 2, name: b, targetPort: none}",
            "10.0.0.1 a/TCP:1 Ready",
        ),
    ];
    for (ports, wanted) in rows {
        let mut source = Source::new();
        source.write("p.yaml", &pod("p", "10.0.0.1"));
        source.write(
            "s.yaml",
            &service(&format!("ports: [{ports}], selector: {{app: a}}")),
        );
        assert_eq!(source.endpoints("n/s"), [*wanted], "{ports}");
    }
}

#[test]
fn a_selector_takes_its_own_namespace_and_all_of_its_pairs() {
    let mut source = Source::new();
    source.write(
        "s.yaml",
        &service("ports: [{port: 80}], selector: {app: a, tier: x}"),
    );
    source.write("p.yaml", &pod("p", "10.0.0.1"));
    assert_eq!(source.endpoints("n/s").len(), 0, "one pair of two");
    source.write(
        "p.yaml",
        &pod("p", "10.0.0.1").replace("{app: a}", "{app: a, tier: x, more: y}"),
    );
    assert_eq!(source.endpoints("n/s").len(), 1);
    source.write(
        "p.yaml",
        &pod("p", "10.0.0.1")
            .replace("{app: a}", "{app: a, tier: x}")
            .replace("namespace: n", "namespace: m"),
    );
    assert_eq!(source.endpoints("n/s").len(), 0, "another namespace");
    source.write("p.yaml", &pod("p", "10.0.0.1"));
    source.write("s.yaml", &service("ports: [{port: 80}]"));
    assert_eq!(
        source.endpoints("n/s").len(),
        0,
        "no selector selects nothing"
    );
    source.write(
        "s.yaml",
        &service("ports: [{port: 80}], selector: {app: a}"),
    );
    assert_eq!(source.endpoints("n/s").len(), 1);
    source.remove("s.yaml");
    assert_eq!(source.rows, Rows::default());
}

#[test]
fn families_of_pods_are_those_of_the_service() {
    let dual = pod_with(
        "p",
        &format!("podIPs: [{{ip: 10.0.0.1}}, {{ip: 'fd00::1'}}], {READY}"),
        "",
    );
    let (v4, v6) = (Some("10.0.0.1"), Some("fd00::1"));
    // With ranges, IPv4 first, and without any: then a Service that asks for no family may have either.
    let rows = [
        ("", [v4, None], [v4, v6]),
        ("ipFamilies: [IPv4]", [v4, None], [v4, None]),
        ("ipFamilies: [IPv6]", [v6, None], [v6, None]),
        ("ipFamilyPolicy: SingleStack", [v4, None], [v4, v6]),
        ("ipFamilyPolicy: PreferDualStack", [v4, v6], [v4, v6]),
        ("clusterIP: 10.96.0.9", [v4, None], [v4, None]),
        (
            "clusterIP: 10.96.0.9, ipFamilyPolicy: PreferDualStack",
            [v4, v6],
            [v4, v6],
        ),
        (
            "clusterIP: None, ipFamilyPolicy: RequireDualStack",
            [v4, v6],
            [v4, v6],
        ),
    ];
    for (spec, with, without) in rows {
        for (mut source, wanted) in [(Source::new(), with), (Source::with_cidrs(&[]), without)] {
            source.write("p.yaml", &dual);
            source.write(
                "s.yaml",
                &service(&format!(
                    "ports: [{{port: 80}}], selector: {{app: a}}, {spec}"
                )),
            );
            let endpoints = source.endpoints("n/s");
            let addresses = endpoints.iter().map(|e| e.split(' ').next().unwrap());
            let wanted: Vec<_> = wanted.into_iter().flatten().collect();
            assert_eq!(addresses.collect::<Vec<_>>(), wanted, "{spec}");
            assert_eq!(source.problems(), [""; 0], "{spec}");
        }
    }
}

#[test]
fn slices_are_taken_as_given_and_pods_give_way() {
    let rows: &[(&str, &[&str])] = &[
        (
            "endpoints: [{addresses: [10.0.0.9]}]",
            &["10.0.0.9 /TCP:80 Ready"],
        ),
        (
            "endpoints: [{addresses: [10.0.0.9], conditions: {}}]",
            &["10.0.0.9 /TCP:80 Ready"],
        ),
        (
            "endpoints: [{addresses: [10.0.0.9], conditions: {ready: false}}]",
            &["10.0.0.9 /TCP:80 NotReady EndpointSlice condition"],
        ),
        (
            "endpoints: [{addresses: [10.0.0.9], conditions: {ready: false, serving: true, terminating: true}}]",
            &["10.0.0.9 /TCP:80 ServingTerminating terminating"],
        ),
        (
            "endpoints: [{addresses: [10.0.0.9], conditions: {ready: false, serving: false, terminating: true}}]",
            &["10.0.0.9 /TCP:80 NotReady terminating"],
        ),
        (
            "endpoints: [{addresses: [10.0.0.9], conditions: {ready: true, terminating: true}}]",
            &["10.0.0.9 /TCP:80 Ready"],
        ),
        (
            "endpoints: [{addresses: [10.0.0.8, 10.0.0.9]}]",
            &["10.0.0.8 /TCP:80 Ready", "10.0.0.9 /TCP:80 Ready"],
        ),
        ("endpoints: []", &[]),
        ("endpoints: null", &[]),
    ];
    for (endpoints, wanted) in rows {
        let mut source = Source::new();
        source.write(
            "s.yaml",
            &service("ports: [{port: 80}], selector: {app: a}"),
        );
        source.write("p.yaml", &pod("p", "10.0.0.1"));
        assert_eq!(source.endpoints("n/s").len(), 1);
        source.write(
            "e.yaml",
            &slice(
                "e",
                &format!("addressType: IPv4\nports: [{{port: 80}}]\n{endpoints}"),
            ),
        );
        assert_eq!(source.endpoints("n/s"), *wanted, "{endpoints}");
        source.remove("e.yaml");
        assert_eq!(
            source.endpoints("n/s"),
            ["10.0.0.1 /TCP:80 Ready"],
            "pods are back"
        );
    }
}

#[test]
fn slices_that_name_an_address_together_are_joined() {
    let one = |name: &str, port: u16, conditions: &str| {
        slice(
            name,
            &format!(
                "addressType: IPv4\nports: [{{name: p{port}, port: {port}}}]\nendpoints: [{{addresses: [10.0.0.9]{conditions}}}]"
            ),
        )
    };
    for order in [["a", "b"], ["b", "a"]] {
        let mut source = Source::new();
        source.write("s.yaml", &service("ports: [{port: 80}]"));
        for name in order {
            source.write(name, &one(name, if name == "a" { 1 } else { 2 }, ""));
        }
        assert_eq!(
            source.endpoints("n/s"),
            ["10.0.0.9 p1/TCP:1,p2/TCP:2 Ready"]
        );
        source.write("b", &one("b", 2, ", conditions: {ready: false}"));
        assert_eq!(
            source.endpoints("n/s"),
            ["10.0.0.9 p1/TCP:1 Ready"],
            "the best condition holds"
        );
        source.remove("a");
        assert_eq!(
            source.endpoints("n/s"),
            ["10.0.0.9 p2/TCP:2 NotReady EndpointSlice condition"]
        );
    }
}

#[test]
fn slices_that_are_not_ours_are_said() {
    let rows = [
        ("addressType: FQDN", "addressType"),
        ("addressType: IPv4\nports: [{name: all}]", "ports[0]"),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hints: {forZones: [{name: z}]}}]",
            "endpoints[0].hints",
        ),
    ];
    for (rest, field) in rows {
        let mut source = Source::new();
        source.write("e.yaml", &slice("e", rest));
        let problems = source.manifests.problems(START);
        assert_eq!(
            (problems.len(), problems[0].kind, &*problems[0].field),
            (1, ProblemKind::NotHandled, field),
            "{problems:?}"
        );
    }
    for labels in [
        "{}",
        "{kubernetes.io/service-name: s, multicluster.kubernetes.io/source-cluster: west}",
    ] {
        let mut source = Source::new();
        source.write("s.yaml", &service("ports: [{port: 80}]"));
        let text = slice(
            "e",
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1]}]",
        )
        .replace("{kubernetes.io/service-name: s}", labels);
        source.write("e.yaml", &text);
        assert_eq!(source.endpoints("n/s").len(), 0);
        assert_eq!(source.problems().len(), 1, "{labels}");
    }
    for bad in [
        "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
        "addressType: IPv4\nendpoints: [{addresses: [127.0.0.1]}]",
        "endpoints: []",
    ] {
        let mut source = Source::new();
        source.write("e.yaml", &slice("e", bad));
        assert!(source.problems()[0].starts_with("Broken e.yaml:"), "{bad}");
    }
}

#[test]
fn zones_come_from_the_slice_then_from_the_node() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}\n";
    let zones = |source: &Source| {
        source
            .rows
            .endpoints
            .values()
            .map(|row| row.zone.to_string())
            .collect::<Vec<_>>()
    };
    let mut source = Source::new();
    source.write(
        "s.yaml",
        &service("ports: [{port: 80}], selector: {app: a}"),
    );
    source.write("p.yaml", &pod("p", "10.0.0.1"));
    assert_eq!(zones(&source), [""]);
    assert_eq!(source.write("node.yaml", node), 1);
    assert_eq!(zones(&source), ["z1"]);
    source.write("node.yaml", &node.replace("z1", "z2"));
    assert_eq!(zones(&source), ["z2"]);
    source.write("e.yaml", &slice("e", "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], nodeName: n1}, {addresses: [10.0.0.2], nodeName: n1, zone: own}]"));
    assert_eq!(zones(&source), ["z2", "own"]);
    source.remove("node.yaml");
    assert_eq!(zones(&source), ["", "own"]);
}

#[test]
fn pods_that_share_an_address_are_one_endpoint() {
    let mut source = Source::new();
    source.write(
        "s.yaml",
        &service("ports: [{port: 80}], selector: {app: a}"),
    );
    source.write("p.yaml", &pod("p", "10.0.0.1"));
    assert_eq!(
        source.write("q.yaml", &pod("q", "10.0.0.1")),
        0,
        "nothing new"
    );
    assert_eq!(source.remove("p.yaml"), 0);
    assert_eq!(source.remove("q.yaml"), 1);
}
