//! `cargo xtask`: the one door for people.

mod build;
mod check;
mod command;
mod lab;
mod metadata;
mod progress;
mod root;
mod setup;
mod suite;
mod toolchain;
mod tree;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};
use lexopt::{Arg, Parser, ValueExt as _};

use lab::Program;
use progress::say;
use setup::Part;
use suite::Suite;
use toolchain::Pins;
use tree::Tree;

const HELP: &str = "\
cargo xtask COMMAND: build, see, test and measure Isthmus

  demo [--keep] [--json]         two clusters in network namespaces, and a story told on them
  lab up FILE | down | exec | status
                                 keep a lab of your own running
  test [--suite NAME]...         unit, fuzz, rows, lab, kernel; all of them without --suite
       [--fuzz-seconds N]        how long the fuzz suite searches, 75 unless said
  check                          format, lints, layers, licences, generated code, docs
  bench [NAME]... [--json]       the numbers of the README, measured here
  build [--release] [--log]      the eBPF programs, then the binaries; with --log the programs say what they do,
                                 in the log of an agent with RUST_LOG=debug
  codegen                        write the generated protocol code anew
  setup [PART]... [--dry-run]    find or bring what is needed: build, lab, fuzz, kernels, check; all of them without a part

Every command sets up what it needs. It compiles as you, and asks for root for packages and for the lab only.
";

/// How long the fuzz suite searches, unless said otherwise.
const FUZZ: Duration = Duration::from_secs(75);

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Help,
    Setup {
        parts: Vec<Part>,
        dry_run: bool,
    },
    Build {
        release: bool,
        log: bool,
    },
    Check,
    Test {
        suites: Vec<Suite>,
        search: Duration,
    },
    Codegen,
    /// A command that another program answers.
    Program {
        program: Program,
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let asked = match parse(std::env::args_os().skip(1)) {
        Ok(asked) => asked,
        Err(error) => {
            say(&format!("Error: {error:#}\n\n{HELP}"));
            return ExitCode::from(2);
        }
    };
    match run(asked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("Error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked> {
    let mut parser = Parser::from_args(arguments);
    let command = match parser.next()? {
        None | Some(Arg::Long("help") | Arg::Short('h')) => return Ok(Asked::Help),
        Some(Arg::Value(command)) => command.string()?,
        Some(other) => return Err(other.unexpected().into()),
    };
    match command.as_str() {
        "help" => Ok(Asked::Help),
        "lab" => {
            let arguments: Vec<OsString> = parser.raw_args()?.collect();
            let first = arguments
                .first()
                .context("lab needs one of up, down, exec, status")?;
            let program = if first == "up" {
                Program::Lab
            } else {
                Program::LabOnly
            };
            Ok(Asked::Program { program, arguments })
        }
        "demo" => {
            let arguments = std::iter::once(OsString::from(command))
                .chain(parser.raw_args()?)
                .collect();
            Ok(Asked::Program {
                program: Program::Lab,
                arguments,
            })
        }
        "bench" => {
            let arguments = parser.raw_args()?.collect();
            Ok(Asked::Program {
                program: Program::Bench,
                arguments,
            })
        }
        "setup" => {
            let (mut parts, mut dry_run) = (Vec::new(), false);
            while let Some(argument) = parser.next()? {
                match argument {
                    Arg::Long("dry-run") => dry_run = true,
                    Arg::Value(part) => parts.push(Part::named(&part.string()?)?),
                    other => return Err(other.unexpected().into()),
                }
            }
            if parts.is_empty() {
                parts.extend(Part::ALL.map(|(_, part)| part));
            }
            Ok(Asked::Setup { parts, dry_run })
        }
        "build" => {
            let (mut release, mut log) = (false, false);
            while let Some(argument) = parser.next()? {
                match argument {
                    Arg::Long("release") => release = true,
                    Arg::Long("log") => log = true,
                    other => return Err(other.unexpected().into()),
                }
            }
            Ok(Asked::Build { release, log })
        }
        "test" => {
            let (mut suites, mut search) = (Vec::new(), FUZZ);
            while let Some(argument) = parser.next()? {
                match argument {
                    Arg::Long("suite") => suites.push(Suite::named(&parser.value()?.string()?)?),
                    Arg::Long("fuzz-seconds") => {
                        search = Duration::from_secs(parser.value()?.parse()?);
                    }
                    other => return Err(other.unexpected().into()),
                }
            }
            Ok(Asked::Test { suites, search })
        }
        "check" | "codegen" => match parser.next()? {
            None if command == "check" => Ok(Asked::Check),
            None => Ok(Asked::Codegen),
            Some(other) => Err(other.unexpected().into()),
        },
        other => Err(Error::msg(format!("there is no command {other:?}"))),
    }
}

fn run(asked: Asked) -> Result<()> {
    if asked == Asked::Help {
        use std::io::Write as _;
        return Ok(std::io::stdout().write_all(HELP.as_bytes())?);
    }
    let (tree, pins) = (Tree::find()?, Pins::read()?);
    tree.caller.give_back(&tree.target)?;
    match asked {
        Asked::Help => Ok(()),
        Asked::Setup { parts, dry_run } => setup::setup(&tree, &pins, &parts, dry_run).map(drop),
        Asked::Build { release, log } => {
            let pair = setup::setup(&tree, &pins, &[Part::Build], false)?
                .context("setup left no compiler")?;
            build::object(&tree, &pair, log)?;
            build::host(&tree, &metadata::Workspace::read(&tree)?, release)
        }
        Asked::Check => {
            let pair = setup::setup(&tree, &pins, &[Part::Build, Part::Check], false)?
                .context("setup left no compiler")?;
            build::object(&tree, &pair, false)?;
            check::check(&tree, &pins)
        }
        Asked::Test { suites, search } => suite::test(&tree, &pins, &suites, search),
        Asked::Codegen => check::generated(&tree, false),
        Asked::Program { program, arguments } => {
            lab::become_program(&tree, &pins, program, &arguments)
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    fn asked(line: &str) -> Result<Asked> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_command_line_is_understood() {
        let words = |line: &str| {
            line.split_whitespace()
                .map(OsString::from)
                .collect::<Vec<_>>()
        };
        for (line, wanted) in [
            ("", Asked::Help),
            ("--help", Asked::Help),
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
            (
                "test --suite unit --suite=rows",
                Asked::Test {
                    suites: vec![Suite::Unit, Suite::Rows],
                    search: FUZZ,
                },
            ),
            (
                "test --suite fuzz --fuzz-seconds 600",
                Asked::Test {
                    suites: vec![Suite::Fuzz],
                    search: Duration::from_secs(600),
                },
            ),
            (
                "test",
                Asked::Test {
                    suites: vec![],
                    search: FUZZ,
                },
            ),
            (
                "demo --keep --json",
                Asked::Program {
                    program: Program::Lab,
                    arguments: words("demo --keep --json"),
                },
            ),
            (
                "bench G1 --json",
                Asked::Program {
                    program: Program::Bench,
                    arguments: words("G1 --json"),
                },
            ),
            (
                "lab up f.yaml",
                Asked::Program {
                    program: Program::Lab,
                    arguments: words("up f.yaml"),
                },
            ),
            (
                "lab exec l east-1 -- ls -l",
                Asked::Program {
                    program: Program::LabOnly,
                    arguments: words("exec l east-1 -- ls -l"),
                },
            ),
        ] {
            assert_eq!(asked(line).unwrap(), wanted, "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (line, word) in [
            ("biuld", "biuld"),
            ("test --suite units", "units"),
            ("setup kernel", "kernel"),
            ("check --fast", "--fast"),
            ("lab", "up"),
        ] {
            let report = asked(line).unwrap_err().to_string();
            assert!(report.contains(word), "{line}: {report}");
        }
    }
}
