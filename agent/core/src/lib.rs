//! What Isthmus decides, kept pure: no clock, no socket, no kernel, no thread. Time and events are arguments.
//!
//! The flow is one-way. [`manifest`] and [`mesh`] turn what the world says into [`model`] rows; [`store`] holds them;
//! [`desired`] derives what the datapath should do; [`reconcile`] turns the difference into writes on [`table`]s.
#![forbid(unsafe_code)]

pub mod desired;
pub mod manifest;
pub mod mesh;
pub mod model;
pub mod reconcile;
pub mod store;
pub mod table;
