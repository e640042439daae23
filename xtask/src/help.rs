//! What `--help` says: a page for all commands, and one for each.

/// Shown by `cargo xtask` alone.
pub(crate) const ALL: &str = include_str!("help/all.txt");

const PAGES: [(&str, &str); 8] = [
    ("demo", include_str!("help/demo.txt")),
    ("lab", include_str!("help/lab.txt")),
    ("test", include_str!("help/test.txt")),
    ("check", include_str!("help/check.txt")),
    ("bench", include_str!("help/bench.txt")),
    ("build", include_str!("help/build.txt")),
    ("codegen", include_str!("help/codegen.txt")),
    ("setup", include_str!("help/setup.txt")),
];

/// The page of a command; none, and there is no such command.
pub(crate) fn page(command: &str) -> Option<&'static str> {
    let mut pages = PAGES.into_iter();
    Some(pages.find(|(name, _)| *name == command)?.1)
}

/// What can be measured: the list on the page of `bench`, which a test of the measuring program holds to its own.
pub(crate) fn budgets() -> impl Iterator<Item = &'static str> {
    let lines = page("bench").unwrap_or_default().lines();
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| name.starts_with(|first: char| first.is_ascii_alphabetic()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_commands_and_their_options_are_on_the_first_page_or_their_own() {
        for (name, page) in PAGES {
            assert!(ALL.contains(&format!("\n  {name} ")), "{name}");
            assert!(page.starts_with(&format!("cargo xtask {name}")), "{page}");
            for line in page.lines() {
                assert!(line.len() <= 125, "{line}");
            }
        }
    }

    #[test]
    fn budgets_are_read_from_their_page() {
        let names: Vec<_> = budgets().collect();
        assert!(names.starts_with(&["G1", "G2"]), "{names:?}");
        assert!(names.ends_with(&["G18", "scale"]), "{names:?}");
    }
}
