//! `cargo xtask test`: the suites, what each needs, and their closing lines together at the end.

mod boot;
mod fuzz;
mod initramfs;
mod kernel;
mod tally;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::build;
use crate::command::{line, output, run_lines};
use crate::metadata::Workspace;
use crate::progress::say;
use crate::root::Need;
use crate::setup::{Part, setup};
use crate::toolchain::Pins;
use crate::tree::Tree;
use tally::Tally;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Everything that needs no privilege.
    Unit,
    /// Decoders and state machines under kept inputs, then a search for others.
    Fuzz,
    /// Socket rows: one real socket call each, through the real programs.
    Rows,
    /// Scenarios on clusters of network namespaces.
    Lab,
    /// The socket rows again, on the oldest supported kernel and a newer one, booted for it.
    Kernel,
}

impl Suite {
    pub(crate) const ALL: [(&'static str, Self); 5] = [
        ("unit", Self::Unit),
        ("fuzz", Self::Fuzz),
        ("rows", Self::Rows),
        ("lab", Self::Lab),
        ("kernel", Self::Kernel),
    ];

    pub(crate) fn named(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|(known, _)| *known == name) {
            Some((_, suite)) => Ok(suite),
            None => bail!(
                "there is no suite {name:?}: unit, fuzz, rows, lab and kernel are, each with a --suite of its own"
            ),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(_, suite)| *suite == self)
            .map_or("", |(name, _)| name)
    }

    fn parts(self) -> &'static [Part] {
        match self {
            Self::Unit => &[Part::Build],
            Self::Fuzz => &[Part::Build, Part::Fuzz],
            Self::Rows | Self::Lab => &[Part::Build, Part::Lab],
            Self::Kernel => &[Part::Build, Part::Kernels],
        }
    }
}

/// The package that holds the tests with privileges, and its target that the rows and kernel suites run. All its other
/// test targets are the lab suite's, so that none can be forgotten.
const TESTS: &str = "isthmus-tests";
const ROWS: &str = "rows";

/// Which suites are to run, and how far two of them go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// All of them, if none is named.
    pub(crate) suites: Vec<Suite>,
    /// How long the fuzz suite searches.
    pub(crate) search: Duration,
    /// How many connects the lab suite makes through churn, if more than it does by itself.
    pub(crate) connects: Option<u64>,
}

/// What a suite did.
struct Report {
    suite: Suite,
    tally: Tally,
    /// What went wrong beside failed tests: a runner that ended badly, a missing privilege.
    faults: Vec<String>,
    taken: Duration,
}

/// Runs the suites, in their own order, all of them even if one fails.
pub(crate) fn test(tree: &Tree, pins: &Pins, wanted: &Wanted) -> Result<()> {
    let suites: Vec<Suite> = Suite::ALL
        .into_iter()
        .map(|(_, suite)| suite)
        .filter(|suite| wanted.suites.is_empty() || wanted.suites.contains(suite))
        .collect();
    let mut parts: Vec<Part> = suites
        .iter()
        .flat_map(|suite| suite.parts())
        .copied()
        .collect();
    parts.dedup();
    let pair = setup(tree, pins, &parts, false)?.context("every suite needs the eBPF compiler")?;
    let workspace = Workspace::read(tree)?;
    build::object(tree, &pair, false)?;
    if suites.contains(&Suite::Lab) {
        build::host(tree, &workspace, false)?;
    }
    let mut reports = Vec::new();
    for suite in suites {
        say(&format!("== suite {}", suite.name()));
        let begun = Instant::now();
        let mut tally = Tally::default();
        let outcome = match suite {
            Suite::Unit => unit(tree, &mut tally),
            Suite::Fuzz => fuzz::run_for(tree, wanted.search, &mut tally),
            Suite::Rows => privileged(tree, &[ROWS], &environment(&tree.root, None), &mut tally),
            Suite::Lab => {
                let environment = environment(&tree.root, wanted.connects);
                privileged(tree, &lab_targets(&workspace), &environment, &mut tally)
            }
            Suite::Kernel => kernel::run(tree, pins, &mut tally),
        };
        let mut faults: Vec<String> = outcome
            .err()
            .into_iter()
            .map(|error| format!("{error:#}"))
            .collect();
        if tally.passed == 0 {
            faults.push("not one test passed: a suite that runs nothing proves nothing".to_owned());
        }
        reports.push(Report {
            suite,
            tally,
            faults,
            taken: begun.elapsed(),
        });
    }
    tree.caller.give_back(&tree.target)?;
    close(&reports)
}

/// Every runner's closing line again, and one line a suite.
fn close(reports: &[Report]) -> Result<()> {
    say("\n== closing lines");
    for report in reports {
        for closing in &report.tally.closings {
            say(&format!("{:<7} {closing}", report.suite.name()));
        }
    }
    say("\n== suites");
    let mut failed = Vec::new();
    for Report {
        suite,
        tally,
        faults,
        taken,
    } in reports
    {
        let good = faults.is_empty() && tally.failed == 0;
        if !good {
            failed.push(suite.name());
        }
        say(&format!(
            "{:<7} {:<7} {:>5} passed {:>4} failed {:>4} left out {:>8.1} s",
            suite.name(),
            if good { "ok" } else { "FAILED" },
            tally.passed,
            tally.failed,
            tally.left_out,
            taken.as_secs_f64()
        ));
        for line in faults.iter().flat_map(|fault| fault.lines()) {
            say(&format!("        {line}"));
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn unit(tree: &Tree, tally: &mut Tally) -> Result<()> {
    let mut all_but_tests = tree.cargo();
    all_but_tests.args([
        "test",
        "--workspace",
        "--exclude",
        TESTS,
        "--no-fail-fast",
        "--locked",
    ]);
    let mut library_of_tests = tree.cargo();
    library_of_tests.args([
        "test",
        "--package",
        TESTS,
        "--lib",
        "--bins",
        "--no-fail-fast",
        "--locked",
    ]);
    let first = counted(&mut all_but_tests, tally);
    let second = counted(&mut library_of_tests, tally);
    first.and(second)
}

fn lab_targets(workspace: &Workspace) -> Vec<&str> {
    let targets = workspace
        .members
        .get(TESTS)
        .into_iter()
        .flat_map(|package| &package.targets);
    targets
        .filter(|target| target.kind == "test" && target.name != ROWS)
        .map(|target| target.name.as_str())
        .collect()
}

/// A login's usual limit of 1,024 open files is less than a test of thousands of live sockets needs, and only the hard
/// limit may be taken without asking: not every root may raise it.
const AS_MANY_FILES_AS_ALLOWED: &str = r#"ulimit -S -n "$(ulimit -H -n)" && exec "$0" "$@""#;

/// What the tests' programs read: sudo hands on nothing that is not named.
fn environment(root: &Path, connects: Option<u64>) -> Vec<(&'static str, OsString)> {
    let mut environment = vec![("CARGO_MANIFEST_DIR", root.join("tests").into_os_string())];
    environment.extend(connects.map(|n| ("ISTHMUS_CONNECTS", n.to_string().into())));
    environment
}

/// What root types where sudo gives none.
fn by_hand(environment: &[(&'static str, OsString)], tests: &Path, program: &Path) -> String {
    let pairs = environment.iter();
    let pairs: String = pairs
        .map(|(name, value)| format!("{name}={} ", value.to_string_lossy()))
        .collect();
    format!(
        "cd {} && ulimit -S -n $(ulimit -H -n) && {pairs}{} --test-threads=1",
        tests.display(),
        program.display()
    )
}

/// Builds each target as the person who called, then runs it as root, one test at a time.
fn privileged(
    tree: &Tree,
    targets: &[&str],
    environment: &[(&'static str, OsString)],
    tally: &mut Tally,
) -> Result<()> {
    ensure!(!targets.is_empty(), "{TESTS} has no such test target");
    let tests = tree.root.join("tests");
    let mut failed = Vec::new();
    for target in targets {
        let program = test_program(tree, target)?;
        let need = Need {
            reason: "to make network namespaces and load eBPF programs",
            by_hand: by_hand(environment, &tests, &program),
        };
        let mut command = tree.caller.root(&need, "sh", environment)?;
        command.args(["-c", AS_MANY_FILES_AS_ALLOWED]).arg(&program);
        command.current_dir(&tests).arg("--test-threads=1");
        if let Err(error) = counted(&mut command, tally) {
            failed.push(format!("{target}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Builds one test target and says where its program is.
fn test_program(tree: &Tree, target: &str) -> Result<PathBuf> {
    let mut command = tree.cargo();
    command.args([
        "test",
        "--package",
        TESTS,
        "--test",
        target,
        "--no-run",
        "--locked",
    ]);
    command.args(["--message-format", "json-render-diagnostics"]);
    command.stderr(std::process::Stdio::inherit());
    let messages = output(&mut command)?;
    executable(&messages, target).with_context(|| {
        format!(
            "{} named no program for the target {target}",
            line(&command)
        )
    })
}

fn executable(messages: &str, target: &str) -> Option<PathBuf> {
    let mut of_target = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let named = message.get("target")?.get("name")?.as_str()? == target;
        let test = message.get("profile")?.get("test")?.as_bool()?;
        (named && test).then(|| message.get("executable")?.as_str().map(PathBuf::from))?
    });
    of_target.next_back()
}

/// Runs a test runner, shows what it says, and counts by its closing lines.
fn counted(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let shown = line(command);
    say(&format!("-- {shown}"));
    let status = run_lines(command, |line| {
        say(line);
        tally.read(line);
    })?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_is_told_how_many_connects_also_where_sudo_drops_the_environment() {
        let root = Path::new("/r");
        let names = |connects| {
            environment(root, connects)
                .into_iter()
                .map(|(name, _)| name)
        };
        assert!(names(None).eq(["CARGO_MANIFEST_DIR"]));
        assert!(names(Some(1)).eq(["CARGO_MANIFEST_DIR", "ISTHMUS_CONNECTS"]));
        assert_eq!(
            by_hand(
                &environment(root, Some(10_000_000)),
                &root.join("tests"),
                Path::new("/t/lab-1")
            ),
            "cd /r/tests && ulimit -S -n $(ulimit -H -n) && CARGO_MANIFEST_DIR=/r/tests ISTHMUS_CONNECTS=10000000 \
             /t/lab-1 --test-threads=1"
        );
    }

    #[test]
    fn the_program_of_a_test_target_is_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"rows"},"profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"rows"},"profile":{"test":true},"executable":"/t/rows-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"lab"},"profile":{"test":true},"executable":"/t/lab-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        );
        assert_eq!(
            executable(messages, "rows"),
            Some(PathBuf::from("/t/rows-1"))
        );
        assert_eq!(executable(messages, "other"), None);
    }
}
