//! The fuzz suite: every kept input first, then a search for others, guided by coverage, for a bounded time.
//!
//! The program is `tests/fuzz` with libFuzzer in it, built with the compiler's own instrumentation. What the search finds
//! new stays in `target/fuzz/corpus`, for the next search on this machine; what breaks a property is written to
//! `target/fuzz/found`, for a person to keep.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::tally::Tally;
use crate::command::{output, run, run_lines};
use crate::progress::{say, spoken_step};
use crate::tree::Tree;

const PACKAGE: &str = "isthmus-fuzz";

/// Coverage as libFuzzer counts it: every edge, and the operands of comparisons. A stable compiler takes them.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Seconds that one input may take on a busy machine, and the memory of the whole program.
const LIMITS: [&str; 2] = ["-timeout=20", "-rss_limit_mb=1024"];
/// Bytes of the longest input that is tried.
const LONGEST: &str = "-max_len=8192";

/// One target's turn.
struct Turn<'a> {
    tree: &'a Tree,
    program: &'a Path,
    /// As its directory of kept inputs is named.
    target: String,
}

/// An input under which a property does not hold, and what was said then.
#[derive(Debug, PartialEq, Eq)]
struct Broken {
    input: PathBuf,
    cause: String,
}

pub(super) fn run_for(tree: &Tree, search: Duration, tally: &mut Tally) -> Result<()> {
    let program = build(tree)?;
    let targets = names(&tree.root.join(CORPUS))?;
    ensure!(!targets.is_empty(), "{CORPUS} is empty");
    let seconds = (search.as_secs() / targets.len() as u64).max(1);
    let mut all = Vec::new();
    for target in targets {
        let turn = Turn {
            tree,
            program: &program,
            target,
        };
        let kept = turn.kept()?;
        let mut broken = turn.try_kept(&kept)?;
        // A kept input that breaks a property would end the search before it began.
        if broken.is_empty() {
            broken.extend(turn.search(seconds)?);
        }
        let passed = kept.len() + 1 - broken.len();
        let closing = format!("{passed} passed, {} failed, 0 skipped", broken.len());
        say(&closing);
        tally.name(&turn.target);
        tally.read(&closing);
        all.extend(broken.iter().map(|broken| turn.report(broken)));
    }
    ensure!(all.is_empty(), "{}", all.join("\n"));
    Ok(())
}

const CORPUS: &str = "tests/fuzz/corpus";

fn build(tree: &Tree) -> Result<PathBuf> {
    let host = host(&output(tree.cargo().arg("-vV"))?)?;
    let directory = tree.target.join("fuzz");
    let mut command = tree.cargo();
    // With a target, flags are for it alone: build scripts and derive macros stay as they are.
    command
        .args(["build", "--package", PACKAGE, "--bin", PACKAGE])
        .args(["--profile", "fuzz", "--target", &host, "--locked"])
        .arg("--target-dir")
        .arg(&directory)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    spoken_step("build: the search, with instrumented code", || {
        run(&mut command)
    })?;
    Ok(directory.join(host).join("fuzz").join(PACKAGE))
}

/// The machine's own target, in what `cargo -vV` says.
fn host(said: &str) -> Result<String> {
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("cargo does not say its host")?.to_owned())
}

/// What lies in a directory, in order.
fn names(directory: &Path) -> Result<Vec<String>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

impl Turn<'_> {
    fn corpora(&self) -> Vec<PathBuf> {
        let mut corpora = vec![self.tree.root.join(CORPUS).join(&self.target)];
        if self.target == "manifest" {
            corpora.push(self.tree.root.join("tests/manifests"));
        }
        corpora
    }

    fn kept(&self) -> Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        for directory in self.corpora() {
            kept.extend(names(&directory)?.iter().map(|name| directory.join(name)));
        }
        ensure!(!kept.is_empty(), "{} has no kept input", self.target);
        Ok(kept)
    }

    fn fuzzer(&self) -> Result<Command> {
        let found = self.tree.target.join("fuzz/found");
        fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        let mut command = self.tree.caller.user(self.program);
        command
            .current_dir(&self.tree.root)
            .env("ISTHMUS_FUZZ", &self.target)
            .args(LIMITS)
            .arg(format!(
                "-artifact_prefix={}/{}-",
                found.display(),
                self.target
            ));
        Ok(command)
    }

    /// Tries each kept input once; one that breaks a property ends the program, and the others go on in another.
    fn try_kept(&self, kept: &[PathBuf]) -> Result<Vec<Broken>> {
        let mut broken = Vec::new();
        let mut rest = kept;
        while !rest.is_empty() {
            let mut said = Vec::new();
            let status = run_lines(self.fuzzer()?.args(rest), |line| said.push(line.to_owned()))?;
            if status.success() {
                break;
            }
            let begun = said.iter().filter(|line| line.starts_with("Running: "));
            let Some(input) = begun.count().checked_sub(1).and_then(|at| rest.get(at)) else {
                bail!(
                    "the search of {} does not start: {}",
                    self.target,
                    cause(&said)
                );
            };
            broken.push(Broken {
                input: input.clone(),
                cause: cause(&said),
            });
            let done = rest.iter().position(|other| other == input).unwrap_or(0);
            rest = &rest[done + 1..];
        }
        say(&format!(
            "{}: {} kept inputs tried",
            self.target,
            kept.len()
        ));
        Ok(broken)
    }

    fn search(&self, seconds: u64) -> Result<Option<Broken>> {
        let own = self.tree.target.join("fuzz/corpus").join(&self.target);
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let mut command = self.fuzzer()?;
        command
            .args([LONGEST, "-print_final_stats=1"])
            .arg(format!("-max_total_time={seconds}"));
        let words = self
            .tree
            .root
            .join(format!("tests/fuzz/{}.dict", self.target));
        if words.is_file() {
            command.arg(format!("-dict={}", words.display()));
        }
        command.arg(own).args(self.corpora());
        let mut said = Vec::new();
        let status = run_lines(&mut command, |line| said.push(line.to_owned()))?;
        let statistic = |name: &str| {
            let line = said.iter().find_map(|line| line.strip_prefix(name));
            line.map_or("?", str::trim).to_owned()
        };
        say(&format!(
            "{}: {} inputs tried in {seconds} s, {} of them new, {} edges covered",
            self.target,
            statistic("stat::number_of_executed_units:"),
            statistic("stat::new_units_added:"),
            covered(&said),
        ));
        if status.success() {
            return Ok(None);
        }
        let written = said
            .iter()
            .find_map(|line| line.split_once("Test unit written to "));
        let Some((_, input)) = written else {
            bail!(
                "the search of {} ended badly: {}",
                self.target,
                cause(&said)
            );
        };
        Ok(Some(Broken {
            input: input.trim().into(),
            cause: cause(&said),
        }))
    }

    /// What a person needs to go on.
    fn report(&self, broken: &Broken) -> String {
        let (target, cause) = (&self.target, &broken.cause);
        let short = broken.input.strip_prefix(&self.tree.root);
        let input = short.unwrap_or(&broken.input).display();
        let mut report = format!(
            "{target}: {cause}\n  input: {input}\n  again: cargo run --package {PACKAGE} -- {target} {input}"
        );
        if !broken.input.starts_with(self.tree.root.join("tests")) {
            report.push_str(&format!(
                "\n  keep:  cp {input} {CORPUS}/{target}/    beside the change that mends it"
            ));
        }
        report
    }
}

/// Why the program ended: the message of a panic, or what libFuzzer calls it.
fn cause(said: &[String]) -> String {
    let panic = said
        .iter()
        .position(|line| line.contains(" panicked at "))
        .and_then(|at| Some(format!("{} ({})", said.get(at + 1)?, said.get(at)?)));
    let error = || {
        let line = said
            .iter()
            .find(|line| line.contains("ERROR: libFuzzer: "))?;
        Some(line.rsplit_once("ERROR: ")?.1.to_owned())
    };
    panic
        .or_else(error)
        .or_else(|| said.last().cloned())
        .unwrap_or_else(|| "it said nothing".to_owned())
}

/// Edges, in libFuzzer's last line of progress: `#9 DONE cov: 1234 ft: 5678 …`.
fn covered(said: &[String]) -> &str {
    let progress = said.iter().rev().find_map(|line| line.split_once(" cov: "));
    progress
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_cause_is_a_panics_message_before_libfuzzers_word() {
        let panicked = "#2\tINITED cov: 12 ft: 13 corp: 1/1b\nthread '<unnamed>' (7) panicked at src/a.rs:1:2:\nleft is not right\n==7== ERROR: libFuzzer: deadly signal";
        let said = lines(panicked);
        assert_eq!(
            cause(&said),
            "left is not right (thread '<unnamed>' (7) panicked at src/a.rs:1:2:)"
        );
        assert_eq!(covered(&said), "12");
        let slow = lines("==7== ERROR: libFuzzer: timeout after 20 seconds");
        assert_eq!(cause(&slow), "libFuzzer: timeout after 20 seconds");
        assert_eq!(
            (cause(&[]).as_str(), covered(&[])),
            ("it said nothing", "?")
        );
    }

    #[test]
    fn the_host_is_read_from_what_cargo_says() {
        let said = "cargo 1.95.0\nrelease: 1.95.0\nhost: x86_64-unknown-linux-gnu\n";
        assert_eq!(host(said).ok().as_deref(), Some("x86_64-unknown-linux-gnu"));
        assert!(host("cargo 1.95.0").is_err());
    }
}
