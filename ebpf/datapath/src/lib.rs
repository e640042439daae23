//! The decisions of the eBPF programs, free of maps and contexts, so that they run on a laptop too.
#![no_std]

mod draw;
mod frontend;

pub use draw::{Drawn, draw, judge};
pub use frontend::{in_cidr4, in_cidr6, mapped_v4, protocol};
