use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Age;

/// Troubles that are told; of those beyond them, the number.
pub const TROUBLES_MAX: usize = 64;

/// What is wrong with a process' own files or rows, for people: no peer's doing.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Trouble {
    /// `link west.yaml:6`, `state file`: a word or two.
    pub about: String,
    /// One sentence.
    pub cause: String,
    /// What to do; one sentence.
    pub way_out: String,
}

/// A [`Trouble`] at the moment of writing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TroubleReport {
    pub trouble: Trouble,
    pub age: Duration,
}

/// Who finds troubles. Each tells all of its own at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TroubleSource {
    /// The state file.
    State,
    /// The directory of links.
    Links,
    /// Our own certificate.
    Certificate,
    /// Our own cluster's rows.
    Rows,
}

/// All troubles now, each with the moment since which it is there.
#[derive(Debug, Default)]
pub struct Troubles {
    found: BTreeMap<TroubleSource, Vec<(Trouble, Age)>>,
    shown: Arc<Vec<(Trouble, Age)>>,
}

impl Troubles {
    /// What `source` finds now. `true` if that is news.
    pub fn set(
        &mut self,
        source: TroubleSource,
        mut now_found: Vec<Trouble>,
        now: Instant,
    ) -> bool {
        if now_found.len() > TROUBLES_MAX {
            let more = now_found.len() - TROUBLES_MAX;
            now_found.truncate(TROUBLES_MAX);
            now_found.push(Trouble {
                about: "links".to_owned(),
                cause: format!("{more} more files cannot be used."),
                way_out: "The mesh server's log names them.".to_owned(),
            });
        }
        let before = self.found.entry(source).or_default();
        let same = before.iter().map(|(trouble, _)| trouble).eq(&now_found);
        if same {
            return false;
        }
        let since = |trouble: &Trouble| {
            // Its numbers may be others now.
            let known = before
                .iter()
                .find(|(known, _)| known.about == trouble.about);
            known.map_or_else(|| Age::zero(now), |(_, since)| *since)
        };
        let aged = now_found.into_iter().map(|trouble| {
            let since = since(&trouble);
            (trouble, since)
        });
        *before = aged.collect();
        self.shown = Arc::new(self.found.values().flatten().cloned().collect());
        true
    }

    /// Another one whenever anything in it changes.
    #[must_use]
    pub fn shown(&self) -> Arc<Vec<(Trouble, Age)>> {
        self.shown.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(about: &str) -> Trouble {
        Trouble {
            about: about.to_owned(),
            cause: "It is broken.".to_owned(),
            way_out: "Mend it.".to_owned(),
        }
    }

    #[test]
    fn a_trouble_keeps_its_age_while_it_lasts_and_all_are_bounded() {
        let (start, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let mut troubles = Troubles::default();
        assert!(!troubles.set(TroubleSource::Links, vec![], start));
        assert!(troubles.set(TroubleSource::Links, vec![trouble("a")], start));
        assert!(troubles.set(TroubleSource::State, vec![trouble("s")], later));
        let both = vec![trouble("a"), trouble("b")];
        assert!(troubles.set(TroubleSource::Links, both.clone(), later));
        let shown = troubles.shown();
        assert!(!troubles.set(TroubleSource::Links, both, later));
        assert!(Arc::ptr_eq(&shown, &troubles.shown()));
        let aged: Vec<_> = shown
            .iter()
            .map(|(trouble, since)| (trouble.about.as_str(), since.at(later).as_secs()))
            .collect();
        assert_eq!(aged, [("s", 0), ("a", 9), ("b", 0)]);

        let many = vec![trouble("x"); TROUBLES_MAX + 7];
        assert!(troubles.set(TroubleSource::Links, many, later));
        let shown = troubles.shown();
        assert_eq!(shown.len(), 1 + TROUBLES_MAX + 1);
        assert!(shown[TROUBLES_MAX + 1].0.cause.starts_with("7 more files"));
    }
}
