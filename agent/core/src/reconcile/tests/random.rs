//! Random histories, with rounds that are cut short, late grace periods, faults, crashes, and readers that stop anywhere.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::world::*;
use crate::desired::{BackendKey, Frontend};
use crate::model::{Affinity, Condition, RowChange};
use crate::store::{Owner, Store};
use crate::table::{MemoryMaps, Sizes, Write};

#[derive(Clone, Debug)]
enum Step {
    Service {
        peer: bool,
        service: usize,
        affinity: Affinity,
        ports: u8,
        renamed: bool,
    },
    /// Each service of ours gets the address of the next.
    Rotate,
    ServiceGone {
        peer: bool,
        service: usize,
    },
    Endpoint {
        peer: bool,
        service: usize,
        host: u8,
        condition: Condition,
    },
    EndpointGone {
        peer: bool,
        service: usize,
        host: u8,
    },
    Stale(bool),
    Rounds {
        count: u8,
        max_writes: u32,
    },
    PassGrace,
    Crash,
}

const SERVICES: [&str; 3] = ["a", "b", "c"];
const SMALL: Sizes = Sizes {
    frontends: 16,
    services: 16,
    slots: 256,
    backends: 64,
};

fn step() -> impl Strategy<Value = Step> {
    let affinity = prop_oneof![
        Just(Affinity::None),
        Just(Affinity::Local),
        Just(Affinity::Remote)
    ];
    let condition = prop_oneof![3 => Just(Condition::Ready), 1 => Just(Condition::ServingTerminating), 1 => Just(Condition::NotReady)];
    let service = 0..SERVICES.len();
    prop_oneof![
        3 => (any::<bool>(), service.clone(), affinity, 1_u8..4, any::<bool>())
            .prop_map(|(peer, service, affinity, ports, renamed)| Step::Service { peer, service, affinity, ports, renamed }),
        1 => Just(Step::Rotate),
        1 => (any::<bool>(), service.clone()).prop_map(|(peer, service)| Step::ServiceGone { peer, service }),
        8 => (any::<bool>(), service.clone(), 1_u8..7, condition)
            .prop_map(|(peer, service, host, condition)| Step::Endpoint { peer, service, host, condition }),
        3 => (any::<bool>(), service, 1_u8..7).prop_map(|(peer, service, host)| Step::EndpointGone { peer, service, host }),
        1 => any::<bool>().prop_map(Step::Stale),
        5 => (1_u8..6, 1_u32..12).prop_map(|(count, max_writes)| Step::Rounds { count, max_writes }),
        3 => Just(Step::PassGrace),
        1 => Just(Step::Crash),
    ]
}

/// Each service's backends have addresses of their own, so that one that answers for another is seen.
fn address(peer: bool, service: usize, host: u8) -> String {
    format!("10.{}.{service}.{host}", if peer { WEST } else { LOCAL })
}

fn owner(peer: bool) -> Owner {
    if peer { west() } else { Owner::Local }
}

impl Step {
    fn apply(&self, world: &mut World) {
        match *self {
            Self::Service {
                peer,
                service,
                affinity,
                ports,
                renamed,
            } => {
                let names = if renamed {
                    ["metrics", "web"]
                } else {
                    ["http", "metrics"]
                };
                let all = [(names[0], 80), (names[1], 90 + u16::from(ports))];
                let ports = &all[..if ports > 1 { 2 } else { 1 }];
                let at = address_of(SERVICES[turned(world, service)]);
                world.say(
                    owner(peer),
                    vec![service_at(SERVICES[service], &at, affinity, ports)],
                );
            }
            Self::Rotate => {
                world.rotation += 1;
                let moved = SERVICES
                    .into_iter()
                    .enumerate()
                    .filter_map(|(service, text)| {
                        let name = name(text);
                        let group = world.store.now().group(&name);
                        let mut row = (**group.service(Owner::Local)?).clone();
                        let at = address_of(SERVICES[turned(world, service)]);
                        row.addresses = vec![at.parse().unwrap()];
                        Some(RowChange::Service(row.into()))
                    });
                let moved = moved.collect();
                world.say(Owner::Local, moved);
            }
            Self::ServiceGone { peer, service } => {
                world.say(
                    owner(peer),
                    vec![RowChange::ServiceGone(name(SERVICES[service]))],
                );
            }
            Self::Endpoint {
                peer,
                service,
                host,
                condition,
            } => {
                let row = endpoint(SERVICES[service], &address(peer, service, host), condition);
                world.say(owner(peer), vec![row]);
            }
            Self::EndpointGone {
                peer,
                service,
                host,
            } => {
                world.say(
                    owner(peer),
                    vec![gone(SERVICES[service], &address(peer, service, host))],
                );
            }
            Self::Stale(stale) => world.stale(WEST, stale),
            Self::Rounds { count, max_writes } => (0..count).for_each(|_| {
                world.round(max_writes);
            }),
            Self::PassGrace => {
                world.pass_grace();
            }
            Self::Crash => {
                let graces = std::mem::take(&mut world.graces);
                // The new agent lets a grace period pass before it reads the maps.
                let done = world.writes();
                let (maps, store) = (
                    world.memory.maps().clone(),
                    std::mem::take(&mut world.store),
                );
                let mut restarted = World::with_faults(maps, store, world.faults.clone());
                restarted.graces = graces;
                restarted.rotation = world.rotation;
                restarted.graces.push((done, done));
                restarted.say_all();
                *world = restarted;
            }
        }
    }
}

/// The service whose address this one has now.
fn turned(world: &World, service: usize) -> usize {
    (service + world.rotation) % SERVICES.len()
}

/// The services that each frontend has been of.
type Owners = BTreeMap<Frontend, BTreeSet<u8>>;

fn note_owners(world: &World, owners: &mut Owners) {
    for frontend in world.wanted().into_keys() {
        let address = frontend.address.v4().unwrap().octets()[3] - b'a';
        let service =
            (0..SERVICES.len()).find(|service| turned(world, *service) == usize::from(address));
        owners
            .entry(frontend)
            .or_default()
            .insert(u8::try_from(service.unwrap()).unwrap());
    }
}

/// Which backends each frontend may ever lead to: its service's.
fn allowed(owners: &Owners, frontend: Frontend, key: BackendKey) -> bool {
    owners[&frontend].contains(&key.address.v4().unwrap().octets()[2])
}

/// A reader looks up frontend and ring after one write, and slot and backend after another, with no grace period between
/// that could have waited for it. Whatever it believes is its service's.
fn slow_readers(start: &MemoryMaps, writes: &[Write], graces: &[(usize, usize)], owners: &Owners) {
    let mut maps = start.clone();
    let mut readers: BTreeMap<(Frontend, u32, u64), usize> = BTreeMap::new();
    for done in 0..=writes.len() {
        if done > 0 {
            maps.write(writes[done - 1]).unwrap();
        }
        for frontend in owners.keys() {
            if let Some(value) = maps.frontends4.get(&key4(*frontend)) {
                let until = graces
                    .iter()
                    .filter(|(began, _)| *began >= done)
                    .map(|(_, passed)| *passed)
                    .min();
                let reader = (
                    *frontend,
                    value.service,
                    maps.rings[value.service as usize].0,
                );
                readers.insert(reader, until.unwrap_or(writes.len()));
            }
        }
        readers.retain(|_, until| *until >= done);
        for &(frontend, service, ring) in readers.keys() {
            let ring = isthmus_abi::Ring(ring);
            for nth in 0..ring.len() {
                let slot = maps.slots[(ring.first() + nth) as usize];
                // What it holds is not reused under it: it never even has to try again.
                let key = judge(&maps, service, slot)
                    .unwrap_or_else(|| panic!("{frontend} at {done}: {slot:?}"));
                assert!(
                    allowed(owners, frontend, key),
                    "{frontend} is answered by {key:?}"
                );
            }
        }
    }
}

/// A hash gives a deleted element to the next insertion: a grace period that began after the deletion lies between.
fn insertions_wait(writes: &[Write], graces: &[(usize, usize)]) {
    let mut deleted = None;
    for (done, write) in writes.iter().enumerate() {
        match (write, deleted) {
            (Write::Frontend4(_, None), _) => deleted = Some(done + 1),
            (Write::Frontend4(_, Some(_)), Some(deletion)) => {
                let waited = graces
                    .iter()
                    .any(|(began, passed)| *began >= deletion && *passed <= done);
                assert!(
                    waited,
                    "inserted at {done}, deleted at {deletion}, {graces:?}"
                );
            }
            _ => {}
        }
    }
}

/// Goes through a history, looking after each step, and then back at all that slow readers could have seen.
fn go_through(world: &mut World, steps: &[Step], end: impl FnOnce(&mut World)) {
    let start = world.memory.maps().clone();
    let mut owners = Owners::new();
    for step in steps {
        step.apply(world);
        note_owners(world, &mut owners);
        let maps = world.memory.maps().clone();
        for frontend in owners.keys() {
            // Panics by itself if a slot within a ring is not its service's.
            let drawn = answers(&maps, *frontend).all();
            assert!(drawn.iter().all(|key| allowed(&owners, *frontend, *key)));
        }
    }
    end(world);
    world.settle_failures();
    world.assert_converged();
    let writes = world.memory.maps().writes.clone();
    slow_readers(&start, &writes, &world.graces, &owners);
    insertions_wait(&writes, &world.graces);
}

fn run(steps: &[Step], per_mille: u32, seed: u64) {
    let mut world = World::new(SMALL);
    world.complete(Owner::Local);
    world.complete(west());
    world.faults.seed(seed, per_mille);
    go_through(&mut world, steps, |world| world.faults.seed(0, 0));
    // A restart with everything known has nothing to write.
    let mut restarted = World::on(
        world.memory.maps().clone(),
        std::mem::replace(&mut world.store, Store::new()),
    );
    let before = restarted.writes();
    restarted.say_all();
    restarted.settle();
    assert_eq!(restarted.writes(), before);
    restarted.assert_converged();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_converges(steps in proptest::collection::vec(step(), 1..60)) {
        run(&steps, 0, 0);
    }

    #[test]
    fn any_history_converges_through_faults(steps in proptest::collection::vec(step(), 1..40), seed: u64) {
        run(&steps, 200, seed);
    }

    /// Maps that are too small fail what does not fit, and nothing else: when all has gone, they are empty.
    #[test]
    fn any_history_in_small_maps(
        steps in proptest::collection::vec(step(), 1..60),
        frontends in 1_u32..8, services in 1_u32..5, slots in 1_u32..24, backends in 1_u32..10,
    ) {
        let mut world = World::new(Sizes { frontends, services, slots, backends });
        world.complete(Owner::Local);
        world.complete(west());
        go_through(&mut world, &steps, |world| {
            for service in SERVICES {
                world.say(Owner::Local, vec![RowChange::ServiceGone(name(service))]);
            }
        });
        let counts = world.reconciler.counts();
        prop_assert_eq!((counts.frontends4, counts.frontends6), (0, 0));
    }

    /// Each prefix of all writes, the recoveries' included, starts an agent that converges.
    #[test]
    fn any_crash_recovers(steps in proptest::collection::vec(step(), 1..20)) {
        let mut world = World::new(SMALL);
        world.complete(Owner::Local);
        world.complete(west());
        let start = world.memory.maps().clone();
        steps.iter().for_each(|step| step.apply(&mut world));
        world.settle();
        let writes = world.memory.maps().writes.clone();
        for crash in 0..writes.len() {
            let mut restarted = World::on(replay(&start, &writes[..crash]), std::mem::take(&mut world.store));
            restarted.say_all();
            restarted.settle();
            restarted.assert_converged();
            world.store = restarted.store;
        }
    }
}
