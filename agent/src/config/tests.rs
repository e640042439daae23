#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::ffi::OsString;

use isthmus_mesh::config::load_from;

use super::*;

fn args(flags: &[&str]) -> Result<AgentArgs, ConfigError> {
    let given = [
        "isthmus-agent",
        "--cluster-name=east",
        "--cluster-id=1",
        "--node-name=n1",
    ];
    let all = given.iter().chain(flags).map(OsString::from);
    load_from(all, |_| None).map(|loaded| loaded.args)
}

#[test]
fn defaults_are_those_of_the_contract() {
    let args = args(&[]).unwrap();
    args.validate().unwrap();
    assert_eq!(args.common.source.to_string(), "dir:/etc/isthmus/manifests");
    assert_eq!(
        args.service_cidr
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.96.0.0/12", "fd00:10:96::/108"]
    );
    assert_eq!(
        (args.services, args.socket_lb, args.refuse),
        (Services::All, SocketLb::All, Refuse::Refused)
    );
    assert_eq!((args.mesh.clone(), args.cgroup.clone()), (None, None));
    assert_eq!(args.bpffs_dir().to_str(), Some("/sys/fs/bpf/isthmus/n1"));
    assert_eq!(args.state_dir.to_str(), Some("/var/lib/isthmus/agent"));
    assert_eq!(
        (args.socket.to_str(), &*args.socket_group),
        (Some("/run/isthmus/agent.sock"), "root")
    );
    assert_eq!(args.http, "127.0.0.1:9970");
    assert_eq!(
        (args.peer_stale_after, args.cluster_ttl),
        (Duration::from_secs(3), Duration::from_secs(300))
    );
    assert_eq!(
        (
            args.lb_services_max,
            args.lb_backends_max,
            args.lb_ring_slots_max,
            args.lb_affinity_max
        ),
        (65536, 65536, 262_144, 65536)
    );
}

#[test]
fn what_is_wrong_names_its_flag() {
    let rows: &[(&[&str], &str)] = &[
        (
            &["--mesh=mesh.east:4260"],
            "--tls-ca, --tls-cert and --tls-key are required",
        ),
        (&["--tls-cert=a"], "--tls-ca is missing"),
        (&["--node-name=a/b"], "--node-name \"a/b\" is no name"),
        (&["--peer-stale-after=0s"], "--peer-stale-after 0"),
        (
            &["--cluster-ttl=1s"],
            "--cluster-ttl 1s is less than --peer-stale-after 3s",
        ),
        (
            &["--lb-ring-slots-max=64"],
            "--lb-ring-slots-max 64 is less than --lb-backends-max 65536",
        ),
        (
            &["--service-cidr=10.0.0.0/24,10.0.1.0/24,10.0.2.0/24,10.0.3.0/24,10.0.4.0/24"],
            "--service-cidr has 5 ranges",
        ),
        (
            &["--socket", &format!("/{}", "x".repeat(107))],
            "--socket is 108 bytes",
        ),
    ];
    for (flags, wanted) in rows {
        let flags: Vec<_> = flags
            .iter()
            .copied()
            .filter(|flag| !flag.starts_with("--node-name"))
            .collect();
        let error = match flags.as_slice() {
            [] => {
                let args = [
                    "isthmus-agent",
                    "--cluster-name=e",
                    "--cluster-id=1",
                    "--node-name=a/b",
                ];
                let loaded =
                    load_from::<AgentArgs>(args.iter().map(OsString::from), |_| None).unwrap();
                loaded.args.validate().unwrap_err()
            }
            flags => args(flags).unwrap().datapath().unwrap_err(),
        };
        assert!(error.to_string().starts_with(wanted), "{error}");
    }
    for flags in [
        &["--service-cidr=10.96.0.1/12"],
        &["--service-cidr=10.0.0.0/31"],
        &["--http=localhost:1"],
        &["--lb-services-max=1"],
    ] {
        assert!(args(flags).is_err(), "{flags:?}");
    }
    args(&["--mesh=unix:/run/isthmus/mesh.sock"])
        .unwrap()
        .validate()
        .unwrap();
}

#[test]
fn cleanup_needs_no_cluster_and_takes_the_flags_that_name_the_node() {
    let flags = ["isthmus-agent", "cleanup", "--node-name", "ip-10.example"];
    let loaded = load_from::<AgentArgs>(flags.iter().map(OsString::from), |_| None).unwrap();
    assert_eq!(loaded.args.command, Some(AgentCommand::Cleanup));
    assert_eq!(
        loaded.args.bpffs_dir().to_str(),
        Some("/sys/fs/bpf/isthmus/ip-10_example")
    );
    let variable = |name: &str| (name == "ISTHMUS_BPFFS").then(|| "/sys/fs/bpf/x".into());
    let loaded = load_from::<AgentArgs>(
        ["isthmus-agent", "cleanup"].iter().map(OsString::from),
        variable,
    )
    .unwrap();
    assert_eq!(loaded.args.bpffs_dir().to_str(), Some("/sys/fs/bpf/x"));
}

#[test]
fn every_flag_is_described() {
    use clap::CommandFactory;
    let command = AgentArgs::command();
    command.clone().debug_assert();
    for arg in command.get_arguments() {
        assert!(arg.get_help().is_some(), "{}", arg.get_id());
    }
}
