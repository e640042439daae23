use std::collections::HashSet;
use std::sync::Arc;

/// One allocation for each text that many objects share: namespaces, nodes, zones, labels, reasons.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: HashSet<Arc<str>>,
    /// Texts that were in use after the last sweep.
    kept: usize,
}

impl Interner {
    pub(super) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        // Sweeping at each doubling keeps the set within twice of what is in use, at a constant cost a text.
        if self.texts.len() >= 2 * self.kept.max(512) {
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.kept = self.texts.len();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}
