//! The lines of `demo`, `lab` and `bench`, which other programs answer once they are built: what is wrong is said before.
//!
//! Paths are made absolute: those programs run in the repository's root, and the reader may be elsewhere.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use lexopt::{Arg, Parser, ValueExt as _};

use super::{Asked, number};
use crate::help;
use crate::lab::Program;

pub(super) fn demo(mut parser: Parser) -> Result<Asked> {
    let mut arguments = vec!["demo".into()];
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long(flag @ ("keep" | "json")) => arguments.push(format!("--{flag}").into()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(asked(Program::Lab, arguments))
}

pub(super) fn bench(mut parser: Parser, here: &Path) -> Result<Asked> {
    let mut arguments = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("json") => arguments.push("--json".into()),
            Arg::Long("batches") => {
                let batches = number(&mut parser, "--batches")?;
                arguments.extend(["--batches".into(), batches.to_string().into()]);
            }
            Arg::Long("out") => {
                let out = here.join(parser.value()?);
                arguments.extend(["--out".into(), out.into_os_string()]);
            }
            Arg::Value(name) => {
                let name = name.string()?;
                let known = || help::budgets().any(|budget| budget.eq_ignore_ascii_case(&name));
                ensure!(
                    known(),
                    "there is no budget {name:?}: {} are",
                    help::budgets().collect::<Vec<_>>().join(", ")
                );
                arguments.push(name.into());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(asked(Program::Bench, arguments))
}

pub(super) fn lab(mut parser: Parser, here: &Path) -> Result<Asked> {
    let verb = match parser.next()? {
        Some(Arg::Value(verb)) => verb.string()?,
        None => bail!("lab needs one of up, down, exec and status"),
        Some(other) => return Err(other.unexpected().into()),
    };
    match verb.as_str() {
        "up" => up(parser, here),
        "exec" => exec(parser),
        "down" | "status" => {
            let mut arguments = vec![OsString::from(&verb)];
            while let Some(argument) = parser.next()? {
                match argument {
                    Arg::Value(name) if arguments.len() == 1 => arguments.push(name),
                    other => return Err(other.unexpected().into()),
                }
            }
            Ok(asked(Program::LabOnly, arguments))
        }
        other => bail!("lab has no {other:?}: up, down, exec and status are"),
    }
}

fn up(mut parser: Parser, here: &Path) -> Result<Asked> {
    let (mut file, mut arguments) = (None, vec!["up".into()]);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("name") => arguments.extend(["--name".into(), parser.value()?]),
            Arg::Long(flag @ ("bare" | "foreground")) => {
                arguments.push(format!("--{flag}").into());
            }
            Arg::Value(path) if file.is_none() => file = Some(here.join(path)),
            other => return Err(other.unexpected().into()),
        }
    }
    let file: PathBuf =
        file.context("lab up needs a FILE: tests/labs/two-clusters.yaml is one to begin with")?;
    arguments.insert(1, file.clone().into_os_string());
    Ok(Asked::Program {
        program: Program::Lab,
        arguments,
        file: Some(file),
    })
}

/// What is behind `--` is somebody else's line.
fn exec(mut parser: Parser) -> Result<Asked> {
    let words: Vec<OsString> = parser.raw_args()?.collect();
    let mut halves = words.splitn(2, |word| word == "--");
    let place = halves.next().unwrap_or_default();
    let command = halves.next().unwrap_or_default();
    ensure!(
        place.len() == 2 && !command.is_empty(),
        "lab exec needs a lab, a node or pod of it, and behind -- a command: lab exec demo east-1 -- ss -tn"
    );
    let arguments = std::iter::once("exec".into()).chain(words).collect();
    Ok(asked(Program::LabOnly, arguments))
}

fn asked(program: Program, arguments: Vec<OsString>) -> Asked {
    Asked::Program {
        program,
        arguments,
        file: None,
    }
}
