//! Inputs that are made: one of each thing that a target understands, so that a search begins behind the first checks.

use std::time::{Duration, SystemTime};

use isthmus_core::mesh::{
    ConsumerHello, Epoch, FromServer, Held, Position, Role, Rows, SavedFeed, SavedHistory,
    SavedHub, SavedLink, SavedPeer, SavedPublisher, SavedSilence, Sequenced, VERSION,
};
use isthmus_mesh::{feed, hub, statefile, wire};
use prost::Message as _;

use crate::Target;
use crate::peers::{EAST, Liar, Step, Who, change};

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seed {
    pub target: Target,
    pub name: &'static str,
    pub input: Vec<u8>,
}

/// All of them.
///
/// # Panics
/// One cannot be made.
#[must_use]
pub fn made() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, all: Vec<(&'static str, Vec<u8>)>| {
        seeds.extend(all.into_iter().map(|(name, input)| Seed {
            target,
            name,
            input,
        }));
    };
    add(Target::Manifest, manifests());
    add(Target::State, states());
    add(Target::Wire, messages());
    add(Target::Feed, feeds());
    add(Target::Hub, hubs());
    seeds
}

fn manifests() -> Vec<(&'static str, Vec<u8>)> {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: n}\nspec:\n  selector: {app: a}\n  \
                   ports:\n  - {name: http, port: 80, targetPort: web}\n  - {name: dns, port: 53, protocol: UDP}\n";
    let global = "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: t\n  namespace: n\n  annotations:\n    \
                  service.cilium.io/global: \"true\"\n    service.cilium.io/affinity: local\nspec:\n  \
                  clusterIP: 10.96.0.1\n  ipFamilyPolicy: PreferDualStack\n  ports: [{port: 80}]\n";
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: n, labels: {app: a}}\nspec:\n  \
               nodeName: n1\n  containers: [{name: c, ports: [{containerPort: 8080, name: web}]}]\nstatus:\n  \
               podIPs: [{ip: 10.0.0.1}, {ip: \"fd00::1\"}]\n  conditions: [{type: Ready, status: \"True\"}]\n";
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: t-1\n  namespace: n\n  \
                 labels: {kubernetes.io/service-name: t}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints:\n\
                 - {addresses: [10.0.0.7], nodeName: n1, conditions: {ready: false, serving: true, terminating: true}}\n\
                 - {addresses: [10.0.0.8, 10.0.0.9], zone: z}\n";
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z1}}\n";
    let list = "{\"apiVersion\": \"v1\", \"kind\": \"ServiceList\", \"items\": [{\"metadata\": {\"name\": \"s\"}, \
                \"spec\": {\"clusterIP\": \"None\", \"ports\": []}}]}";
    let history = format!(
        "{service}#file b\n{pod}#file c\n{slice}{node}#file b\n{global}{pod}#file c\n{{\n#file b\n\n#gone c\n#file d\n{service}"
    );
    // A few bytes that would be millions of nodes.
    let mut aliases =
        "apiVersion: v1\nkind: Service\na: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (one, next) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        let of = vec![format!("*{one}"); 10].join(", ");
        aliases.push_str(&format!("{next}: &{next} [{of}]\n"));
    }
    // Two slices that say more of one address than a row may hold.
    let ports = |from: u16| {
        let ports: Vec<String> = (from..from + 600)
            .map(|port| format!("{{port: {port}}}"))
            .collect();
        slice
            .replace("t-1", &format!("t-{from}"))
            .replace("[{port: 8080}]", &format!("[{}]", ports.join(", ")))
    };
    let texts = [
        ("ports", format!("{global}{}{}", ports(1), ports(1000))),
        (
            "long",
            format!("{global}{}", slice.replace("n1", &"x".repeat(2000))),
        ),
        ("objects", format!("{service}{global}{pod}{slice}{node}")),
        ("list", list.to_owned()),
        ("history", history),
        ("aliases", aliases),
        ("nested", "[".repeat(2000)),
    ];
    texts
        .into_iter()
        .map(|(name, text)| (name, text.into_bytes()))
        .collect()
}

fn position(revision: u64) -> Position {
    Position {
        epoch: Epoch(0x19c0),
        revision,
        digest: revision,
    }
}

fn rows() -> Rows {
    let mut rows = Rows::default();
    for byte in [0b1000_0000, 0b0000_0010, 0b1001_0011, 0b1110_0010] {
        rows.apply(&change(byte));
    }
    rows.settle(position(4));
    rows
}

fn states() -> Vec<(&'static str, Vec<u8>)> {
    let silence = SavedSilence {
        witnessed: Duration::from_millis(1500),
        last_word: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)),
    };
    let (west, rows) = (Who::honest(1).cluster(), rows());
    let mesh = SavedHub {
        publisher: SavedPublisher {
            epoch: Epoch(7),
            revision: 4,
            told: rows.clone(),
            history: SavedHistory::default(),
        },
        links: vec![SavedLink {
            cluster: west.clone(),
            silence,
            rows: rows.clone(),
            history: SavedHistory::default(),
            exact: true,
            learnt: None,
        }],
    };
    let peers = SavedFeed {
        peers: vec![SavedPeer {
            cluster: west,
            silence,
            rows,
        }],
    };
    let mut ages = mesh.clone();
    ages.links[0].silence.witnessed = Duration::MAX;
    let hub = |state| statefile::encode(hub::KIND, &state).expect("JSON holds it");
    let feed = |state| statefile::encode(feed::KIND, &state).expect("JSON holds it");
    vec![
        ("hub-empty", hub(SavedHub::empty(Epoch(1)))),
        ("hub", hub(mesh)),
        ("hub-silent-for-ages", hub(ages)),
        ("feed-empty", feed(SavedFeed::default())),
        ("feed", feed(peers)),
    ]
}

fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let from_server = |message| {
        let said = Sequenced {
            sequence: 1,
            message,
        };
        let mut input = vec![0];
        input.extend(wire::say(said).encode_to_vec());
        input
    };
    let from_consumer = |role, stale_after| {
        let hello = ConsumerHello {
            cluster: EAST.cluster(),
            role,
            node: "east-1".to_owned(),
            held: vec![Held {
                cluster: Who::honest(1).cluster(),
                position: position(4),
            }],
            stale_after,
            versions: vec![VERSION],
        };
        let mut input = vec![1];
        input.extend(wire::say_consumer_hello(&hello).encode_to_vec());
        input
    };
    let said = |kind, c| {
        let step = Step {
            what: 0,
            a: 0,
            b: kind,
            c,
        };
        from_server(Liar::new().say(Who::honest(1), step, None).message)
    };
    let id = Who::honest(1).cluster().id;
    vec![
        ("hello", said(0, 0)),
        ("start", said(1, 0)),
        (
            "rows",
            from_server(FromServer::Rows {
                id,
                changes: (0..=255).step_by(7).map(change).collect(),
                bad: Vec::new(),
                position: Some(position(5)),
            }),
        ),
        ("complete", said(4, 0)),
        ("peers", said(6, 0b0010_1111)),
        ("heartbeat", said(15, 0b0100_1111)),
        ("mesh-server", from_consumer(Role::MeshServer, None)),
        (
            "agent",
            from_consumer(Role::Agent, Some(Duration::from_secs(3))),
        ),
    ]
}

/// Steps of a history, as bytes.
fn history(steps: &[[u8; 4]]) -> Vec<u8> {
    steps.concat()
}

const HELLO: u8 = 0;
const START: u8 = 1;
const RESUME: u8 = 9;
const ROWS: u8 = 2;
const SETTLED_ROWS: u8 = 10;
const END: u8 = 4;
const PEERS: u8 = 6;
const HEARTBEAT: u8 = 7;

fn feeds() -> Vec<(&'static str, Vec<u8>)> {
    const SAY: u8 = 3;
    let list = [
        [SAY, 0, HELLO, 0],
        [SAY, 0, PEERS, 0b0100_0110],
        [SAY, 0, HEARTBEAT, 0b0000_0110],
        [SAY, 1, START, 0],
        [SAY, 1, ROWS, 0b1000_0000],
        [SAY, 1, ROWS, 0b0000_0010],
        [SAY, 1, END, 0],
    ];
    let silence = |limit: u8| [SAY, 0, HEARTBEAT, (limit << 6) | 0b0110];
    let then = |more: &[[u8; 4]]| history(&[list.as_slice(), more].concat());
    vec![
        ("list", then(&[])),
        (
            "stale",
            then(&[
                silence(1),
                silence(2),
                silence(0),
                [SAY, 1, SETTLED_ROWS, 0b0100_0010],
            ]),
        ),
        (
            "resumed",
            then(&[
                [1, 0, 0, 0],
                [SAY, 0, HELLO, 0],
                [SAY, 1, RESUME, 0],
                [SAY, 1, END, 0],
                [SAY, 1, SETTLED_ROWS, 0b0001_0010],
            ]),
        ),
        (
            "restarted",
            then(&[
                [2, 0, 0, 0],
                [SAY, 0, HELLO, 0],
                [SAY, 1, START, 0],
                [SAY, 1, END, 0],
                [0, 3, 0, 0],
            ]),
        ),
        (
            "unlinked",
            then(&[[SAY, 0, PEERS, 0b0100_0100], [SAY, 0b0001_1101, START, 0]]),
        ),
    ]
}

fn hubs() -> Vec<(&'static str, Vec<u8>)> {
    const WEST: u8 = 11;
    const NORTH: u8 = 16 + 11;
    let list = |peer: u8| {
        [
            [peer, 0, HELLO, 0],
            [peer, 0, START, 0],
            [peer, 0, ROWS, 0b1000_0000],
            [peer, 0, SETTLED_ROWS & 7, 0b0000_0010],
            [peer, 0, END, 0],
        ]
    };
    let own = [
        [3, 0b1000_0000, 0b0000_0010, 0],
        [3, 0b1000_0100, 0b0000_0110, 1],
    ];
    let agent = [[6, 40, 0, 0]];
    let join = |parts: &[&[[u8; 4]]]| history(&parts.concat());
    vec![
        ("list", join(&[&own, &list(WEST), &agent, &[[7, 40, 0, 0]]])),
        (
            "two",
            join(&[
                &list(WEST),
                &agent,
                &list(NORTH),
                &agent,
                &[[WEST, 0, SETTLED_ROWS, 0b0101_0010]],
                &agent,
            ]),
        ),
        (
            "resumed",
            join(&[
                &list(WEST),
                &[
                    [2, 0, 0, 0],
                    [WEST, 0, HELLO, 0],
                    [WEST, 0, RESUME, 0],
                    [WEST, 0, END, 0],
                ],
                &agent,
            ]),
        ),
        (
            "restarted",
            join(&[
                &own,
                &list(WEST),
                &agent,
                &[
                    [8, 0, 0, 0],
                    [0, 2, 0, 0],
                    [1, 3, 0, 0],
                    [4, 9, 0, 0],
                    [9, 0, 0, 0],
                ],
                &list(WEST),
            ]),
        ),
        (
            "hearsay",
            join(&[
                &list(WEST),
                &[
                    [WEST, 0b1000_0010, ROWS, 0b0000_0010],
                    [WEST, 0, PEERS, 15],
                    [WEST, 0, HEARTBEAT, 15],
                    [10, 1, 0, 0],
                    [0, 3, 0, 0],
                    [10, 1, 1, 0],
                ],
            ]),
        ),
        (
            "unlinked",
            join(&[
                &list(WEST),
                &agent,
                &[[1, 0b010, 0b010, 0]],
                &agent,
                &[[1, 0b011, 0, 1]],
            ]),
        ),
    ]
}
