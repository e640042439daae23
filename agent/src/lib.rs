//! The Isthmus node agent. `app` puts the parts together; everything that is decided is in `isthmus-core`, everything
//! that touches the kernel in [`datapath`].

pub mod api;
pub mod app;
pub mod config;
pub mod datapath;
pub mod engine;
pub mod events;
pub mod mesh;
pub mod metrics;
pub mod tally;
pub mod view;
