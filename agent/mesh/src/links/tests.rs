#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
use isthmus_core::mesh::Terms;
use isthmus_core::model::ClusterId;

use super::*;

fn link(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: mesh.isthmus.dev/v1alpha1\nkind: ClusterLink\nmetadata: {{name: {name}}}\nspec:\n  {rest}\n  \
         tls: {{ca: ca.crt, cert: client.crt, key: client.key}}\n"
    )
}

#[test]
fn files_are_followed_and_what_is_broken_leaves_the_last_good() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("west.yaml");
    let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), None);
    assert_eq!(
        links.look().unwrap(),
        Wanted {
            complete: true,
            ..Wanted::default()
        }
    );
    assert_eq!(links.look(), None);
    fs::write(
        &path,
        link("west", "id: 2\n  endpoints: [\"mesh.west.example:4260\"]"),
    )
    .unwrap();
    let wanted = links.look().unwrap();
    let spec = &wanted.links[&"west".parse().unwrap()];
    assert_eq!(spec.tls.ca, directory.path().join("ca.crt"));
    assert_eq!(
        (
            spec.terms.id.map(ClusterId::get),
            spec.endpoints[0].to_string()
        ),
        (Some(2), "mesh.west.example:4260".to_owned())
    );
    assert_eq!(
        (spec.terms.cidrs.as_ref(), spec.terms.rows_max),
        (None, Terms::ROWS_MAX)
    );
    assert_eq!(wanted.problems, []);

    fs::write(
        &path,
        link("west", "id: 2\n  endpoints: [\"mesh.west.example:426000\"]"),
    )
    .unwrap();
    let broken = links.look().unwrap();
    assert_eq!(broken.links, wanted.links);
    let problem = broken.problems[0].to_string();
    assert!(
        problem.starts_with("west.yaml:6: spec.endpoints[0]: \"mesh.west.example:426000\" is no"),
        "{problem}"
    );
    assert!(
        problem.ends_with("the last good version stays"),
        "{problem}"
    );

    fs::remove_file(&path).unwrap();
    assert_eq!(links.look(), None);
    let wanted = links.look().unwrap();
    assert!(wanted.links.is_empty() && wanted.complete);

    drop(directory);
    let wanted = links.look().unwrap();
    assert!(!wanted.complete);
    assert_eq!(links.look(), None);
}

#[test]
fn certificates_that_a_link_gets_or_loses_make_another_way_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("west.yaml");
    let own = ["ca.crt", "client.crt", "client.key"].map(|file| directory.path().join(file));
    let [ca, cert, key] = own;
    let tls = Some(TlsPaths { ca, cert, key });
    let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), tls);
    let with = link("west", "endpoints: [\"a:1\"]");
    let without = with[..with.find("tls").unwrap()].to_owned();
    let ranges = with.replace("tls", "cidrs: [10.1.0.0/16]\n  tls");
    let name = "west".parse().unwrap();
    let mut follow = |text: &str| {
        fs::write(&path, text).unwrap();
        links.look().unwrap().links[&name].clone()
    };
    let mut before = follow(&without);
    // The same files, but whoever wrote that waits to see them used.
    for (text, as_before) in [(&with, false), (&ranges, true), (&without, false)] {
        let spec = follow(text);
        assert_eq!(spec.tls, before.tls);
        assert_eq!(spec.leads_as(&before), as_before, "{text}");
        before = spec;
    }
}

#[test]
fn a_file_that_is_written_anew_is_not_missed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), None);
    let name: ClusterName = "west".parse().unwrap();
    fs::write(at("west.yaml"), link("west", "endpoints: [\"a:1\"]")).unwrap();
    let wanted = links.look().unwrap();
    // As editors do it, with a look in between.
    fs::rename(at("west.yaml"), at("west.yaml~")).unwrap();
    assert_eq!(links.look(), None);
    fs::write(at("west.yaml"), link("west", "endpoints: [\"b:1\"]")).unwrap();
    let anew = links.look().unwrap();
    assert_eq!(anew.links[&name].endpoints[0].to_string(), "b:1");
    assert_ne!(anew, wanted);
    // Under another name, it is the same link.
    fs::rename(at("west.yaml"), at("renamed.yaml")).unwrap();
    let renamed = links.look().unwrap();
    assert_eq!(renamed.problems, []);
    assert_eq!(renamed.links[&name].file, at("renamed.yaml"));
    assert_eq!(links.look().unwrap().links, renamed.links);
    fs::remove_file(at("renamed.yaml")).unwrap();
    assert_eq!(links.look(), None);
    assert!(links.look().unwrap().links.is_empty());
}

#[test]
fn a_link_says_what_it_allows() {
    let directory = tempfile::tempdir().unwrap();
    let rest = "endpoints: [\"a:1\"]\n  cidrs: [10.12.0.0/16, \"fd00:12::/48\"]\n  limits: {rows: 10, bytes: 4096}";
    fs::write(directory.path().join("west.yaml"), link("west", rest)).unwrap();
    let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), None);
    let wanted = links.look().unwrap();
    let terms = wanted.links[&"west".parse().unwrap()].terms.clone();
    let cidrs = ["10.12.0.0/16", "fd00:12::/48"].map(|cidr| cidr.parse().unwrap());
    let allowed = Terms {
        id: None,
        cidrs: Some(cidrs.to_vec()),
        rows_max: 10,
        bytes_max: 4096,
    };
    assert_eq!(terms, allowed);
}

#[test]
fn contradictions_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let put = |file: &str, text: String| fs::write(directory.path().join(file), text).unwrap();
    put("a.yaml", link("west", "id: 2\n  endpoints: [\"a:1\"]"));
    put("b.yaml", link("west", "endpoints: [\"b:1\"]"));
    put("c.yaml", link("lab2", "id: 2\n  endpoints: [\"c:1\"]"));
    put("d.yaml", link("east", "endpoints: [\"d:1\"]"));
    put("e.yaml", link("north", "endpoints: []"));
    put("f.yaml", link("north", "endpoint: x"));
    put("g.yaml", link("north", "id: 512\n  endpoints: [\"g:1\"]"));
    let ranged = |rest: &str| format!("endpoints: [\"h:1\"]\n  {rest}");
    put(
        "h.yaml",
        link("south", &ranged("cidrs: [10.12.0.0/16, fd00::1/64]")),
    );
    put("i.yaml", link("south", &ranged("limits: {rows: many}")));
    put(".h.yaml", "nonsense".to_owned());
    let mut links = Links::new(directory.path().to_owned(), "east".parse().unwrap(), None);
    let wanted = links.look().unwrap();
    assert_eq!(wanted.links.len(), 1);
    assert!(!wanted.complete);
    let said: Vec<String> = wanted.problems.iter().map(Problem::to_string).collect();
    assert_eq!(said.len(), 8, "{said:#?}");
    for words in [
        "b.yaml: metadata.name: links \"west\", as ",
        "c.yaml: spec.id: cluster id 2 is taken: \"west\" and \"lab2\" both use it",
        "d.yaml:3: metadata.name: \"east\" is this cluster itself",
        "e.yaml:5: spec.endpoints: is empty",
        "f.yaml:5: ",
        "g.yaml:5: spec.id: 512 is not 1..511",
        "h.yaml:6: spec.cidrs[1]: fd00::1/64 has bits set behind its prefix; did you mean fd00::/64?",
        "i.yaml:6: ",
    ] {
        assert!(
            said.iter().any(|problem| problem.starts_with(words)),
            "{words} in {said:#?}"
        );
    }
}
