//! The mesh protocol's messages: what is understood is said again, and heard as the same.

use isthmus_core::mesh::FromServer;
use isthmus_mesh::wire;
use isthmus_proto::mesh::v1 as proto;
use prost::Message as _;

use crate::bounds::bounded;
use crate::peers::cross;

/// Bytes held for each byte of a message, and beside them: the shortest change of a row takes two bytes on the wire.
const HELD_PER_BYTE: usize = 512;
const HELD_BESIDE: usize = 64 << 10;

/// The first byte says whose message it is: a mesh server's, or a consumer's.
pub(crate) fn check(input: &[u8]) {
    let Some((from, message)) = input.split_first() else {
        return;
    };
    bounded(HELD_BESIDE + HELD_PER_BYTE * message.len(), || {
        if from & 1 == 0 {
            from_server(message);
        } else {
            from_consumer(message);
        }
    });
}

fn from_server(message: &[u8]) {
    let Ok(said) = proto::WatchResponse::decode(message) else {
        return;
    };
    if let Ok(mut heard) = wire::hear(said) {
        if let FromServer::Rows { bad, .. } = &mut heard.message {
            bad.clear(); // Nobody says them.
        }
        let sequence = heard.sequence;
        let again = wire::hear(wire::say(heard.clone())).expect("what was heard can be said");
        assert_eq!((again.sequence, &again), (sequence, &heard));
        cross(heard.message);
    }
}

fn from_consumer(message: &[u8]) {
    use proto::watch_request::Message;
    let Ok(said) = proto::WatchRequest::decode(message) else {
        return;
    };
    if let Some(Message::Hello(said)) = said.message
        && let Ok(hello) = wire::consumer_hello(said)
    {
        let bytes = wire::say_consumer_hello(&hello).encode_to_vec();
        let again = proto::WatchRequest::decode(bytes.as_slice()).expect("what is encoded decodes");
        let Some(Message::Hello(again)) = again.message else {
            panic!("a hello became another message")
        };
        assert_eq!(wire::consumer_hello(again), Ok(hello));
    }
}
