use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What a process still waits for before it is ready. Clones share one list.
///
/// ```
/// # use isthmus_mesh::http::Readiness;
/// let readiness = Readiness::default();
/// let first_list = readiness.hold("the first list of dir:/etc/isthmus/manifests is not complete");
/// assert_eq!(readiness.causes().len(), 1);
/// drop(first_list);
/// assert!(readiness.is_ready());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<Holds>>);

#[derive(Debug, Default)]
struct Holds {
    next: u64,
    causes: BTreeMap<u64, String>,
}

/// Keeps a process from being ready until it is dropped.
#[derive(Debug)]
#[must_use = "dropped at once, it holds nothing"]
pub struct Hold {
    readiness: Readiness,
    number: u64,
}

impl Readiness {
    /// Not ready, because of `cause`: one line, for people, without a full stop.
    pub fn hold(&self, cause: impl Into<String>) -> Hold {
        let number = self.with(|holds| {
            holds.next += 1;
            holds.causes.insert(holds.next, cause.into());
            holds.next
        });
        Hold {
            readiness: self.clone(),
            number,
        }
    }
    /// Causes of all open holds, the oldest first.
    #[must_use]
    pub fn causes(&self) -> Vec<String> {
        self.with(|holds| holds.causes.values().cloned().collect())
    }
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.with(|holds| holds.causes.is_empty())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Holds) -> T) -> T {
        // No step between lock and unlock leaves the list half changed, so a poisoned lock is still good.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Hold {
    /// Replaces the cause: `no mesh server at 10.1.0.2:4260 yet` becomes `refused by the mesh server`.
    pub fn because(&self, cause: impl Into<String>) {
        self.readiness
            .with(|holds| holds.causes.insert(self.number, cause.into()));
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.readiness
            .with(|holds| holds.causes.remove(&self.number));
    }
}
