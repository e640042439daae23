//! The mesh protocol, without sockets or clocks: who may say what, which rows a consumer holds, who has fallen silent.
//!
//! A mesh server is a [`Hub`]: it publishes its own cluster ([`Publisher`]) and keeps a copy of every linked one. Each
//! stream that it serves is a [`Watcher`], which reads [`View`]s of the hub and is asked for one message at a time, so
//! that a slow consumer costs no queue: what it missed, it gets folded. The agent's side is a [`Feed`].
//!
//! ```text
//! source ─▶ Publisher ─▶ View ─▶ Watcher ═ stream ═▶ peer's Hub ─▶ View ─▶ Watcher ═ stream ═▶ Feed ─▶ store
//! ```
//!
//! Streams number their messages. A repeated one is ignored and a gap ends the stream, so reordering and loss below us
//! become a reconnect. A reconnect names the state that is held and gets the difference, by the server's [`Ledger`]; if
//! the ledger has forgotten, a list: what is not named before its end mark goes, and not before.

mod backoff;
mod fault;
mod feed;
mod guard;
mod hub;
mod intake;
mod ledger;
mod message;
mod patience;
mod position;
mod publisher;
mod refused;
mod rows;
mod salt;
mod silence;
mod terms;
mod trouble;
mod watcher;

#[cfg(test)]
mod simulation;

pub use backoff::Backoff;
pub use fault::Fault;
pub use feed::{
    Dropped, Feed, FeedEvent, FeedSettings, FeedState, FeedStatus, PeerState, PeerStatus,
    SavedFeed, SavedPeer, Standing,
};
pub use guard::{Guard, Quarantine};
pub use hub::{Hub, HubSettings, Notice, SavedHub, SavedLink};
pub use ledger::{Changes, HistorySize, Ledger, SavedHistory};
pub use message::{
    BadRow, Beginning, Cluster, ConsumerHello, FromServer, HearsUs, Held, LinkState, PeerReport,
    PeerSilence, QuarantineReport, Ranges, RangesFrom, Role, Sequenced, ServerHello, VERSION,
};
pub use patience::Patience;
pub use position::{Epoch, Position};
pub use publisher::{Publisher, SavedPublisher};
pub use refused::RefusalReport;
pub use rows::{RowKey, Rows, row_bytes};
pub use silence::{Age, SavedSilence, Silence};
pub use terms::{CIDRS_MAX, Refusal, Terms};
pub use trouble::{TROUBLES_MAX, Trouble, TroubleReport, TroubleSource, Troubles};
pub use watcher::{ClusterView, PeerView, View, Watcher};
