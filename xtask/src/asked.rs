//! The command line, understood whole before anything is looked for or built: a mistake costs the reader no minutes.

mod world;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use lexopt::{Arg, Parser, ValueExt as _};

use crate::help;
use crate::lab::Program;
use crate::setup::Part;
use crate::suite::{Suite, Wanted};

/// How long the fuzz suite searches, unless said otherwise.
const FUZZ: Duration = Duration::from_secs(75);
/// Connects that the lab suite makes through churn, unless more are asked for: fewer would be another, weaker test.
const LEAST_CONNECTS: u64 = 1_000_000;

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A page to print.
    Help(&'static str),
    Setup {
        parts: Vec<Part>,
        dry_run: bool,
    },
    Build {
        release: bool,
        log: bool,
    },
    Check,
    Test(Wanted),
    Codegen,
    /// A command that another program answers.
    Program {
        program: Program,
        arguments: Vec<OsString>,
        /// Is read by it, and so must be there.
        file: Option<PathBuf>,
    },
}

/// Understands the words behind `cargo xtask`, said in the directory `here`. An error says what to read.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>, here: &Path) -> Result<Asked> {
    let mut words = words.into_iter();
    let Some(first) = words.next() else {
        return Ok(Asked::Help(help::ALL));
    };
    let rest: Vec<OsString> = words.collect();
    let first = first.to_string_lossy();
    let no_command =
        |name: &str| Error::msg(format!("there is no command {name:?}\n\n{}", help::ALL));
    match (first.as_ref(), rest.first()) {
        ("help" | "--help" | "-h", None) => return Ok(Asked::Help(help::ALL)),
        ("help" | "--help" | "-h", Some(command)) => {
            let command = command.to_string_lossy();
            let page = help::page(&command).ok_or_else(|| no_command(&command))?;
            return Ok(Asked::Help(page));
        }
        _ => {}
    }
    let page = help::page(&first).ok_or_else(|| no_command(&first))?;
    let mut own = rest.iter().take_while(|word| *word != "--");
    if own.any(|word| word == "--help" || word == "-h") {
        return Ok(Asked::Help(page));
    }
    let parser = Parser::from_args(rest);
    let asked = match first.as_ref() {
        "demo" => world::demo(parser),
        "lab" => world::lab(parser, here),
        "bench" => world::bench(parser, here),
        "test" => test(parser),
        "setup" => setup(parser),
        "build" => build(parser),
        "check" => alone(parser, Asked::Check),
        _ => alone(parser, Asked::Codegen),
    };
    asked.map_err(|error| {
        Error::msg(format!(
            "{error:#}\n`cargo xtask {first} --help` says what it takes"
        ))
    })
}

fn test(mut parser: Parser) -> Result<Asked> {
    let (mut suites, mut search, mut connects) = (Vec::new(), None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("suite") => suites.push(Suite::named(&parser.value()?.string()?)?),
            Arg::Long("fuzz-seconds") => search = Some(number(&mut parser, "--fuzz-seconds")?),
            Arg::Long("connects") => connects = Some(number(&mut parser, "--connects")?),
            Arg::Value(name) => {
                let suite = Suite::named(&name.string()?)?.name();
                bail!("a suite comes behind --suite, each with its own: --suite {suite}");
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let runs = |suite| suites.is_empty() || suites.contains(&suite);
    for (option, given, suite) in [
        ("--fuzz-seconds", search.is_some(), Suite::Fuzz),
        ("--connects", connects.is_some(), Suite::Lab),
    ] {
        ensure!(
            !given || runs(suite),
            "{option} is the {name} suite's, which is not to run: add --suite {name}",
            name = suite.name()
        );
    }
    ensure!(
        search != Some(0),
        "--fuzz-seconds 0 is no search: a second at least"
    );
    ensure!(
        connects.is_none_or(|connects| connects >= LEAST_CONNECTS),
        "--connects {} is fewer than {LEAST_CONNECTS}, which are made without it: the test would be a weaker one",
        connects.unwrap_or_default()
    );
    Ok(Asked::Test(Wanted {
        suites,
        search: search.map_or(FUZZ, Duration::from_secs),
        connects,
    }))
}

fn setup(mut parser: Parser) -> Result<Asked> {
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

fn build(mut parser: Parser) -> Result<Asked> {
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

/// A command without arguments.
fn alone(mut parser: Parser, asked: Asked) -> Result<Asked> {
    match parser.next()? {
        None => Ok(asked),
        Some(other) => Err(other.unexpected().into()),
    }
}

/// The number behind an option.
fn number(parser: &mut Parser, option: &str) -> Result<u64> {
    let text = parser.value()?.string()?;
    text.parse()
        .with_context(|| format!("{option} {text:?} is not a whole number"))
}
