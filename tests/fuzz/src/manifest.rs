//! Manifests: whatever the bytes of a file, the last good state stays, and the way to a state does not show in it.
//!
//! An input is text. A line `#file NAME` begins the content that is written to that file, a line `#gone NAME` removes it;
//! what comes before the first of them goes to a file of its own, so any manifest is an input as it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use isthmus_core::manifest::{FileContent, ManifestOptions, Manifests};
use isthmus_core::mesh::{Epoch, FromServer, Guard, Publisher, Rows, SavedPublisher};
use isthmus_core::model::{Batch, Problem, ProblemKind};

use crate::bounds::bounded;
use crate::peers::{EAST, cross};

/// Steps of one input that are taken: a history need not be long to be strange.
const STEPS_MAX: usize = 16;
/// Bytes held for each byte of input, and beside them: a tree of nodes is larger than its text, and rows outlive it.
const HELD_PER_BYTE: usize = 1024;
const HELD_BESIDE: usize = 1 << 20;

const NOW: Duration = Duration::ZERO;

enum Step<'a> {
    Write(&'a [u8]),
    Remove,
}

pub(crate) fn check(input: &[u8]) {
    bounded(HELD_BESIDE + HELD_PER_BYTE * input.len(), || history(input));
}

fn history(input: &[u8]) {
    let steps = steps(input);
    let mut source = Source::default();
    // What each file said last without a fault.
    let mut good: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for (path, step) in &steps {
        let Step::Write(content) = step else {
            source.update(path, FileContent::Removed);
            good.remove(path.as_str());
            continue;
        };
        let before = source.rows.clone();
        source.write(path, content);
        // A writer empties a file before it fills it.
        let last = good.get(path.as_str());
        let emptied = content.iter().all(u8::is_ascii_whitespace)
            && last.is_some_and(|last| Source::of([(path.as_str(), *last)]).has_objects());
        if emptied || Source::of([(path.as_str(), *content)]).is_broken() {
            assert!(source.is_broken(), "nobody is told of a broken file");
            assert_eq!(source.rows, before, "a broken file changed rows");
        } else {
            good.insert(path, content);
        }
        let before = source.rows.clone();
        source.write(path, content);
        assert_eq!(
            source.rows, before,
            "a file that is read twice changed rows"
        );
    }
    let fresh = Source::of(good.into_iter().rev());
    assert_eq!(source.rows, fresh.rows, "the way shows in the rows");
    assert_eq!(
        source.findings(),
        fresh.findings(),
        "the way shows in what is told"
    );
    crosses(&source.rows);
    for (path, _) in &steps {
        source.update(path, FileContent::Removed);
    }
    assert_eq!(source.rows, Rows::default(), "rows outlive their files");
    assert_eq!(
        source.manifests.problems(NOW),
        [],
        "problems outlive their files"
    );
}

fn steps(input: &[u8]) -> Vec<(String, Step<'_>)> {
    let mut steps = Vec::new();
    // The file whose content is being read, and where it began.
    let mut open = Some(("first.yaml".to_owned(), 0));
    let mut at = 0;
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        let named = |mark: &[u8]| {
            let name = line.strip_prefix(mark)?.trim_ascii();
            Some(String::from_utf8_lossy(name).into_owned())
        };
        let (written, removed) = (named(b"#file "), named(b"#gone "));
        if (written.is_some() || removed.is_some())
            && let Some((path, start)) = open.take()
            && at > 0
        {
            steps.push((path, Step::Write(&input[start..at])));
        }
        at += line.len();
        if let Some(path) = written {
            open = Some((path, at));
        }
        if let Some(path) = removed {
            steps.push((path, Step::Remove));
        }
    }
    if let Some((path, start)) = open {
        steps.push((path, Step::Write(&input[start..])));
    }
    steps.truncate(STEPS_MAX);
    steps
}

/// Files, and the rows that they made, as a store would hold them.
struct Source {
    manifests: Manifests,
    rows: Rows,
}

impl Default for Source {
    fn default() -> Self {
        // A range so small that Services collide in it.
        let service_cidrs = ["192.0.2.0/29", "fd00:10:96::/108"]
            .iter()
            .filter_map(|range| range.parse().ok())
            .collect();
        Self {
            manifests: Manifests::new(ManifestOptions { service_cidrs }),
            rows: Rows::default(),
        }
    }
}

impl Source {
    fn of<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let mut source = Self::default();
        for (path, content) in files {
            source.write(path, content);
        }
        source
    }

    fn write(&mut self, path: &str, content: &[u8]) {
        self.update(path, FileContent::Present(content.into()));
    }

    fn update(&mut self, path: &str, content: FileContent) {
        self.manifests.update(path, content, NOW);
        for change in self.manifests.take_batch().changes {
            assert!(self.rows.apply(&change), "an equal row is told: {change:?}");
        }
        let summary = self.manifests.summary();
        assert_eq!(
            (summary.services, summary.endpoints),
            (self.rows.services(), self.rows.endpoints()),
            "rows are counted wrong"
        );
    }

    fn has_objects(&self) -> bool {
        let summary = self.manifests.summary();
        !summary.objects.is_empty() || !summary.unknown_kinds.is_empty()
    }

    fn is_broken(&self) -> bool {
        let problems = self.manifests.problems(NOW);
        problems
            .iter()
            .any(|problem| problem.kind == ProblemKind::Broken)
    }

    /// What is told of files that are used.
    fn findings(&self) -> Vec<Problem> {
        let mut problems = self.manifests.problems(NOW);
        problems.retain(|problem| problem.kind != ProblemKind::Broken);
        problems
    }
}

/// Whatever a manifest can say, a peer can be told.
fn crosses(rows: &Rows) {
    let mut publisher = Publisher::load(SavedPublisher::empty(Epoch(1)), Vec::new());
    let batch = Batch {
        changes: rows.all(),
        complete: true,
    };
    publisher.apply(&batch, Guard::default(), Instant::now());
    cross(FromServer::Rows {
        id: EAST.cluster().id,
        changes: publisher.ledger().rows().all(),
        bad: Vec::new(),
        position: publisher.ledger().rows().position(),
    });
}
