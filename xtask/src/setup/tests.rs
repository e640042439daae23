#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use super::found::Linker;
use super::*;
use crate::toolchain::Provided;

const ALL: [Part; 5] = [
    Part::Build,
    Part::Lab,
    Part::Fuzz,
    Part::Kernels,
    Part::Check,
];
const OPEN: Ways = Ways {
    rustup: true,
    apt: true,
};

fn compiler(pins: &Pins) -> Compiler {
    let (cargo, rustc) = ("/c/bin/cargo".into(), "/c/bin/rustc".into());
    Compiler {
        toolchain: Some("1.95.0".into()),
        cargo,
        rustc,
        release: pins.ebpf,
        llvm: pins.llvm,
        sources: true,
    }
}

fn linker(pins: &Pins, reads: &[&str]) -> Linker {
    Linker {
        path: "/t/bpf-linker".into(),
        version: pins.linker,
        reads: reads.iter().map(PathBuf::from).collect(),
    }
}

#[test]
fn a_ready_machine_needs_nothing() {
    let pins = Pins::read().unwrap();
    let found = Found {
        compilers: vec![compiler(&pins)],
        linkers: vec![linker(&pins, &["/c/bin/rustc"])],
        deny: true,
        ..Found::default()
    };
    assert_eq!(plan(&pins, &found, &ALL, OPEN), []);
    assert_eq!(
        found.pair(&pins, OPEN).unwrap().linker,
        PathBuf::from("/t/bpf-linker")
    );
}

#[test]
fn a_linker_that_cannot_read_the_compiler_is_replaced_with_only_the_packages_that_lack() {
    let pins = Pins::read().unwrap();
    let mut found = Found {
        compilers: vec![compiler(&pins)],
        linkers: vec![linker(&pins, &[])],
        ..Found::default()
    };
    let packages = Action::InstallPackages {
        names: pins.linker_packages.clone(),
    };
    let linker = Action::InstallLinker {
        version: pins.linker,
        llvm: pins.llvm,
    };
    assert_eq!(
        plan(&pins, &found, &[Part::Build], OPEN),
        [packages, linker.clone()]
    );
    found.installed_packages.clone_from(&pins.linker_packages);
    assert_eq!(plan(&pins, &found, &[Part::Build], OPEN), [linker]);
}

#[test]
fn a_bare_machine_tries_rustup_first_and_asks_for_root_once() {
    let pins = Pins::read().unwrap();
    let found = Found {
        missing_programs: vec![Provided {
            program: "nft".into(),
            package: "nftables".into(),
        }],
        missing_busybox: true,
        ..Found::default()
    };
    let actions = plan(&pins, &found, &ALL, OPEN);
    assert_eq!(actions[0], Action::AddToolchain { release: pins.ebpf });
    let roots = actions
        .iter()
        .filter(|action| matches!(action, Action::InstallPackages { .. }));
    assert_eq!(roots.count(), 1, "{actions:?}");

    let closed = Ways {
        rustup: false,
        apt: true,
    };
    let Action::InstallPackages { names } = &plan(&pins, &found, &ALL, closed)[0] else {
        panic!("no packages")
    };
    assert!(
        pins.compiler_packages
            .iter()
            .all(|name| names.contains(name))
            && names.contains(&"nftables".to_owned())
    );
}

#[test]
fn without_any_way_the_commands_are_said() {
    let pins = Pins::read().unwrap();
    let nothing = Ways {
        rustup: false,
        apt: false,
    };
    let actions = plan(&pins, &Found::default(), &[Part::Build], nothing);
    let [Action::Stop { way_out }] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert!(
        way_out.contains("rustup toolchain install") && way_out.contains("rustc-web"),
        "{way_out}"
    );
}

#[test]
fn a_package_that_two_parts_want_is_named_once() {
    let pins = Pins::read().unwrap();
    let ip = || Provided {
        program: "ip".into(),
        package: "iproute2".into(),
    };
    let found = Found {
        missing_programs: vec![ip(), ip()],
        ..Found::default()
    };
    let names = vec!["iproute2".to_owned()];
    assert_eq!(
        plan(&pins, &found, &[Part::Lab, Part::Kernels], OPEN),
        [Action::InstallPackages { names }]
    );
}
