//! What `agentctl bpf lb list` says is what the kernel's maps hold, read by bpftool and decoded here once more.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::net::IpAddr;

use isthmus_tests::Node;
use isthmus_tests::kernel::{bpftool, map_row};
use serde_json::Value;

use super::common::{TWO_CLUSTERS, running};

fn number(value: &Value) -> u32 {
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .unwrap_or_else(|| panic!("no number: {value}"))
}

fn rows<'a>(list: &'a Value, kind: &str) -> &'a [Value] {
    let rows = list[kind]
        .as_array()
        .unwrap_or_else(|| panic!("no {kind} in {list}"));
    assert!(!rows.is_empty(), "{kind} is empty");
    rows
}

/// The first word of a row: of a service, its ring.
fn word(node: Node<'_>, map: &str, index: u32) -> u64 {
    let row = map_row(node.map_id(map).unwrap(), &index.to_ne_bytes()).unwrap();
    u64::from_ne_bytes(*row.first_chunk().unwrap())
}

/// Address, port in network order, scope and protocol in one word of the host's order.
fn frontend_key(row: &Value) -> (&'static str, Vec<u8>) {
    let address: IpAddr = row["address"].as_str().unwrap().parse().unwrap();
    let (map, mut key) = match address {
        IpAddr::V4(v4) => ("frontends4", v4.octets().to_vec()),
        IpAddr::V6(v6) => ("frontends6", v6.octets().to_vec()),
    };
    let protocol = match row["protocol"].as_str().unwrap() {
        "TCP" => 6,
        "UDP" => 17,
        "SCTP" => 4,
        _ => 0,
    };
    key.extend(u16::try_from(number(&row["port"])).unwrap().to_be_bytes());
    key.extend((u16::try_from(number(&row["scope"])).unwrap() << 5 | protocol).to_ne_bytes());
    (map, key)
}

#[test]
fn the_list_is_what_the_maps_hold() {
    let lab = running("dump", TWO_CLUSTERS);
    let node = lab.node("east-1").unwrap();
    backends_are_where_their_nodes_are(node);
    let list = node.ask(&["bpf", "lb", "list"]).unwrap();

    let mut listed = [("frontends4", 0), ("frontends6", 0)];
    for row in rows(&list, "frontends") {
        let (map, key) = frontend_key(row);
        let value = map_row(node.map_id(map).unwrap(), &key).unwrap();
        assert_eq!(value[..4], number(&row["service"]).to_ne_bytes(), "{row}");
        listed.iter_mut().find(|(name, _)| *name == map).unwrap().1 += 1;
    }
    for (map, count) in listed {
        let dump = bpftool(&["map", "dump", "id", &node.map_id(map).unwrap().to_string()]).unwrap();
        assert_eq!(dump.as_array().unwrap().len(), count, "rows of {map}");
    }

    let mut drawn = std::collections::BTreeSet::new();
    for ring in rows(&list, "rings") {
        let held = word(node, "services", number(&ring["service"]));
        assert_eq!(
            format!("{held:016x}"),
            ring["word"].as_str().unwrap().trim_start_matches("0x"),
            "{ring}"
        );
        for slot in ring["tiers"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|t| t["slots"].as_array().unwrap())
        {
            let wanted =
                u64::from(number(&slot["service"])) << 32 | u64::from(number(&slot["backend"]));
            assert_eq!(
                word(node, "slots", number(&slot["index"])),
                wanted,
                "{slot}"
            );
            drawn.insert(number(&slot["backend"]));
        }
    }

    let backends = node.map_id("backends").unwrap();
    for row in rows(&list, "backends") {
        let id = number(&row["id"]);
        let held = map_row(backends, &id.to_ne_bytes()).unwrap();
        let octets = match row["address"].as_str().unwrap().parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        assert_eq!(held[..16], octets, "{row}");
        assert!(drawn.remove(&id), "backend {id} is in no ring");
    }
    assert!(
        drawn.is_empty(),
        "rings name backends that are not listed: {drawn:?}"
    );
}

/// The lab file's regions are its Nodes' labels, and come with the rows of both clusters.
fn backends_are_where_their_nodes_are(node: Node<'_>) {
    let list = node.ask(&["service", "list"]).unwrap();
    let mut places = std::collections::BTreeSet::new();
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
