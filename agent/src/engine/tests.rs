#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_core::model::{
    Affinity, Condition, EndpointPort, EndpointRow, ObjectName, PortRow, Protocol, ServiceRow,
    ServiceRules,
};
use isthmus_core::table::{MemoryMaps, MemoryTable, Sizes};

use super::ports::{Moved, Ports};
use super::*;

struct World {
    here: Here<'static>,
    store: Store,
    reconciler: Reconciler,
    ports: Ports,
}

fn id(number: u16) -> ClusterId {
    number.try_into().unwrap()
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("production", text)
}

fn service(text: &str, address: &str) -> RowChange {
    preferring(text, address, Affinity::Local)
}

fn preferring(text: &str, address: &str, affinity: Affinity) -> RowChange {
    let port = PortRow {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 80,
    };
    RowChange::Service(Arc::new(ServiceRow {
        name: name(text),
        addresses: vec![address.parse().unwrap()],
        ports: vec![port],
        global: true,
        shared: true,
        affinity,
        rules: ServiceRules::default(),
    }))
}

fn endpoint(service: &str, address: &str, condition: Condition) -> RowChange {
    let port = EndpointPort {
        name: "http".into(),
        protocol: Protocol::Tcp,
        port: 8080,
    };
    RowChange::Endpoint(Arc::new(EndpointRow {
        service: name(service),
        address: address.parse().unwrap(),
        ports: vec![port],
        condition,
        reason: "".into(),
        node: "".into(),
        zone: "".into(),
    }))
}

impl World {
    fn new() -> Self {
        let sizes = Sizes {
            frontends: 16,
            services: 2,
            slots: 64,
            backends: 16,
        };
        let memory = MemoryTable::new(MemoryMaps::new(sizes));
        let (reconciler, _) = Reconciler::adopt(memory.tables(), id(1)).unwrap();
        Self {
            here: Here {
                cluster: id(1),
                node: "",
                programmed: Programmed::All,
            },
            store: Store::new(),
            reconciler,
            ports: Ports::default(),
        }
    }

    fn say(&mut self, owner: Owner, changes: Vec<RowChange>) -> Vec<Moved> {
        let batch = Batch {
            changes,
            complete: true,
        };
        let dirty = self.store.apply(owner, &batch);
        self.ports.touch(dirty.services.keys());
        for change in desired::changes(self.here, self.store.now(), &dirty) {
            self.reconciler.apply(change);
        }
        loop {
            let progress = self.reconciler.step(Instant::now(), 4096);
            if let Some(ticket) = progress.want_grace {
                self.reconciler.grace_passed(ticket);
            } else if progress.idle {
                return self.ports.review(&self.reconciler, self.store.now());
            }
        }
    }

    fn named(&self) -> Vec<String> {
        let ports = self.ports.index.values();
        let mut names: Vec<_> = ports.map(|port| port.service.to_string()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_service_whose_connections_go_elsewhere_is_told_and_a_new_one_is_not() {
    let west = Owner::Peer(id(2));
    let mut world = World::new();
    let local = vec![
        service("a", "10.96.0.1"),
        endpoint("a", "10.1.0.1", Condition::Ready),
    ];
    assert_eq!(world.say(Owner::Local, local), []);
    let remote = vec![
        service("a", "10.96.0.1"),
        endpoint("a", "10.2.0.1", Condition::Ready),
    ];
    assert_eq!(world.say(west, remote), [], "a second choice");
    let (local, remote) = (Some("local ready"), Some("remote ready"));
    let condition = |condition| endpoint("a", "10.1.0.1", condition);
    let preferring = |affinity| preferring("a", "10.96.0.1", affinity);
    for (change, before, now) in [
        (condition(Condition::NotReady), local, remote),
        (condition(Condition::Ready), remote, local),
        // What it preferred before is told by its name of then.
        (preferring(Affinity::Remote), local, remote),
        (preferring(Affinity::None), remote, Some("ready")),
    ] {
        let moved = world.say(Owner::Local, vec![change]);
        assert_eq!(moved.len(), 1, "{moved:?}");
        assert_eq!((moved[0].before, moved[0].now), (before, now));
        assert_eq!(moved[0].port.service, name("a"));
    }
}

#[test]
fn an_index_that_goes_to_another_service_has_the_other_s_name() {
    let mut world = World::new();
    let first = vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")];
    assert_eq!(world.say(Owner::Local, first), []);
    assert_eq!(world.named(), ["production/a", "production/b"]);
    // The one that comes is looked at before those that go, and takes an index of theirs.
    let change = vec![RowChange::ServiceGone(name("b")), service("0", "10.96.0.3")];
    assert_eq!(world.say(Owner::Local, change), []);
    assert_eq!(world.say(Owner::Local, vec![]), []);
    assert_eq!(world.named(), ["production/0", "production/a"]);
    for (index, port) in &world.ports.index {
        let known = world.reconciler.service_name(*index).unwrap();
        assert_eq!((&port.service, &port.key), (&known.0, &known.1));
    }
}
