#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use super::*;

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}

/// Said in a directory below the repository's root.
fn asked(line: &str) -> Result<Asked> {
    parse(words(line), Path::new("/r/tests"))
}

fn program(program: Program, line: &str) -> Asked {
    Asked::Program {
        program,
        arguments: words(line),
        file: None,
    }
}

fn wanted(suites: &[Suite]) -> Wanted {
    Wanted {
        suites: suites.to_vec(),
        search: FUZZ,
        connects: None,
    }
}

#[test]
fn the_command_line_is_understood() {
    for (line, wanted) in [
        ("", Asked::Help(help::ALL)),
        ("--help", Asked::Help(help::ALL)),
        (
            "setup lab --dry-run",
            Asked::Setup {
                parts: vec![Part::Lab],
                dry_run: true,
            },
        ),
        (
            "build --release",
            Asked::Build {
                release: true,
                log: false,
            },
        ),
        (
            "build --log",
            Asked::Build {
                release: false,
                log: true,
            },
        ),
        ("check", Asked::Check),
        ("codegen", Asked::Codegen),
        (
            "test --suite unit --suite=rows",
            Asked::Test(wanted(&[Suite::Unit, Suite::Rows])),
        ),
        (
            "test --suite fuzz --fuzz-seconds 600",
            Asked::Test(Wanted {
                search: Duration::from_secs(600),
                ..wanted(&[Suite::Fuzz])
            }),
        ),
        (
            "test --connects 10000000",
            Asked::Test(Wanted {
                connects: Some(10_000_000),
                ..wanted(&[])
            }),
        ),
        ("test", Asked::Test(wanted(&[]))),
        (
            "demo --keep --json",
            program(Program::Lab, "demo --keep --json"),
        ),
        (
            "bench g1 Deaths --json --batches 3",
            program(Program::Bench, "g1 Deaths --json --batches 3"),
        ),
        ("lab down l", program(Program::LabOnly, "down l")),
        ("lab status", program(Program::LabOnly, "status")),
        (
            "lab exec l east-1 -- ls --help",
            program(Program::LabOnly, "exec l east-1 -- ls --help"),
        ),
    ] {
        assert_eq!(asked(line).unwrap(), wanted, "{line}");
    }
}

#[test]
fn a_path_is_meant_from_where_the_reader_is() {
    for (given, meant) in [
        ("labs/l.yaml", "/r/tests/labs/l.yaml"),
        ("../l.yaml", "/r/tests/../l.yaml"),
        ("/l.yaml", "/l.yaml"),
    ] {
        let up = asked(&format!("lab up --bare {given} --name l --foreground")).unwrap();
        let wanted = Asked::Program {
            program: Program::Lab,
            arguments: words(&format!("up {meant} --bare --name l --foreground")),
            file: Some(PathBuf::from(meant)),
        };
        assert_eq!(up, wanted, "{given}");
    }
    assert_eq!(
        asked("bench --out o").unwrap(),
        program(Program::Bench, "--out /r/tests/o")
    );
}

#[test]
fn every_command_has_its_page_and_no_mistake_hides_it() {
    for line in [
        "test --help",
        "test --suite nonsense -h",
        "help test",
        "--help test",
    ] {
        assert_eq!(
            asked(line).unwrap(),
            Asked::Help(help::page("test").unwrap()),
            "{line}"
        );
    }
    assert_eq!(
        asked("lab exec --help").unwrap(),
        Asked::Help(help::page("lab").unwrap())
    );
}

#[test]
fn what_is_not_understood_is_named_with_the_way_out() {
    for (line, named, way_out) in [
        ("biuld", "biuld", "cargo xtask COMMAND"),
        ("--keep", "--keep", "cargo xtask COMMAND"),
        ("help biuld", "biuld", "cargo xtask COMMAND"),
        (
            "test --suite units",
            "units",
            "unit, fuzz, rows, lab and kernel",
        ),
        (
            "test --suite unit,rows",
            "unit,rows",
            "a --suite of its own",
        ),
        (
            "test --suite unit rows",
            "a suite comes behind",
            "--suite rows",
        ),
        ("test --suite", "--suite", "cargo xtask test --help"),
        ("test --fuzz-seconds 1m", "--fuzz-seconds \"1m\"", "number"),
        (
            "test --fuzz-seconds 0",
            "--fuzz-seconds 0",
            "a second at least",
        ),
        (
            "test --suite lab --fuzz-seconds 9",
            "--fuzz-seconds",
            "--suite fuzz",
        ),
        ("test --connects", "--connects", "cargo xtask test --help"),
        ("test --connects many", "--connects \"many\"", "number"),
        ("test --connects -5", "--connects \"-5\"", "number"),
        (
            "test --connects 99999999999999999999",
            "too large",
            "--connects",
        ),
        ("test --connects 999999", "999999", "1000000"),
        (
            "test --suite rows --connects 1000000",
            "--connects",
            "--suite lab",
        ),
        ("setup kernel", "kernel", "kernels"),
        ("setup --dry", "--dry", "cargo xtask setup --help"),
        ("build -r", "-r", "cargo xtask build --help"),
        ("check --fast", "--fast", "cargo xtask check --help"),
        ("codegen x", "x", "cargo xtask codegen --help"),
        ("demo --jsn", "--jsn", "cargo xtask demo --help"),
        ("lab", "lab needs", "up, down, exec and status"),
        ("lab upp f", "upp", "up, down, exec and status"),
        ("lab up", "FILE", "tests/labs/two-clusters.yaml"),
        ("lab up a.yaml b.yaml", "b.yaml", "cargo xtask lab --help"),
        ("lab up a.yaml --name", "--name", "cargo xtask lab --help"),
        ("lab down a b", "b", "cargo xtask lab --help"),
        (
            "lab exec l east-1 ls",
            "behind --",
            "lab exec demo east-1 -- ss",
        ),
        (
            "lab exec l -- ls",
            "a node or pod",
            "lab exec demo east-1 -- ss",
        ),
        (
            "lab exec l east-1 --",
            "a command",
            "lab exec demo east-1 -- ss",
        ),
        ("bench G99", "G99", "G1, G2, G3"),
        ("bench --batches x", "--batches \"x\"", "number"),
        ("bench --batches", "--batches", "cargo xtask bench --help"),
        ("bench --fast", "--fast", "cargo xtask bench --help"),
    ] {
        let report = format!("{:#}", asked(line).unwrap_err());
        assert!(report.contains(named), "{line}: {report}");
        assert!(report.contains(way_out), "{line}: {report}");
    }
}

/// Every option that a page names is taken.
#[test]
fn the_pages_promise_what_is_understood() {
    for (command, lines) in [
        ("demo", &["demo --keep --json"][..]),
        ("lab", &["lab up f --name n --bare --foreground"]),
        (
            "test",
            &["test --suite lab --suite fuzz --fuzz-seconds 1 --connects 1000000"],
        ),
        ("check", &[]),
        ("bench", &["bench --json --batches 1 --out d"]),
        ("build", &["build --release --log"]),
        ("codegen", &[]),
        ("setup", &["setup --dry-run"]),
    ] {
        let taken: Vec<OsString> = lines.iter().flat_map(|line| words(line)).collect();
        for line in lines {
            asked(line).unwrap();
        }
        let page = help::page(command).unwrap();
        let options = page
            .split(|c: char| !(c.is_ascii_lowercase() || c == '-'))
            .filter(|word| word.starts_with("--") && word.len() > 2);
        for option in options {
            // Of another program, or of the command to build with.
            let told = command == "bench" && option == "--release";
            assert!(
                told || taken.iter().any(|word| word == option),
                "{command}: {option}"
            );
        }
    }
}

#[test]
fn a_lab_file_must_be_there() {
    let missing = crate::lab::must_be_there(Path::new("/nowhere/l.yaml")).unwrap_err();
    let report = format!("{missing:#}");
    assert!(
        report.contains("/nowhere/l.yaml") && report.contains("tests/labs"),
        "{report}"
    );
    let directory = crate::lab::must_be_there(Path::new("/")).unwrap_err();
    assert!(directory.to_string().contains("directory"), "{directory}");
    crate::lab::must_be_there(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("Cargo.toml")
            .as_path(),
    )
    .unwrap();
}
