//! Measures the budgets. See `isthmus_tests::bench`.

use clap::Parser;
use isthmus_tests::bench::{Options, run};

fn main() -> anyhow::Result<()> {
    run(&Options::parse())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use clap::{CommandFactory as _, ValueEnum as _};
    use isthmus_tests::bench::Budget;

    use super::*;

    /// `cargo xtask bench` takes and refuses lines before it builds this program, by a page of its own.
    #[test]
    fn the_page_of_xtask_lists_what_can_be_measured() {
        let page = include_str!("../../../xtask/src/help/bench.txt");
        let listed = page
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
            .filter(|word| word.starts_with(|first: char| first.is_ascii_alphabetic()));
        let known: Vec<String> = Budget::value_variants()
            .iter()
            .map(|budget| budget.to_possible_value().unwrap().get_name().to_owned())
            .collect();
        assert!(
            listed.eq(known.iter()),
            "the page lists other budgets than {known:?}"
        );
        for option in Options::command().get_opts() {
            let long = option.get_long().unwrap();
            assert!(page.contains(&format!("\n  --{long}")), "--{long}");
        }
    }
}
