#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::time::Duration;

use clap::Parser;
use ipnet::IpNet;

use super::*;

#[derive(Parser, Debug)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    /// How long.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    stale_after: Duration,
    /// Which.
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_values = ["10.96.0.0/12"])]
    service_cidr: Vec<IpNet>,
    /// Who.
    #[arg(long, default_value = "all", value_parser = ["all", "host"])]
    socket_lb: String,
}

/// Loads from flags, `NAME=VALUE` and the text of a file.
fn read(
    flags: &[&str],
    environment: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Loaded<Args>, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.yaml");
    let mut args: Vec<OsString> = vec!["isthmus".into()];
    args.extend(flags.iter().map(OsString::from));
    if let Some(text) = file {
        std::fs::write(&path, text).unwrap();
        args.push(format!("--config={}", path.display()).into());
    }
    load_from(args, |name| {
        environment
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value.into())
    })
}

fn error(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> String {
    let text = read(flags, environment, file).unwrap_err().to_string();
    // The directory's name is a random one.
    match text.find("/c.yaml") {
        Some(at) => text[at + 1..].to_owned(),
        None => text,
    }
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let variable = &[("ISTHMUS_STALE_AFTER", "7s")];
    let file = Some("stale-after: 9s\n");
    for (flags, environment, file, wanted) in [
        (&["--stale-after", "5s"][..], &variable[..], file, 5),
        (&[], variable, file, 7),
        (&[], &[], file, 9),
        (&[], &[], None, 3),
        (&[], &[("ISTHMUS_STALE_AFTER", "")], file, 9),
        (&[], &[], Some("stale-after:\n"), 3),
        (&[], &[], Some(""), 3),
    ] {
        let loaded = read(flags, environment, file).unwrap();
        assert_eq!(loaded.args.stale_after.as_secs(), wanted);
        assert!(loaded.print.is_none());
    }
}

#[test]
fn lists_are_lists_in_all_three_ways() {
    let wanted: Vec<IpNet> = ["10.0.0.0/8", "fd00::/64"]
        .map(|cidr| cidr.parse().unwrap())
        .to_vec();
    for loaded in [
        read(&["--service-cidr", "10.0.0.0/8,fd00::/64"], &[], None),
        read(
            &[],
            &[("ISTHMUS_SERVICE_CIDR", "10.0.0.0/8, fd00::/64")],
            None,
        ),
        read(&[], &[], Some("service-cidr: '10.0.0.0/8,fd00::/64'\n")),
        read(&[], &[], Some("service-cidr:\n- 10.0.0.0/8\n- fd00::/64\n")),
    ] {
        assert_eq!(loaded.unwrap().args.service_cidr, wanted);
    }
}

#[test]
fn what_is_wrong_is_told_where_it_was_said() {
    assert_eq!(
        error(&[], &[], Some("# c\nstale-aftr: 9s\n")),
        "c.yaml:2: unknown key \"stale-aftr\"; did you mean \"stale-after\"?"
    );
    assert_eq!(
        error(&[], &[], Some("cluster_name: a\n")),
        "c.yaml:1: unknown key \"cluster_name\"; did you mean \"cluster-name\"?"
    );
    assert_eq!(
        error(&[], &[], Some("zzz: 1\n")),
        "c.yaml:1: unknown key \"zzz\""
    );
    assert_eq!(
        error(&[], &[], Some("print-config: true\n")).find("unknown key"),
        Some("c.yaml:1: ".len())
    );
    assert_eq!(
        error(&[], &[], Some("\ncluster-id: 512\n")),
        "c.yaml:2: cluster-id: \"512\": cluster id 512 is not 1..511"
    );
    assert_eq!(
        error(&[], &[("ISTHMUS_CLUSTER_ID", "x")], None),
        "ISTHMUS_CLUSTER_ID: \"x\": cluster id \"x\" is not 1..511"
    );
    assert_eq!(
        error(&[], &[("ISTHMUS_SOCKET_LB", "x")], None),
        "ISTHMUS_SOCKET_LB: \"x\": one of all, host is expected"
    );
    assert!(
        error(&["--cluster-id=0"], &[("ISTHMUS_CLUSTER_ID", "1")], None)
            .contains("'--cluster-id <ID>'")
    );
    assert!(error(&[], &[], Some("a: [1\n")).starts_with("c.yaml:"));
    assert!(error(&[], &[], Some("- a\n")).starts_with("c.yaml:1: "));
    assert!(
        error(&["--config", "/nowhere/x.yaml"], &[], None)
            .starts_with("--config /nowhere/x.yaml: ")
    );
    assert!(error(&["--source", "kube"], &[], None).contains("not in this version"));
}

#[test]
fn the_file_is_found_by_the_environment_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, "stale-after: 9s\n").unwrap();
    let loaded: Loaded<Args> = load_from(["isthmus".into()], |name| {
        (name == "ISTHMUS_CONFIG").then(|| path.clone().into())
    })
    .unwrap();
    assert_eq!(loaded.args.stale_after.as_secs(), 9);
}

#[test]
fn printed_settings_say_origin_and_unit_and_read_back() {
    let flags = [
        "--print-config",
        "--cluster-id=7",
        "--service-cidr=10.0.0.0/8,fd00::/64",
    ];
    let printed = read(
        &flags,
        &[("ISTHMUS_CLUSTER_NAME", "east")],
        Some("socket-lb: host\n"),
    )
    .unwrap()
    .print
    .unwrap();
    let line = |flag: &str| {
        printed
            .lines()
            .find(|line| line.contains(&format!("{flag}:")))
            .unwrap()
    };
    let words = |flag: &str| line(flag).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        words("cluster-name"),
        "cluster-name: east # name; ISTHMUS_CLUSTER_NAME"
    );
    assert_eq!(words("cluster-id"), "cluster-id: 7 # id; flag");
    assert_eq!(words("stale-after"), "stale-after: 3s # duration; default");
    assert_eq!(words("tls-ca"), "# tls-ca: # file; not set");
    assert!(
        words("socket-lb").starts_with("socket-lb: host # all or host; /")
            && line("socket-lb").ends_with("c.yaml:1")
    );
    assert_eq!(
        words("service-cidr"),
        "service-cidr: [10.0.0.0/8, 'fd00::/64'] # cidr; flag"
    );
    let again = read(&[], &[], Some(&printed)).unwrap().args;
    assert_eq!(again.common.cluster().unwrap().name.as_str(), "east");
    assert_eq!((again.service_cidr.len(), &*again.socket_lb), (2, "host"));
}

#[test]
fn a_cluster_has_a_name_and_an_id_and_tls_comes_whole() {
    let common = |flags: &[&str]| read(flags, &[], None).unwrap().args.common;
    assert!(
        common(&[])
            .cluster()
            .unwrap_err()
            .to_string()
            .starts_with("--cluster-name is missing")
    );
    assert!(
        common(&["--cluster-name=a"])
            .cluster()
            .unwrap_err()
            .to_string()
            .starts_with("--cluster-id is missing")
    );
    let cluster = common(&["--cluster-name=a", "--cluster-id=511"])
        .cluster()
        .unwrap();
    assert_eq!((cluster.name.as_str(), cluster.id.get()), ("a", 511));
    assert_eq!(common(&[]).tls.paths().unwrap(), None);
    assert!(
        common(&["--tls-ca=a", "--tls-key=b"])
            .tls
            .paths()
            .unwrap_err()
            .to_string()
            .starts_with("--tls-cert is missing")
    );
    assert!(
        common(&[])
            .tls
            .required("--mesh is not a unix socket")
            .is_err()
    );
    assert!(
        common(&["--tls-ca=a", "--tls-key=b", "--tls-cert=c"])
            .tls
            .required("")
            .is_ok()
    );
}
