//! Counting tests by what their runners say last.

/// What the closing lines seen so far add up to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    /// Ignored by their authors, or by a filter.
    pub(super) left_out: u64,
    /// The closing lines, each behind the runner that said it.
    pub(super) closings: Vec<String>,
    runner: String,
}

impl Tally {
    /// Reads one line of a runner's output.
    pub(super) fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(runner) = runner(line) {
            self.runner = runner;
        } else if let Some([passed, failed, left_out]) = counts(line) {
            self.passed += passed;
            self.failed += failed;
            self.left_out += left_out;
            if passed + failed + left_out > 0 {
                self.closings.push(if self.runner.is_empty() {
                    line.to_owned()
                } else {
                    format!("{}: {line}", self.runner)
                });
            }
        }
    }

    /// Names the runner of the lines to come.
    pub(super) fn name(&mut self, runner: &str) {
        runner.clone_into(&mut self.runner);
    }
}

/// Cargo says which program it starts: `Running tests/rows.rs (target/debug/deps/rows-0123)`, `Doc-tests isthmus_core`.
fn runner(line: &str) -> Option<String> {
    if let Some(package) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{package} docs"));
    }
    let (source, program) = line.strip_prefix("Running ")?.rsplit_once(" (")?;
    let name = program
        .trim_end_matches(')')
        .rsplit('/')
        .next()?
        .rsplit_once('-')?
        .0;
    Some(format!("{name} {}", source.rsplit(' ').next()?))
}

/// The counts in `test result: ok. 3 passed; 0 failed; 1 ignored; …` and in `3 passed, 0 failed, 1 skipped`.
fn counts(line: &str) -> Option<[u64; 3]> {
    let words: Vec<&str> = line
        .split([' ', ';', ','])
        .filter(|word| !word.is_empty())
        .collect();
    let at = words.iter().position(|word| *word == "passed")?;
    let number = |index: usize| words.get(index)?.parse::<u64>().ok();
    let left_out = ["ignored", "skipped"].contains(words.get(at + 4)?);
    (words.get(at + 2) == Some(&"failed") && left_out).then_some([
        number(at.checked_sub(1)?)?,
        number(at + 1)?,
        number(at + 3)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_closing_lines_are_counted_under_their_runner() {
        let mut tally = Tally::default();
        for line in [
            "     Running unittests src/lib.rs (target/debug/deps/isthmus_core-6d1f)",
            "test desired::tests::many_passed ... ok",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "   Doc-tests isthmus_core",
            "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "     Running tests/rows.rs (target/debug/deps/rows-77)",
            "30 passed, 2 failed, 0 skipped",
        ] {
            tally.read(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.left_out), (42, 2, 1));
        assert_eq!(tally.closings.len(), 2, "{:?}", tally.closings);
        assert!(
            tally.closings[0].starts_with("isthmus_core src/lib.rs: test result: ok. 12"),
            "{:?}",
            tally.closings
        );
        assert_eq!(
            tally.closings[1],
            "rows tests/rows.rs: 30 passed, 2 failed, 0 skipped"
        );
    }

    #[test]
    fn what_a_test_says_of_itself_is_not_counted() {
        for line in [
            "3 passed",
            "test a_row_of_2_passed, 1 failed ... ok",
            "passed 3 failed 4 skipped",
        ] {
            assert_eq!(counts(line), None, "{line}");
        }
    }
}
