#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use super::*;
use crate::model::{Affinity, Condition, EndpointKey};

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

fn service(text: &str) -> Arc<ServiceRow> {
    Arc::new(ServiceRow {
        name: name(text),
        addresses: vec![],
        ports: vec![],
        global: true,
        shared: true,
        affinity: Affinity::None,
        rules: crate::model::ServiceRules::default(),
    })
}

fn endpoint(service: &str, address: &str) -> Arc<EndpointRow> {
    Arc::new(EndpointRow {
        service: name(service),
        address: address.parse().unwrap(),
        ports: vec![],
        condition: Condition::Ready,
        reason: "".into(),
        node: "".into(),
        zone: "".into(),
    })
}

fn batch(changes: Vec<RowChange>, complete: bool) -> Batch {
    Batch { changes, complete }
}

fn peer(id: u16) -> ClusterId {
    ClusterId::try_from(id).unwrap()
}

fn state(stale: bool) -> PeerState {
    PeerState {
        name: "west".parse().unwrap(),
        stale,
    }
}

#[test]
fn equal_rows_wake_nobody() {
    let mut store = Store::new();
    let rows = batch(
        vec![
            RowChange::Service(service("a")),
            RowChange::Endpoint(endpoint("a", "10.0.0.1")),
        ],
        true,
    );
    let dirty = store.apply(Owner::Local, &rows);
    assert_eq!(
        dirty.services,
        BTreeMap::from([(name("a"), Touched::Whole)])
    );
    assert_eq!(dirty.released, BTreeSet::from([Owner::Local]));
    assert!(store.apply(Owner::Local, &rows).is_empty());
    let gone = batch(
        vec![RowChange::EndpointGone(EndpointKey {
            service: name("a"),
            address: "10.9.9.9".parse().unwrap(),
        })],
        false,
    );
    assert!(store.apply(Owner::Local, &gone).is_empty());
}

#[test]
fn a_changed_row_takes_its_place() {
    let mut store = Store::new();
    store.apply(
        Owner::Local,
        &batch(vec![RowChange::Endpoint(endpoint("a", "10.0.0.1"))], false),
    );
    let mut row = (*endpoint("a", "10.0.0.1")).clone();
    row.condition = Condition::NotReady;
    let dirty = store.apply(
        Owner::Local,
        &batch(vec![RowChange::Endpoint(row.clone().into())], false),
    );
    assert_eq!(dirty.services.len(), 1);
    let name = name("a");
    let group = store.now().group(&name);
    assert_eq!(
        group.endpoint(Owner::Local, row.address).unwrap().condition,
        Condition::NotReady
    );
    assert_eq!(group.endpoints().count(), 1);
}

#[test]
fn one_endpoint_makes_itself_dirty_and_no_more() {
    let mut store = Store::new();
    store.apply(
        Owner::Local,
        &batch(vec![RowChange::Service(service("a"))], false),
    );
    let dirty = store.apply(
        Owner::Peer(peer(2)),
        &batch(vec![RowChange::Endpoint(endpoint("a", "10.0.0.1"))], false),
    );
    let keys = BTreeSet::from([(Owner::Peer(peer(2)), "10.0.0.1".parse().unwrap())]);
    assert_eq!(
        dirty.services,
        BTreeMap::from([(name("a"), Touched::Endpoints(keys))])
    );
}

#[test]
fn owners_do_not_touch_each_others_rows_and_snapshots_stay() {
    let mut store = Store::new();
    let rows = batch(
        vec![
            RowChange::Service(service("a")),
            RowChange::Endpoint(endpoint("a", "10.0.0.1")),
        ],
        true,
    );
    store.apply(Owner::Local, &rows);
    store.apply(Owner::Peer(peer(2)), &rows);
    let before = store.snapshot();
    let dirty = store.drop_peer(peer(2));
    assert_eq!(dirty.services.keys().collect::<Vec<_>>(), [&name("a")]);
    assert_eq!(before.count(Owner::Peer(peer(2))), (1, 1));
    assert_eq!(store.now().count(Owner::Peer(peer(2))), (0, 0));
    assert_eq!(store.now().count(Owner::Local), (1, 1));
    assert!(!store.now().has_passport(Owner::Peer(peer(2))));
    assert_eq!(before.group(&name("a")).endpoints().count(), 2);
    assert_eq!(before.names().count(), 1);
}

#[test]
fn only_a_change_of_staleness_is_dirty() {
    let mut store = Store::new();
    let west = Owner::Peer(peer(2));
    store.apply(
        west,
        &batch(vec![RowChange::Endpoint(endpoint("a", "10.0.0.1"))], true),
    );
    assert!(store.set_peer(peer(2), state(false)).is_empty());
    assert_eq!(store.set_peer(peer(2), state(true)).services.len(), 1);
    assert!(store.set_peer(peer(2), state(true)).is_empty());
    assert_eq!(store.set_peer(peer(2), state(false)).services.len(), 1);
}

#[test]
fn merging_keeps_the_wider_word() {
    let mut store = Store::new();
    let mut dirty = store.apply(
        Owner::Local,
        &batch(vec![RowChange::Endpoint(endpoint("a", "10.0.0.1"))], false),
    );
    dirty.merge(store.apply(
        Owner::Local,
        &batch(vec![RowChange::Service(service("a"))], false),
    ));
    dirty.merge(store.apply(
        Owner::Local,
        &batch(vec![RowChange::Endpoint(endpoint("a", "10.0.0.2"))], false),
    ));
    assert_eq!(
        dirty.services,
        BTreeMap::from([(name("a"), Touched::Whole)])
    );
}
