//! The decisions of the eBPF programs, free of maps and contexts, so that they run on a laptop too.
#![no_std]

#[cfg(test)]
extern crate std;

mod draw;
mod frontend;
mod health;

pub use draw::{Drawn, difference, draw, is_at, is_live, judge, nth};
pub use frontend::{in_cidr4, in_cidr6, mapped_v4, protocol};
pub use health::{
    CLOSE, EJECT_AT, FIRST_EJECTION, Fate, Judgement, LONGEST_EJECTION, Stance, TRIAL,
    WEIGHT_FAILED, WEIGHT_UNANSWERED, add_failure, back_off, doubts, fate, has_vote, is_grave,
    judge_run, may_try, stance, standing,
};
