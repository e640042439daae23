#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod adoption;
mod crash;
mod faults;
mod patch;
mod random;
mod rules;
mod scale;
mod world;
