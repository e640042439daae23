use super::*;

#[test]
fn waiting_ends_with_what_is_there_and_not_with_what_is_missing() {
    type Part = fn(&mut proto::Feed, &mut Vec<proto::Peer>);
    let awaited = |change: Part| {
        let (mut feed, mut peers) = (feed(), vec![peer("north", 3), peer("west", 2)]);
        change(&mut feed, &mut peers);
        status(Some(feed), peers).awaited().join(", ")
    };
    let cases: [(Part, &str); 8] = [
        (|_, _| {}, ""),
        (
            |feed, peers| {
                feed.set_state(proto::FeedState::Connecting);
                peers.clear();
            },
            "the mesh server to be reached",
        ),
        (
            |feed, peers| {
                feed.listed = false;
                peers.clear();
            },
            "the mesh server to know all of its links (its --links directory, and each file in it)",
        ),
        (|_, peers| peers.clear(), "a cluster to be linked"),
        (
            |_, peers| peers[0].set_state(proto::PeerState::Stale),
            "north to be connected",
        ),
        (
            |_, peers| peers[1].complete = false,
            "west to tell all of its rows",
        ),
        (
            |_, peers| {
                peers[0].hears_us = None;
                peers[1].hears_us = Some(false);
            },
            "north to watch east, west to watch east",
        ),
        (
            |_, peers| peers[1].refusals = vec![refused("malformed", 1)],
            "west to be mended",
        ),
    ];
    for (change, wanted) in cases {
        assert_eq!(awaited(change), wanted);
    }
}
