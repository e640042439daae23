//! State files: one that is accepted is read back as it was, and a process starts on it.
//!
//! An input is a file. Its checksum is set right first, or nothing but noise would ever be found; a second look takes it
//! as it is.

use std::fmt::Debug;
use std::time::{Instant, SystemTime};

use isthmus_core::mesh::{Feed, Hub, SavedFeed, SavedHub};
use isthmus_mesh::{feed, hub, statefile};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::bounds::bounded;
use crate::peers::{EAST, HEARTBEAT, Store};

/// Bytes held for each byte of a file, and beside them.
const HELD_PER_BYTE: usize = 256;
const HELD_BESIDE: usize = 1 << 20;

pub(crate) fn check(input: &[u8]) {
    bounded(HELD_BESIDE + HELD_PER_BYTE * input.len(), || {
        accept(input);
        if let Some(mended) = with_right_checksum(input) {
            accept(&mended);
        }
    });
}

fn accept(file: &[u8]) {
    let (now, wall) = (Instant::now(), SystemTime::now());
    if let Ok(saved) = statefile::decode::<SavedHub>(file, hub::KIND) {
        let saved = kept(hub::KIND, &saved);
        let mut hub = Hub::new(crate::hub::hub_settings(EAST.cluster()), saved, now, wall);
        hub.tick(now + HEARTBEAT);
        let _ = hub.view(now + HEARTBEAT);
        kept(hub::KIND, &hub.save(now + HEARTBEAT, wall + HEARTBEAT));
    }
    if let Ok(saved) = statefile::decode::<SavedFeed>(file, feed::KIND) {
        let saved = kept(feed::KIND, &saved);
        let (feed, events) = Feed::new(crate::feed::settings(), saved, now, wall);
        let mut store = Store::default();
        store.apply(events);
        store.agrees(&feed, now, wall);
        kept(feed::KIND, &feed.save(now + HEARTBEAT, wall + HEARTBEAT));
    }
}

/// Written to a state file and read again.
pub(crate) fn kept<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    kind: &str,
    state: &T,
) -> T {
    let file = statefile::encode(kind, state).expect("JSON holds it");
    let read: T = statefile::decode(&file, kind).expect("what is written is read");
    assert_eq!(read, *state, "a state file was read as another state");
    let again = statefile::encode(kind, &read).expect("JSON holds it");
    assert!(file == again, "one state has two files");
    read
}

fn with_right_checksum(file: &[u8]) -> Option<Vec<u8>> {
    let end = file.iter().position(|byte| *byte == b'\n')?;
    let head = file[..end].rsplitn(2, |byte| *byte == b' ').nth(1)?;
    let body = &file[end + 1..];
    let mut mended = head.to_vec();
    mended.push(b' ');
    for byte in Sha256::digest(body) {
        mended.extend_from_slice(format!("{byte:02x}").as_bytes());
    }
    mended.push(b'\n');
    mended.extend_from_slice(body);
    Some(mended)
}
