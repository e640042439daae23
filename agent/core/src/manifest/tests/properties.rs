use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Bytes of every kind, and manifests with a wound.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let valid = select(vec![
        service("ports: [{port: 80}], selector: {app: a}"),
        service("ports: [{port: 80, targetPort: http}], clusterIP: 10.96.0.1"),
        pod("p", "10.0.0.1"),
        slice(
            "e",
            "addressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [10.0.0.7]}]",
        ),
        format!(
            "{}{}",
            service("ports: [{port: 81}], selector: {app: a}"),
            pod("q", "10.0.0.2")
        ),
    ]);
    let wounded = (
        valid,
        any::<prop::sample::Index>(),
        proptest::collection::vec(any::<u8>(), 0..4),
        any::<bool>(),
    )
        .prop_map(|(text, at, bytes, cut)| {
            let mut text = text.into_bytes();
            let at = at.index(text.len());
            if cut {
                text.truncate(at);
            }
            text.splice(at.min(text.len())..at.min(text.len()), bytes);
            text
        });
    let yamlish = "[-:{}\\[\\]#&*!|>'\"%@` \n\tabkind0-9]{0,80}".prop_map(String::into_bytes);
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        yamlish,
        wounded
    ]
}

/// A small world, so that steps meet.
#[derive(Clone, Debug)]
enum Step {
    Write(&'static str, String),
    Remove(&'static str),
    Take,
}

fn step() -> impl Strategy<Value = Step> {
    let path = || select(vec!["a.yaml", "b.yaml", "c.yaml", "d.yaml", "e.yaml"]);
    let port = select(vec!["80", "81", "http"]);
    let selector = select(vec![
        "selector: {app: a}",
        "selector: {app: a, tier: x}",
        "selector: {tier: y}",
        "clusterIP: 192.0.2.1",
        "clusterIP: None",
    ]);
    let name = || select(vec!["s", "t", "u"]);
    let ip = || select(vec!["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let labels = select(vec!["{app: a}", "{app: a, tier: x}", "{tier: y}", "{}"]);
    let ready = select(vec!["\"True\"", "\"False\""]);
    let global = select(vec![
        "",
        ", annotations: {service.cilium.io/global: 'true'}",
    ]);
    let services = (name(), port, selector, global).prop_map(|(name, port, spec, global)| {
        service(&format!(
            "ports: [{{port: 80, targetPort: {port}}}], {spec}"
        ))
        .replace(
            "name: s, namespace: n",
            &format!("name: {name}, namespace: n{global}"),
        )
    });
    let pods =
        (select(vec!["p", "q"]), ip(), labels, ready).prop_map(|(name, ip, labels, ready)| {
            pod(name, ip)
                .replace("{app: a}", labels)
                .replace("\"True\"", ready)
        });
    let slices = (select(vec!["e", "f"]), name(), ip(), 80..82u16).prop_map(|(name, service, ip, port)| {
        slice(name, &format!("addressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{{addresses: [{ip}], nodeName: n1}}]"))
            .replace("service-name: s", &format!("service-name: {service}"))
    });
    let nodes = select(vec!["z1", "z2"]).prop_map(|zone| {
        format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n")
    });
    let namespaces = select(vec!["'true'", "'false'", "''"]).prop_map(|global| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: n, annotations: {{clustermesh.cilium.io/global: {global}}}}}\n")
    });
    let object = prop_oneof![4 => services, 4 => pods, 3 => slices, 1 => nodes, 1 => namespaces];
    let text = proptest::collection::vec(object, 0..4)
        .prop_map(|objects| format!("# file\n{}", objects.join("---\n")));
    prop_oneof![
        6 => (path(), text).prop_map(|(path, text)| Step::Write(path, text)),
        2 => path().prop_map(Step::Remove),
        1 => Just(Step::Take),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    /// Either the bytes are a manifest, and the rows are those of the bytes alone, or nothing changes at all.
    #[test]
    fn any_bytes_leave_the_last_good_state(bytes in content()) {
        let mut source = Source::new();
        source.write("a.yaml", &format!("{}{}", service("ports: [{port: 80}], selector: {app: a}"), pod("p", "10.0.0.1")));
        let before = source.rows.clone();
        source.manifests.update("a.yaml", FileContent::Present(bytes.as_slice().into()), START);
        source.take();
        if source.problems().iter().any(|problem| problem.starts_with("Broken")) {
            prop_assert_eq!(&source.rows, &before);
        } else {
            let mut alone = Source::new();
            alone.manifests.update("a.yaml", FileContent::Present(bytes.as_slice().into()), START);
            alone.take();
            prop_assert_eq!(&source.rows, &alone.rows);
            prop_assert_eq!(source.problems(), alone.problems());
        }
        source.remove("a.yaml");
        prop_assert_eq!(&source.rows, &Rows::default());
    }

    /// However the files came to be what they are, the rows are those of reading them from scratch.
    #[test]
    fn the_way_does_not_show(steps in proptest::collection::vec(step(), 1..24)) {
        let mut source = Source::with_cidrs(&["192.0.2.0/29"]);
        let mut files = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(path, text) => {
                    source.manifests.update(path, FileContent::Present(text.as_bytes().into()), START);
                    files.insert(path, text);
                }
                Step::Remove(path) => {
                    source.manifests.update(path, FileContent::Removed, START);
                    files.remove(path);
                }
                Step::Take => {
                    source.take();
                }
            }
        }
        source.take();
        let mut fresh = Source::with_cidrs(&["192.0.2.0/29"]);
        for (path, text) in files.iter().rev() {
            fresh.manifests.update(path, FileContent::Present(text.as_bytes().into()), START);
        }
        fresh.take();
        prop_assert_eq!(&source.rows, &fresh.rows);
        prop_assert_eq!(source.problems(), fresh.problems());
        prop_assert_eq!(source.take(), 0);
        for path in files.keys() {
            source.manifests.update(path, FileContent::Removed, START);
        }
        source.take();
        prop_assert_eq!(&source.rows, &Rows::default());
    }
}
