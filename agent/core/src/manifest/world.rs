//! Objects joined into rows, by difference: a change costs what it touches, not what there is.
//!
//! Each endpoint of a Service has its *sources*: the pods, or the slices, that name its address. A source that changes
//! takes its own endpoints away and puts the new ones in; only those addresses are looked at again. A Service that
//! changes what its pods are to it is joined anew, alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::model::{Address, EndpointKey, EndpointRow, ObjectName, RowChange, ServiceRow};

use super::address::{Addresses, Claim};
use super::endpoint::Endpoint;
use super::intern::Interner;
use super::labels::{LabelIndex, Pair};
use super::namespaces::Namespaces;
use super::object::{Object, ObjectId};
use super::pod::Pod;
use super::service::Service;
use super::slice::Slice;

#[derive(Debug, Default)]
pub(super) struct World {
    services: HashMap<ObjectName, Joined>,
    /// By its own name.
    pods: HashMap<ObjectName, Arc<Pod>>,
    /// By the Service's name, each with its own.
    slices: HashMap<ObjectName, Vec<NamedSlice>>,
    /// By the node's name.
    zones: HashMap<Arc<str>, Arc<str>>,
    namespaces: Namespaces,
    /// Pods, under each of their labels.
    pods_by_label: LabelIndex,
    /// Services that have a selector, under one pair of it.
    services_by_label: LabelIndex,
    addresses: Addresses,
    changed: Changed,
    /// Endpoints last told.
    told: usize,
}

/// A slice and its name.
type NamedSlice = (Arc<str>, Arc<Slice>);

/// What to look at again at the next [`World::take`].
#[derive(Debug, Default)]
struct Changed {
    services: BTreeSet<ObjectName>,
    endpoints: BTreeSet<EndpointKey>,
    nodes: HashSet<Arc<str>>,
}

/// A Service, and what was last said of it.
#[derive(Debug, Default)]
struct Joined {
    /// None: gone since the last take.
    service: Option<Arc<Service>>,
    /// Where [`World::services_by_label`] has it.
    filed: Option<Pair>,
    endpoints: BTreeMap<Address, Endpoint>,
    row: Option<Arc<ServiceRow>>,
}

impl World {
    /// The object under `id` is another one now. Values that are equal should not come here.
    pub(super) fn apply(
        &mut self,
        id: &ObjectId,
        old: Option<Object>,
        new: Option<Object>,
        texts: &mut Interner,
    ) {
        let name = &id.name;
        match (&old, &new) {
            (Some(Object::Service(_)), _) | (_, Some(Object::Service(_))) => {
                self.set_service(
                    name,
                    old.and_then(Object::service),
                    new.and_then(Object::service),
                    texts,
                );
            }
            (Some(Object::Pod(_)), _) | (_, Some(Object::Pod(_))) => {
                self.set_pod(
                    name,
                    old.and_then(Object::pod),
                    new.and_then(Object::pod),
                    texts,
                );
            }
            (Some(Object::Slice(_)), _) | (_, Some(Object::Slice(_))) => {
                if let Some(old) = old.and_then(Object::slice) {
                    self.remove_slice(&name.name, &old, texts);
                }
                if let Some(new) = new.and_then(Object::slice) {
                    self.add_slice(&name.name, new, texts);
                }
            }
            (Some(Object::Node { .. }), _) | (_, Some(Object::Node { .. })) => {
                self.changed.nodes.insert(name.name.clone());
                match new {
                    Some(Object::Node { zone, .. }) => self.zones.insert(name.name.clone(), zone),
                    _ => self.zones.remove(&name.name),
                };
            }
            (Some(Object::Namespace { .. }), _) | (_, Some(Object::Namespace { .. })) => {
                let global = !matches!(new, Some(Object::Namespace { global: false }));
                self.set_namespace(&name.name, global);
            }
            (None, None) => {}
        }
    }

    fn set_service(
        &mut self,
        name: &ObjectName,
        old: Option<Arc<Service>>,
        new: Option<Arc<Service>>,
        texts: &mut Interner,
    ) {
        let claims = |service: &Option<Arc<Service>>| -> BTreeSet<(bool, Address)> {
            let Some(service) = service else {
                return BTreeSet::new();
            };
            let given = service.given.iter().map(|address| (false, *address));
            given
                .chain(service.derived.iter().map(|address| (true, *address)))
                .collect()
        };
        let (before, after) = (claims(&old), claims(&new));
        for &(derived, address) in before.difference(&after) {
            let moved = self.addresses.remove(
                address,
                &Claim {
                    derived,
                    name: name.clone(),
                },
            );
            self.changed.services.extend(moved);
        }
        for &(derived, address) in after.difference(&before) {
            let moved = self.addresses.add(
                address,
                Claim {
                    derived,
                    name: name.clone(),
                },
            );
            self.changed.services.extend(moved);
        }
        self.changed.services.insert(name.clone());

        let same_endpoints =
            matches!((&old, &new), (Some(old), Some(new)) if old.same_endpoints(new));
        let joined = self.services.entry(name.clone()).or_default();
        let selector = new
            .as_ref()
            .map(|service| &*service.selector)
            .unwrap_or_default();
        if !same_endpoints {
            if let Some(pair) = joined.filed.take() {
                self.services_by_label
                    .remove(&name.namespace, &pair, &name.name);
            }
            if let Some(pair) = self.services_by_label.rarest(&name.namespace, selector) {
                self.services_by_label
                    .add(&name.namespace, &pair, &name.name);
                joined.filed = Some(pair);
            }
        }
        self.namespaces.note(name, new.as_deref());
        joined.service = new;
        if !same_endpoints {
            self.join(name, texts);
        }
    }

    /// Hardly ever changes: all Services are looked through.
    fn set_namespace(&mut self, namespace: &Arc<str>, global: bool) {
        if !self.namespaces.set(namespace, global) {
            return;
        }
        for (name, joined) in &self.services {
            if name.namespace == *namespace {
                self.namespaces.note(name, joined.service.as_deref());
                self.changed.services.insert(name.clone());
            }
        }
    }

    fn set_pod(
        &mut self,
        name: &ObjectName,
        old: Option<Arc<Pod>>,
        new: Option<Arc<Pod>>,
        texts: &mut Interner,
    ) {
        for pair in old.iter().flat_map(|pod| &pod.labels) {
            self.pods_by_label.remove(&name.namespace, pair, &name.name);
        }
        for pair in new.iter().flat_map(|pod| &pod.labels) {
            self.pods_by_label.add(&name.namespace, pair, &name.name);
        }
        if let Some(old) = &old {
            for service in self.selecting(old) {
                self.withdraw(&service.name, &name.name, &old.addresses);
            }
        }
        if let Some(new) = &new {
            for service in self.selecting(new) {
                let rows = new.endpoints(&service, &self.zone_of(&new.node, texts), texts);
                self.contribute(&service.name, &name.name, rows);
            }
        }
        match new {
            Some(new) => self.pods.insert(name.clone(), new),
            None => self.pods.remove(name),
        };
    }

    /// Services that take this pod: those that select it and have no slices.
    fn selecting(&self, pod: &Pod) -> Vec<Arc<Service>> {
        let candidates = pod
            .labels
            .iter()
            .flat_map(|pair| self.services_by_label.names(&pod.namespace, pair));
        candidates
            .filter_map(|name| {
                let name = ObjectName {
                    namespace: pod.namespace.clone(),
                    name: name.clone(),
                };
                let service = self.services.get(&name)?.service.as_ref()?;
                (service.selects(&pod.labels) && !self.slices.contains_key(&name))
                    .then(|| service.clone())
            })
            .collect()
    }

    fn add_slice(&mut self, name: &Arc<str>, slice: Arc<Slice>, texts: &mut Interner) {
        let service = slice.service.clone();
        let slices = self.slices.entry(service.clone()).or_default();
        let first = slices.is_empty();
        slices.reserve_exact(1);
        slices.push((name.clone(), slice.clone()));
        if first {
            // Pods give way.
            self.join(&service, texts);
        } else if self.has_service(&service) {
            let rows = self.rows_of(&slice);
            self.contribute(&service, name, rows);
        }
    }

    fn remove_slice(&mut self, name: &Arc<str>, slice: &Slice, texts: &mut Interner) {
        let Some(slices) = self.slices.get_mut(&slice.service) else {
            return;
        };
        slices.retain(|(known, _)| known != name);
        if slices.is_empty() {
            self.slices.remove(&slice.service);
            self.join(&slice.service, texts);
        } else {
            let addresses: Vec<_> = slice.endpoints.iter().map(|row| row.address).collect();
            self.withdraw(&slice.service, name, &addresses);
        }
    }

    fn has_service(&self, name: &ObjectName) -> bool {
        self.services
            .get(name)
            .is_some_and(|joined| joined.service.is_some())
    }

    /// Builds a Service's endpoints anew.
    fn join(&mut self, name: &ObjectName, texts: &mut Interner) {
        let Some(joined) = self.services.get_mut(name) else {
            return;
        };
        for (&address, endpoint) in &mut joined.endpoints {
            endpoint.sources.clear();
            self.changed.endpoints.insert(EndpointKey {
                service: name.clone(),
                address,
            });
        }
        let Some(service) = joined.service.clone() else {
            return;
        };
        if let Some(slices) = self.slices.get(name) {
            let slices = slices.clone();
            for (source, slice) in slices {
                let rows = self.rows_of(&slice);
                self.contribute(name, &source, rows);
            }
            return;
        }
        let Some(pair) = self
            .pods_by_label
            .rarest(&name.namespace, &service.selector)
        else {
            return;
        };
        let pods: Vec<_> = self
            .pods_by_label
            .names(&name.namespace, &pair)
            .cloned()
            .collect();
        for source in pods {
            let pod = self.pods.get(&ObjectName {
                namespace: name.namespace.clone(),
                name: source.clone(),
            });
            if let Some(pod) = pod.filter(|pod| service.selects(&pod.labels)) {
                let rows = pod.endpoints(&service, &self.zone_of(&pod.node, texts), texts);
                self.contribute(name, &source, rows);
            }
        }
    }

    fn zone_of(&self, node: &str, texts: &mut Interner) -> Arc<str> {
        self.zones
            .get(node)
            .cloned()
            .unwrap_or_else(|| texts.get(""))
    }

    /// A slice's rows; a zone that it does not say is its node's.
    fn rows_of(&self, slice: &Slice) -> Vec<Arc<EndpointRow>> {
        let zoned = |row: &Arc<EndpointRow>| match self.zones.get(&row.node) {
            Some(zone) if row.zone.is_empty() && !zone.is_empty() => Arc::new(EndpointRow {
                zone: zone.clone(),
                ..EndpointRow::clone(row)
            }),
            _ => row.clone(),
        };
        slice.endpoints.iter().map(zoned).collect()
    }

    fn contribute(&mut self, service: &ObjectName, source: &Arc<str>, rows: Vec<Arc<EndpointRow>>) {
        let Some(joined) = self.services.get_mut(service) else {
            return;
        };
        for row in rows {
            self.changed.endpoints.insert(EndpointKey {
                service: service.clone(),
                address: row.address,
            });
            let endpoint = joined.endpoints.entry(row.address).or_default();
            endpoint.forget(source);
            endpoint.sources.reserve_exact(1);
            endpoint.sources.push((source.clone(), row));
        }
    }

    fn withdraw(&mut self, service: &ObjectName, source: &Arc<str>, addresses: &[Address]) {
        let Some(joined) = self.services.get_mut(service) else {
            return;
        };
        for &address in addresses {
            if let Some(endpoint) = joined.endpoints.get_mut(&address) {
                endpoint.forget(source);
                self.changed.endpoints.insert(EndpointKey {
                    service: service.clone(),
                    address,
                });
            }
        }
    }

    /// What changed in the rows since the last take: services come before their endpoints, and go before them.
    pub(super) fn take(&mut self, texts: &mut Interner) -> Vec<RowChange> {
        self.rezone(texts);
        let changed = std::mem::take(&mut self.changed);
        let mut changes = Vec::new();
        for name in &changed.services {
            let Some(joined) = self.services.get_mut(name) else {
                continue;
            };
            let wanted = joined
                .service
                .as_ref()
                .map(|service| row(service, &self.addresses, &self.namespaces));
            match wanted {
                Some(wanted) if joined.row.as_deref() != Some(&wanted) => {
                    let wanted = Arc::new(wanted);
                    joined.row = Some(wanted.clone());
                    changes.push(RowChange::Service(wanted));
                }
                None if joined.row.take().is_some() => {
                    changes.push(RowChange::ServiceGone(name.clone()))
                }
                _ => {}
            }
        }
        for key in changed.endpoints {
            let Some(joined) = self.services.get_mut(&key.service) else {
                continue;
            };
            let Some(endpoint) = joined.endpoints.get_mut(&key.address) else {
                continue;
            };
            match endpoint.merged() {
                Some(wanted) if endpoint.row.as_ref() != Some(&wanted) => {
                    self.told += usize::from(endpoint.row.is_none());
                    endpoint.row = Some(wanted.clone());
                    changes.push(RowChange::Endpoint(wanted));
                }
                Some(_) => {}
                None => {
                    let told = endpoint.row.is_some();
                    joined.endpoints.remove(&key.address);
                    if told {
                        self.told -= 1;
                        changes.push(RowChange::EndpointGone(key));
                    }
                }
            }
        }
        for name in changed.services {
            if !self.has_service(&name) {
                self.services.remove(&name);
            }
        }
        changes
    }

    /// Nodes change their zone hardly ever: the one place that looks at everything, once for all of them.
    fn rezone(&mut self, texts: &mut Interner) {
        let nodes = std::mem::take(&mut self.changed.nodes);
        if nodes.is_empty() {
            return;
        }
        let on_them = |joined: &Joined| {
            let mut sources = joined
                .endpoints
                .values()
                .flat_map(|endpoint| &endpoint.sources);
            sources.any(|(_, row)| nodes.contains(&row.node))
        };
        let services: Vec<_> = self
            .services
            .iter()
            .filter(|(_, joined)| on_them(joined))
            .map(|(name, _)| name.clone())
            .collect();
        for name in services {
            self.join(&name, texts);
        }
    }

    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub(super) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// Rows last told: services and endpoints.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.services.len(), self.told)
    }
}

fn row(service: &Service, addresses: &Addresses, namespaces: &Namespaces) -> ServiceRow {
    let claimed = service.given.iter().chain(&service.derived);
    let mesh = namespaces.mesh(service);
    ServiceRow {
        name: service.name.clone(),
        addresses: claimed
            .copied()
            .filter(|address| addresses.holds(*address, &service.name))
            .collect(),
        ports: service.ports.iter().map(|port| port.row.clone()).collect(),
        global: mesh.global,
        shared: mesh.shared,
        affinity: mesh.affinity,
        rules: service.rules,
    }
}
