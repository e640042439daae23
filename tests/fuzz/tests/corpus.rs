//! Every kept input, tried without instrumentation. One test, one thread: memory is measured meanwhile.

use std::fs;
use std::panic::catch_unwind;

use isthmus_fuzz::{Target, corpus, seeds};

#[test]
fn kept_inputs_hold() {
    let mut failed = Vec::new();
    for (name, target) in Target::ALL {
        let directory = corpus().join(name);
        let mut files: Vec<_> = fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no kept input");
        for file in files {
            let input = fs::read(&file).expect("it can be read");
            if catch_unwind(|| target.check(&input)).is_err() {
                failed.push(file);
            }
        }
    }
    for seed in seeds::made() {
        if catch_unwind(|| seed.target.check(&seed.input)).is_err() {
            failed.push(format!("the seed {} of {}", seed.name, seed.target.name()).into());
        }
    }
    assert!(failed.is_empty(), "these inputs fail: {failed:#?}");
}
