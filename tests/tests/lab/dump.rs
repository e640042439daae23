//! What `agentctl bpf lb list` says is what the kernel's maps hold, read by bpftool and decoded here once more.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use isthmus_tests::Node;
use isthmus_tests::kernel::map_rows;
use serde_json::Value;

use super::books::Ledger;
use super::common::{
    AFFINITY, PORT, SERVICE, TWO_CLUSTERS, at_least, client, named_service, started, world,
};

/// Maps that bpftool dumps whole at once.
const SMALL: [&str; 3] = [
    "--lb-services-max=256",
    "--lb-backends-max=256",
    "--lb-ring-slots-max=4096",
];

/// One word of `slots` after another, with their index.
type Slots = Vec<(u32, u64)>;

fn number(value: &Value) -> u32 {
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or_else(|| panic!("no number: {value}"))
}

fn small(value: &Value) -> u16 {
    u16::try_from(number(value)).unwrap()
}

/// Of 16 hexadecimal digits.
fn word(value: &Value) -> u64 {
    u64::from_str_radix(value.as_str().unwrap(), 16).unwrap()
}

fn rows<'a>(list: &'a Value, kind: &str) -> &'a [Value] {
    let rows = list[kind]
        .as_array()
        .unwrap_or_else(|| panic!("no {kind} in {list}"));
    assert!(!rows.is_empty(), "{kind} is empty");
    rows
}

fn protocol(row: &Value) -> u8 {
    match row["protocol"].as_str().unwrap() {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 4,
        _ => 0,
    }
}

/// Map, and key: address, port in network order, scope and protocol in one word of the host's order.
fn frontend_key(row: &Value) -> (&'static str, Vec<u8>) {
    let address: IpAddr = row["address"].as_str().unwrap().parse().unwrap();
    let (map, mut key) = match address {
        IpAddr::V4(v4) => ("frontends4", v4.octets().to_vec()),
        IpAddr::V6(v6) => ("frontends6", v6.octets().to_vec()),
    };
    key.extend(small(&row["port"]).to_be_bytes());
    key.extend((small(&row["scope"]) << 5 | u16::from(protocol(row))).to_ne_bytes());
    (map, key)
}

/// The endpoint, then what was counted and is known of it: all of a row of `backends` but for its end.
fn backend_row(row: &Value) -> Vec<u8> {
    let octets = match row["address"].as_str().unwrap().parse().unwrap() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let mut held = octets.to_vec();
    held.extend(small(&row["port"]).to_be_bytes());
    held.extend(small(&row["clusterId"]).to_ne_bytes());
    held.extend(number(&row["service"]).to_ne_bytes());
    held.extend(number(&row["generation"]).to_ne_bytes());
    const LIVE: u8 = 1;
    held.extend([LIVE, protocol(row), 0, 0]);
    held.extend(row["connects"].as_u64().unwrap().to_ne_bytes());
    held.extend(word(&row["health"]["word"]).to_ne_bytes());
    held
}

/// Rows of a map that is indexed by number, but for those without a byte that is not 0.
fn array(node: Node<'_>, map: &str) -> BTreeMap<u32, Vec<u8>> {
    let rows = map_rows(node.map_id(map).unwrap()).unwrap().into_iter();
    rows.filter(|(_, row)| row.iter().any(|byte| *byte != 0))
        .map(|(key, row)| (u32::from_ne_bytes(key.try_into().unwrap()), row))
        .collect()
}

/// The upper and the lower half of a word.
fn halves(word: u64) -> (u32, u32) {
    let half = |word: u64| u32::try_from(word).unwrap();
    (half(word >> 32), half(word & 0xffff_ffff))
}

fn first_word(row: &[u8]) -> u64 {
    u64::from_ne_bytes(*row.first_chunk().unwrap())
}

/// The tiers of a ring: span, tiers and length of the first in its word; the place and length of each other at its head.
fn tiers(ring: u64, slots: &BTreeMap<u32, Vec<u8>>) -> Vec<Slots> {
    let slot = |index: u32| slots.get(&index).map_or(0, |row| first_word(row));
    let (span, low) = halves(ring);
    let (tiers, len) = (low >> 24 & 0x7f, low & 0xff_ffff);
    let heads = tiers.saturating_sub(1);
    let others = (span..span + heads).map(slot).map(halves);
    std::iter::once((heads, len))
        .chain(others)
        .take(tiers.try_into().unwrap())
        .map(|(offset, len)| {
            let first = span + offset;
            (first..first + len).map(|i| (i, slot(i))).collect()
        })
        .collect()
}

/// The tiers as they are listed.
fn listed_tiers(ring: &Value) -> Vec<Slots> {
    let word = |slot: &Value| {
        let (service, backend) = (number(&slot["service"]), number(&slot["backend"]));
        u64::from(service) << 32 | u64::from(backend)
    };
    let tier = |(place, tier): (usize, &Value)| {
        assert_eq!(tier["number"], place, "{ring}");
        let slots = rows(tier, "slots").iter();
        let slots: Slots = slots.map(|s| (number(&s["index"]), word(s))).collect();
        assert_eq!(slots[0].0, number(&tier["first"]), "{ring}");
        slots
    };
    rows(ring, "tiers").iter().enumerate().map(tier).collect()
}

#[test]
fn the_list_is_what_the_maps_hold() {
    let lab = started(world("dump", TWO_CLUSTERS), &SMALL);
    let node = lab.node("east-1").unwrap();
    backends_are_where_their_nodes_are(node);
    // A ring of two tiers beside those of one.
    let near = [("service.cilium.io/global", "true"), (AFFINITY, "local")];
    for cluster in lab.clusters() {
        let near = named_service("near", 80, PORT, &near);
        let manifests = cluster.manifests();
        manifests.write_objects("near.yaml", &[near]).unwrap();
    }
    node.wait_frontend("production/near", 80, "has both tiers", |f| {
        f.serving() == 2
            && f.backends.iter().all(|b| b.backend_id.is_some())
            && f.backends.len() == 4
    })
    .unwrap();
    let mut traffic = client(&lab, "east/client", "east-1");
    let ledger = Ledger::open(node, SERVICE);
    traffic.rate(1000.0).unwrap();
    at_least(&mut traffic, 50);
    ledger.balance_with(&mut traffic);
    node.writes().unwrap();
    let list = node.ask(&["bpf", "lb", "list"]).unwrap();
    assert_eq!(list["oddities"], Value::Array(Vec::new()));

    let mut listed = BTreeMap::from(["frontends4", "frontends6"].map(|map| (map, BTreeMap::new())));
    for row in rows(&list, "frontends") {
        let (map, key) = frontend_key(row);
        // The service, and four reserved bytes.
        let value = [number(&row["service"]).to_ne_bytes(), [0; 4]].concat();
        listed.get_mut(map).unwrap().insert(key, value);
    }
    for (map, listed) in listed {
        let held = map_rows(node.map_id(map).unwrap()).unwrap();
        assert_eq!(listed, held.into_iter().collect(), "{map}");
    }

    let (services, slots) = (array(node, "services"), array(node, "slots"));
    let rings = services
        .iter()
        .map(|(index, row)| (*index, first_word(row)));
    let rings: BTreeMap<_, _> = rings
        .filter(|(_, ring)| *ring != 0)
        .map(|(index, ring)| (index, (ring, tiers(ring, &slots))))
        .collect();
    let listed = rows(&list, "rings").iter();
    let listed: BTreeMap<_, _> = listed
        .map(|ring| {
            (
                number(&ring["service"]),
                (word(&ring["word"]), listed_tiers(ring)),
            )
        })
        .collect();
    assert_eq!(listed, rings);
    let tiers: BTreeSet<_> = rings.values().map(|(_, tiers)| tiers.len()).collect();
    assert!(tiers.contains(&1) && tiers.contains(&2), "tiers: {tiers:?}");
    let listed = rows(&list, "services").iter();
    let listed: BTreeSet<_> = listed.map(|row| number(&row["service"])).collect();
    assert_eq!(listed, services.into_keys().collect(), "rows of services");

    let listed = rows(&list, "backends").iter();
    let listed: BTreeMap<_, _> = listed
        .map(|row| (number(&row["id"]), backend_row(row)))
        .collect();
    let mut held = array(node, "backends");
    const STATE: usize = 28;
    held.retain(|_, row| row[STATE] != 0);
    for (id, row) in &mut held {
        row.truncate(listed.get(id).map_or(row.len(), Vec::len));
    }
    assert_eq!(listed, held);
    let counted = rows(&list, "backends")
        .iter()
        .filter_map(|row| row["connects"].as_u64());
    assert!(counted.sum::<u64>() >= 50, "{list}");
    let drawn = rings.values().flat_map(|(_, tiers)| tiers.iter().flatten());
    let drawn: BTreeSet<u32> = drawn.map(|(_, slot)| halves(*slot).1).collect();
    assert_eq!(drawn, listed.into_keys().collect(), "backends in rings");
}

/// The lab file's regions are its Nodes' labels, and come with the rows of both clusters.
fn backends_are_where_their_nodes_are(node: Node<'_>) {
    let list = node.ask(&["service", "list"]).unwrap();
    let mut places = BTreeSet::new();
    for frontend in rows(&list, "frontends") {
        for backend in rows(frontend, "backends") {
            let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
            places.insert((text("node"), text("zone")));
        }
    }
    let wanted = [
        ("east-1", "us-east-a"),
        ("east-2", "us-east-b"),
        ("west-1", "us-west-a"),
        ("west-2", "us-west-b"),
    ];
    let wanted = wanted.map(|(node, zone)| (node.to_owned(), zone.to_owned()));
    assert_eq!(places.into_iter().collect::<Vec<_>>(), wanted);
}
