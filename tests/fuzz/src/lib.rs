//! Decoders and state machines under bytes that nobody meant.
//!
//! A [`Target`] takes any bytes and panics if one of its properties does not hold. Inputs that once said something new are
//! kept under `corpus/`; the tests of this package try them all, and `cargo xtask test --suite fuzz` searches on from there,
//! guided by the coverage of instrumented code (libFuzzer).

mod bounds;
mod feed;
mod hub;
mod manifest;
mod peers;
pub mod seeds;
mod state;
mod wire;

use std::path::{Path, PathBuf};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Files of manifests, to rows.
    Manifest,
    /// State files of the mesh server and of the agent.
    State,
    /// The mesh protocol's messages, from the wire to core's.
    Wire,
    /// An agent's feed, under any messages of its mesh server.
    Feed,
    /// A mesh server, under any messages of its peers, with an agent and another mesh server behind it.
    Hub,
}

impl Target {
    pub const ALL: [(&'static str, Self); 5] = [
        ("manifest", Self::Manifest),
        ("state", Self::State),
        ("wire", Self::Wire),
        ("feed", Self::Feed),
        ("hub", Self::Hub),
    ];

    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|(_, target)| target)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(_, target)| *target == self)
            .map_or("", |(name, _)| name)
    }

    /// Tries one input.
    ///
    /// # Panics
    /// A property does not hold.
    pub fn check(self, input: &[u8]) {
        match self {
            Self::Manifest => manifest::check(input),
            Self::State => state::check(input),
            Self::Wire => wire::check(input),
            Self::Feed => feed::check(input),
            Self::Hub => hub::check(input),
        }
    }
}

/// Where the kept inputs of every target lie, a directory for each.
#[must_use]
pub fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}
