//! BPF programs that only tests and measurements load, on links that nothing pins: they go with whoever holds the link.
//!
//! A package of its own, so that neither the agent holds what it never runs, nor the lab and its scenarios speak to the
//! kernel's BPF side themselves.

mod earlier;
mod hook;
mod sys;

pub use earlier::Earlier;
pub use hook::{CONNECT4, GETPEERNAME4, Program};
pub use sys::map_by_id;
