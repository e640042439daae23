use std::sync::Arc;

use crate::model::{EndpointRow, PORTS_MAX};

/// One address behind a Service.
#[derive(Debug, Default)]
pub(super) struct Endpoint {
    /// A pod's or a slice's name, and what it says; hardly ever more than one.
    pub(super) sources: Vec<(Arc<str>, Arc<EndpointRow>)>,
    /// What was last told of it.
    pub(super) row: Option<Arc<EndpointRow>>,
}

impl Endpoint {
    pub(super) fn forget(&mut self, source: &str) {
        self.sources.retain(|(name, _)| **name != *source);
    }

    /// What several sources say of one address (pods in the host's network, a slice on its way to another): the best
    /// condition holds, with the ports of all that are in it. The order in which they came does not matter.
    pub(super) fn merged(&self) -> Option<Arc<EndpointRow>> {
        if let [(_, only)] = &self.sources[..] {
            return Some(only.clone());
        }
        let (_, best) = self
            .sources
            .iter()
            .min_by_key(|(name, row)| (row.condition, name))?;
        let equals = self
            .sources
            .iter()
            .filter(|(_, row)| row.condition == best.condition);
        let mut merged = EndpointRow::clone(best);
        merged.ports = equals
            .flat_map(|(_, row)| row.ports.iter().cloned())
            .collect();
        merged.ports.sort_unstable();
        merged.ports.dedup();
        // Several slices of many ports each: the first ones are kept, so that the row can be told.
        merged.ports.truncate(PORTS_MAX);
        Some(Arc::new(merged))
    }
}
