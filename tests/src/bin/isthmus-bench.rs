//! Measures the budgets. See `isthmus_tests::bench`.

use clap::Parser;
use isthmus_tests::bench::{Options, run};

fn main() -> anyhow::Result<()> {
    run(&Options::parse())
}
