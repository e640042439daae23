use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A label's key and value.
pub(super) type Pair = (Arc<str>, Arc<str>);

/// Names of objects by namespace and label.
#[derive(Debug, Default)]
pub(super) struct LabelIndex(HashMap<(Arc<str>, Pair), BTreeSet<Arc<str>>>);

impl LabelIndex {
    pub(super) fn add(&mut self, namespace: &Arc<str>, pair: &Pair, name: &Arc<str>) {
        self.0
            .entry((namespace.clone(), pair.clone()))
            .or_default()
            .insert(name.clone());
    }

    pub(super) fn remove(&mut self, namespace: &Arc<str>, pair: &Pair, name: &Arc<str>) {
        let key = (namespace.clone(), pair.clone());
        if let Some(names) = self.0.get_mut(&key) {
            names.remove(name);
            if names.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    pub(super) fn names(
        &self,
        namespace: &Arc<str>,
        pair: &Pair,
    ) -> impl Iterator<Item = &Arc<str>> {
        self.0
            .get(&(namespace.clone(), pair.clone()))
            .into_iter()
            .flatten()
    }

    /// The pair of `selector` that the fewest objects have: the fewest to look through.
    pub(super) fn rarest(&self, namespace: &Arc<str>, selector: &[Pair]) -> Option<Pair> {
        let count = |pair: &&Pair| {
            self.0
                .get(&(namespace.clone(), Pair::clone(pair)))
                .map_or(0, BTreeSet::len)
        };
        selector.iter().min_by_key(count).cloned()
    }
}
