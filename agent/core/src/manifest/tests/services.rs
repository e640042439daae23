use super::*;

#[test]
fn addresses_are_those_that_an_api_server_would_have_given() {
    let v4 = "10.97.118.93";
    let v6 = "fd00:10:96::1:765d";
    let rows: &[(&str, &[&str])] = &[
        ("", &[v4]),
        ("clusterIP: ''", &[v4]),
        ("clusterIP: None", &[]),
        ("clusterIPs: [None]", &[]),
        ("clusterIP: 10.96.3.4", &["10.96.3.4"]),
        ("clusterIP: 'fd00:10:96::5'", &["fd00:10:96::5"]),
        (
            "clusterIPs: [10.96.3.4, 'fd00:10:96::5']",
            &["10.96.3.4", "fd00:10:96::5"],
        ),
        (
            "clusterIP: 10.96.3.4, clusterIPs: [10.96.3.4]",
            &["10.96.3.4"],
        ),
        ("clusterIP: 192.0.2.1", &["192.0.2.1"]),
        ("ipFamilies: [IPv6]", &[v6]),
        ("ipFamilies: [IPv6, IPv4]", &[v4, v6]),
        ("ipFamilyPolicy: SingleStack", &[v4]),
        ("ipFamilyPolicy: PreferDualStack", &[v4, v6]),
        ("ipFamilyPolicy: RequireDualStack", &[v4, v6]),
        (
            "clusterIP: 10.96.3.4, ipFamilyPolicy: PreferDualStack",
            &["10.96.3.4", v6],
        ),
    ];
    for (spec, wanted) in rows {
        let mut source = Source::new();
        source.write(
            "s.yaml",
            &service(&format!("ports: [{{port: 80}}], {spec}")),
        );
        let addresses: Vec<_> = source
            .service("n/s")
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(addresses, *wanted, "{spec}");
        assert_eq!(source.problems(), [""; 0], "{spec}");
    }
    let mut v6_first = Source::with_cidrs(&["fd00:10:96::/108", "10.96.0.0/12"]);
    v6_first.write("s.yaml", &service("ports: [{port: 80}]"));
    assert_eq!(v6_first.service("n/s").addresses, [v6.parse().unwrap()]);
}

#[test]
fn a_family_without_a_range_is_said() {
    for (cidrs, spec) in [
        (&["10.96.0.0/12"][..], "ipFamilies: [IPv6]"),
        (&["10.96.0.0/12"], "ipFamilyPolicy: RequireDualStack"),
    ] {
        let mut source = Source::with_cidrs(cidrs);
        source.write(
            "s.yaml",
            &service(&format!("ports: [{{port: 80}}], {spec}")),
        );
        assert_eq!(
            source.problems(),
            [
                "Conflict s.yaml:4: Service n/s: spec: no IPv6 address: --service-cidr has no IPv6 range; set spec.clusterIPs or give it one"
            ],
            "{spec}"
        );
    }
    let mut source = Source::with_cidrs(&["10.96.0.0/12"]);
    source.write(
        "s.yaml",
        &service("ports: [{port: 80}], ipFamilyPolicy: PreferDualStack"),
    );
    assert_eq!(source.problems(), [""; 0], "preferred is not required");
}

#[test]
fn the_smaller_name_holds_a_contested_address_whatever_the_order() {
    let named = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]{ip}}}\n"
        )
    };
    // One usable address in each half: any two Services meet sooner or later in four.
    for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]] {
        let mut source = Source::with_cidrs(&["192.0.2.0/30"]);
        for name in order {
            source.write(&format!("{name}.yaml"), &named(name, ""));
        }
        let held: Vec<_> = source
            .rows
            .services
            .values()
            .map(|row| row.addresses.clone())
            .collect();
        let mut seen = BTreeSet::new();
        for (row, derived) in source
            .rows
            .services
            .values()
            .zip(["a", "b", "c"].map(|name| {
                Cidrs::new(&["192.0.2.0/30".parse().unwrap()])
                    .derive(&ObjectName::new("default", name), true)
                    .unwrap()
            }))
        {
            assert_eq!(
                row.addresses.is_empty(),
                !seen.insert(derived),
                "{order:?} {held:?}"
            );
        }
        assert_eq!(
            source.problems().len(),
            held.iter().filter(|addresses| addresses.is_empty()).count()
        );
    }

    let mut source = Source::new();
    source.write("b.yaml", &named("b", ""));
    let address = source.service("default/b").addresses[0];
    source.write("z.yaml", &named("z", &format!(", clusterIP: {address}")));
    assert!(
        source.service("default/b").addresses.is_empty(),
        "given beats derived"
    );
    assert_eq!(
        source.problems(),
        [format!(
            "Conflict b.yaml:1: Service default/b: spec.clusterIP: its derived address {address} is held by Service \
             default/z, so it has none; set spec.clusterIP to a free one"
        )]
    );
    source.write("a.yaml", &named("a", &format!(", clusterIP: {address}")));
    assert_eq!(
        source.service("default/a").addresses,
        [address],
        "of given ones the smaller name holds"
    );
    assert!(source.service("default/z").addresses.is_empty());
    source.remove("a.yaml");
    source.remove("z.yaml");
    assert_eq!(source.service("default/b").addresses, [address]);
    assert_eq!(source.problems(), [""; 0]);
}

#[test]
fn a_port_of_sctp_is_said_and_left_out() {
    let mut source = Source::new();
    let ports =
        "ports: [{name: a, port: 80}, {name: b, port: 80, protocol: SCTP}, {name: c, port: 81}]";
    source.write("s.yaml", &service(ports));
    let row = source.service("n/s");
    let ports: Vec<_> = row
        .ports
        .iter()
        .map(|port| (&*port.name, port.port))
        .collect();
    assert_eq!(ports, [("a", 80), ("c", 81)]);
    assert_eq!(
        source.problems(),
        [
            "NotHandled s.yaml:4: Service n/s: spec.ports[1].protocol: SCTP connections are not translated by this version"
        ]
    );
    // It is a port all the same: what is wrong with it is wrong with the Service.
    source.write(
        "s.yaml",
        &service("ports: [{name: a, port: 80, protocol: SCTP}, {name: a, port: 81}]"),
    );
    assert!(source.problems()[0].contains("spec.ports[1]: has the name \"a\" of an earlier port"));
    source.write("s.yaml", &service("ports: [{port: 80, protocol: SCTP}]"));
    let row = source.service("n/s");
    assert_eq!((row.ports.len(), row.addresses.len()), (0, 1));
}

#[test]
fn what_this_version_does_not_do_is_said_with_its_field() {
    let rows = [
        (
            "trafficDistribution: PreferClose",
            "spec.trafficDistribution",
        ),
        ("type: NodePort", "spec.type"),
        ("type: LoadBalancer", "spec.type"),
        ("externalIPs: [192.0.2.7]", "spec.externalIPs"),
    ];
    for (spec, field) in rows {
        let mut source = Source::new();
        source.write(
            "s.yaml",
            &service(&format!("ports: [{{port: 80}}], {spec}")),
        );
        let problems = source.manifests.problems(START);
        assert_eq!(problems.len(), 1, "{spec}: {problems:?}");
        assert_eq!(
            (problems[0].kind, &*problems[0].field),
            (ProblemKind::NotHandled, field)
        );
        assert_eq!(
            source.service("n/s").addresses.len(),
            1,
            "{spec}: the rest of it works"
        );
    }
    for quiet in [
        "sessionAffinity: None",
        "sessionAffinity: ClientIP",
        "internalTrafficPolicy: Cluster",
        "internalTrafficPolicy: Local",
        "publishNotReadyAddresses: true",
        "type: ClusterIP",
        "publishNotReadyAddresses: false",
    ] {
        let mut source = Source::new();
        source.write("s.yaml", &service(&format!("ports: [{{port: 80}}], {quiet}, allocateLoadBalancerNodePorts: true, fieldOfTomorrow: [1]")));
        assert_eq!(source.problems(), [""; 0], "{quiet}");
    }
    let mut source = Source::new();
    source.write(
        "s.yaml",
        &service("type: ExternalName, externalName: example.org"),
    );
    assert!(source.rows.services.is_empty());
    assert_eq!(
        source.manifests.problems(START)[0].field,
        "spec.externalName"
    );
}

#[test]
fn a_bad_service_is_told_by_field_and_line() {
    let rows = [
        (
            "ports: [{port: 80800}]",
            "spec.ports[0].port: 80800 is not 1..65535",
        ),
        (
            "ports: [{port: 0}]",
            "spec.ports[0].port: 0 is not 1..65535",
        ),
        (
            "ports: [{port: '80'}]",
            "spec.ports[0].port: \"80\" is not 1..65535",
        ),
        ("ports: [{}]", "spec.ports[0].port: is missing"),
        ("ports: 80", "spec.ports: 80 is not a list"),
        ("selector: {}", "spec.ports: is missing"),
        (
            "ports: [{port: 80}, {port: 81}]",
            "spec.ports[0]: has no name; each of several ports needs one",
        ),
        (
            "ports: [{port: 80, name: a}, {port: 81, name: a}]",
            "spec.ports[1]: has the name \"a\" of an earlier port",
        ),
        (
            "ports: [{port: 80, name: a}, {port: 80, name: b}]",
            "spec.ports[1]: is 80/TCP for the second time",
        ),
        (
            "ports: [{port: 80, protocol: tcp}]",
            "spec.ports[0].protocol: \"tcp\" is not TCP, UDP or SCTP",
        ),
        (
            "ports: [{port: 80, targetPort: 0}]",
            "spec.ports[0].targetPort: 0 is not 1..65535",
        ),
        (
            "ports: [{port: 80}], clusterIP: 10.0.0",
            "spec.clusterIP: \"10.0.0\" is no IP address",
        ),
        (
            "ports: [{port: 80}], clusterIP: 127.0.0.1",
            "spec.clusterIP: 127.0.0.1 cannot be the address of a Service",
        ),
        (
            "ports: [{port: 80}], clusterIPs: [10.0.0.1, 10.0.0.2]",
            "spec.clusterIPs[1]: 10.0.0.2 is of the same family as the address before it",
        ),
        (
            "ports: [{port: 80}], clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]",
            "spec.clusterIPs[0]: \"10.0.0.2\" is not spec.clusterIP, \"10.0.0.1\"",
        ),
        (
            "ports: [{port: 80}], selector: {a: true}",
            "spec.selector.a: true is not text; put it in quotes",
        ),
        (
            "ports: [{port: 80}], sessionAffinity: ClientIp",
            "spec.sessionAffinity: \"ClientIp\" is not None or ClientIP",
        ),
        (
            "ports: [{port: 80}], internalTrafficPolicy: Node",
            "spec.internalTrafficPolicy: \"Node\" is not Cluster or Local",
        ),
        (
            "ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not 1..86400",
        ),
        (
            "ports: [{port: 80}], sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 86401 is not 1..86400",
        ),
        (
            "ports: [{port: 80}], sessionAffinityConfig: {clientIP: {timeoutSeconds: 1h}}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: \"1h\" is not 1..86400",
        ),
        (
            "ports: [{port: 80}], type: Clusterip",
            "spec.type: \"Clusterip\" is no type of Service",
        ),
    ];
    for (spec, wanted) in rows {
        let mut source = Source::new();
        source.write("s.yaml", &service(spec));
        assert_eq!(
            source.problems(),
            [format!(
                "Broken s.yaml:4: Service n/s: {wanted}; nothing of the file is used"
            )]
        );
    }
}
