use super::*;

#[test]
fn a_broken_file_keeps_its_last_good_version_wholly() {
    let good = "apiVersion: v1\nkind: Service\nmetadata:\n  name: backend\n  namespace: production\nspec:\n  ports:\n  - name: http\n    port: 8080\n";
    let mut source = Source::new();
    source.write(
        "backend.yaml",
        &format!("{good}---\n{}", pod("p", "10.0.0.1")),
    );
    let rows = source.rows.clone();
    let bad = good.replace("8080", "80800");
    assert_eq!(
        source.write_at("backend.yaml", &bad, Duration::from_secs(5)),
        0
    );
    assert_eq!(source.rows, rows);
    assert_eq!(
        source.problems_at(Duration::from_secs(12)),
        [
            "Broken backend.yaml:9: Service production/backend: spec.ports[0].port: 80800 is not 1..65535; last good \
          version (12s old) stays"
        ]
    );
    source.write_at("backend.yaml", good, Duration::from_secs(20));
    assert_eq!(source.problems(), [""; 0]);
}

#[test]
fn lines_count_from_the_start_of_the_file() {
    let mut source = Source::new();
    let text = format!(
        "# a comment\n{}---\n# more\n---\n{}",
        service("ports: [{port: 80}]"),
        service("ports: [{port: 0}]").replace("name: s", "name: t")
    );
    source.write("s.yaml", &text);
    assert_eq!(
        source.problems(),
        [
            "Broken s.yaml:12: Service n/t: spec.ports[0].port: 0 is not 1..65535; nothing of the file is used"
        ]
    );
    source.write("s.yaml", "a: 1\n---\nb: [1\n");
    assert!(
        source.problems()[0].starts_with("Broken s.yaml:1: is no Kubernetes object"),
        "{:?}",
        source.problems()
    );
    assert!(
        source.problems()[1].starts_with("Broken s.yaml:3")
            || source.problems()[1].starts_with("Broken s.yaml:4"),
        "{:?}",
        source.problems()
    );
}

#[test]
fn every_kind_of_unusable_content_leaves_what_was() {
    let contents: &[&[u8]] = &[
        b"",
        b" \n\n",
        b"{",
        b"a: b: c",
        b"\xff\xfe",
        b"\0",
        b"- a\n- b",
        b"kind: Service",
        b"apiVersion: v1\nkind: Service\n",
        b"apiVersion: v1\nkind: [x]\n",
        b"%TAG ! \x01\n---\nx",
        b"apiVersion: v1\nkind: List\nitems: [{}]",
    ];
    for content in contents {
        let mut source = Source::new();
        source.write("s.yaml", &service("ports: [{port: 80}]"));
        let rows = source.rows.clone();
        source
            .manifests
            .update("s.yaml", FileContent::Present((*content).into()), START);
        assert_eq!((source.take(), &source.rows), (0, &rows), "{content:?}");
        assert!(
            source
                .problems()
                .iter()
                .all(|problem| problem.starts_with("Broken s.yaml")),
            "{content:?}"
        );
        assert!(
            !source.problems().is_empty()
                && source.problems()[0].ends_with("last good version (0s old) stays"),
            "{content:?}"
        );
    }
    let mut source = Source::new();
    source.write("empty.yaml", "\n");
    assert_eq!(
        source.problems(),
        [""; 0],
        "a file that never said anything is no problem"
    );
    source.write("s.yaml", &service("ports: [{port: 80}]"));
    source.manifests.update(
        "s.yaml",
        FileContent::Unreadable("permission denied".to_owned()),
        START,
    );
    assert_eq!(source.take(), 0);
    assert_eq!(
        source.problems(),
        ["Broken s.yaml: cannot be read: permission denied; last good version (0s old) stays"]
    );
    source.write("s.yaml", "# all taken out by hand\n");
    assert_eq!(source.rows, Rows::default(), "a comment is a user's word");
}

#[test]
fn the_first_path_holds_an_object_that_two_name() {
    let mut source = Source::new();
    source.write("b.yaml", &service("ports: [{port: 2}]"));
    source.write("a/s.yaml", &service("ports: [{port: 1}]"));
    assert_eq!(source.service("n/s").ports[0].port, 1);
    assert_eq!(
        source.problems(),
        ["Conflict b.yaml:1: Service n/s: is in a/s.yaml:1 too, which holds; remove one of them"]
    );
    source.remove("a/s.yaml");
    assert_eq!(source.service("n/s").ports[0].port, 2);
    assert_eq!(source.problems(), [""; 0]);
    source.write(
        "b.yaml",
        &format!(
            "{}---\n{}",
            service("ports: [{port: 2}]"),
            service("ports: [{port: 3}]")
        ),
    );
    assert_eq!(source.service("n/s").ports[0].port, 2, "within a file, too");
    assert_eq!(source.problems().len(), 1);
}

#[test]
fn lists_are_unfolded_and_json_is_read() {
    let item = |name: &str| {
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{\"ports\":[{{\"port\":80}}]}}}}"
        )
    };
    let mut source = Source::new();
    source.write(
        "l.json",
        &format!(
            "{{\n\t\"apiVersion\":\"v1\",\n\t\"kind\":\"List\",\n\t\"items\":[{},{}]}}",
            item("a"),
            item("b")
        ),
    );
    assert_eq!(source.rows.services.len(), 2);
    source.write("l.json", "{\"apiVersion\":\"v1\",\"kind\":\"ServiceList\",\"items\":[{\"metadata\":{\"name\":\"c\"},\"spec\":{\"ports\":[{\"port\":80}]}}]}");
    assert_eq!(
        source
            .rows
            .services
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["default/c"]
    );
    assert_eq!(source.problems(), [""; 0]);
}

#[test]
fn kinds_are_counted_and_known_ones_without_effect_are_said() {
    let mut source = Source::new();
    source.write("a.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n");
    source.write(
        "b.yaml",
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: e}\n",
    );
    let summary = source.manifests.summary();
    assert_eq!(
        summary.unknown_kinds,
        BTreeMap::from([
            ("ConfigMap".to_owned(), 1),
            ("Deployment.apps".to_owned(), 2)
        ])
    );
    assert_eq!((summary.files, source.problems().len()), (2, 0));
    source.write("c.yaml", "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: x, namespace: n}\n");
    assert!(
        source.problems()[0]
            .starts_with("NotHandled c.yaml:1: ServiceExport n/x: the Multi-Cluster"),
        "{:?}",
        source.problems()
    );
    assert_eq!(source.manifests.summary().objects["ServiceExport"], 1);
}

#[test]
fn equal_content_is_no_change_and_there_and_back_is_none() {
    let mut source = Source::new();
    let (one, two) = (service("ports: [{port: 1}]"), service("ports: [{port: 2}]"));
    assert_eq!(source.write("s.yaml", &one), 1);
    assert_eq!(source.write("s.yaml", &format!("# a comment\n{one}")), 0);
    for text in [&two, &one] {
        source.manifests.update(
            "s.yaml",
            FileContent::Present(text.as_bytes().into()),
            START,
        );
    }
    assert_eq!(source.take(), 0);
    source
        .manifests
        .update("s.yaml", FileContent::Removed, START);
    source
        .manifests
        .update("t.yaml", FileContent::Present(one.as_bytes().into()), START);
    assert_eq!(source.take(), 0, "moved to another file");
}

#[test]
fn a_document_cannot_grow_without_bound() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{aliases}]\n"));
    }
    let deep = "[".repeat(100_000);
    for text in [bomb, deep] {
        let mut source = Source::new();
        source.write("x.yaml", &text);
        assert_eq!(source.problems().len(), 1);
    }
}

/// The manifests that people take from the documents of Istio, Linkerd and Cilium.
#[test]
fn manifests_from_the_field_are_read_unchanged() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/manifests");
    let mut source = Source::new();
    let mut files = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".yaml") {
            source.write(name, &std::fs::read_to_string(&path).unwrap());
            files += 1;
        }
    }
    assert!(files >= 9, "{files} manifests in {directory}");
    let problems = source.manifests.problems(START);
    assert!(
        problems
            .iter()
            .all(|problem| problem.kind == ProblemKind::NotHandled),
        "{:#?}",
        source.problems()
    );
    let told: BTreeSet<_> = problems
        .iter()
        .map(|problem| problem.place.split(':').next().unwrap())
        .collect();
    assert_eq!(told.len(), 7, "all but the two of Services: {told:#?}");
    let backend = source.service("production/backend");
    assert!(backend.global && backend.shared && backend.addresses.len() == 1);
    assert!(!source.service("default/backend").global);
}

/// A row that cannot be told to a peer would end every stream that it is told on.
#[test]
fn what_is_longer_than_an_api_server_takes_is_broken() {
    let long = |bytes| "x".repeat(bytes);
    let ports: Vec<String> = (1..=1025)
        .map(|port| format!("{{name: p{port}, port: {port}}}"))
        .collect();
    let ports = ports.join(", ");
    let endpoint = |field: &str| {
        let rest = format!(
            "addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [10.0.0.1], {field}}}]"
        );
        slice("e", &rest)
    };
    let labelled =
        |value: &str| pod("p", "10.0.0.1").replace("{app: a}", &format!("{{app: {value}}}"));
    type Text<'a> = Box<dyn Fn(usize) -> String + 'a>;
    let rows: [(Text<'_>, usize, &str); 6] = [
        (
            Box::new(|bytes| service(&format!("ports: [{{port: 80, name: {}}}]", long(bytes)))),
            63,
            "spec.ports[0].name",
        ),
        (
            Box::new(|bytes| {
                slice(
                    "e",
                    &format!(
                        "addressType: IPv4\nports: [{{port: 80, name: {}}}]",
                        long(bytes)
                    ),
                )
            }),
            63,
            "ports[0].name",
        ),
        (
            Box::new(|bytes| endpoint(&format!("nodeName: {}", long(bytes)))),
            253,
            "endpoints[0].nodeName",
        ),
        (
            Box::new(|bytes| endpoint(&format!("zone: {}", long(bytes)))),
            253,
            "endpoints[0].zone",
        ),
        (
            Box::new(|bytes| labelled(&long(bytes))),
            63,
            "metadata.labels.app",
        ),
        (
            Box::new(|bytes| {
                pod("p", "10.0.0.1").replace("nodeName: n1", &format!("nodeName: {}", long(bytes)))
            }),
            253,
            "spec.nodeName",
        ),
    ];
    for (text, most, field) in rows {
        let mut source = Source::new();
        source.write("a.yaml", &text(most));
        assert_eq!(source.problems(), Vec::<String>::new(), "{field}");
        source.write("a.yaml", &text(most + 1));
        let problem = &source.problems()[0];
        let wanted = format!("{field}: ");
        assert!(
            problem.starts_with("Broken") && problem.contains(&wanted),
            "{problem}"
        );
        assert!(
            problem.contains(&format!("is not {most} bytes or fewer")),
            "{problem}"
        );
    }
    for text in [
        service(&format!("ports: [{ports}]")),
        slice("e", &format!("addressType: IPv4\nports: [{ports}]")),
    ] {
        let mut source = Source::new();
        source.write("a.yaml", &text);
        let problem = &source.problems()[0];
        assert!(
            problem.contains("ports: has 1025 ports, and 1024 are the most"),
            "{problem}"
        );
    }
}
