use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use crate::model::ObjectName;

use super::annotation::Mesh;
use super::service::Service;

/// Which Namespaces keep their Services at home, and which Services would be global but for that.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    homebound: HashSet<Arc<str>>,
    overruled: BTreeSet<ObjectName>,
}

impl Namespaces {
    /// True if the Namespace said otherwise before. One that says nothing is global.
    pub(super) fn set(&mut self, namespace: &Arc<str>, global: bool) -> bool {
        if global {
            self.homebound.remove(namespace)
        } else {
            self.homebound.insert(namespace.clone())
        }
    }

    /// The Service or its Namespace is another one now.
    pub(super) fn note(&mut self, name: &ObjectName, service: Option<&Service>) {
        let asks = service.is_some_and(|service| service.mesh.global);
        if asks && self.homebound.contains(&name.namespace) {
            self.overruled.insert(name.clone());
        } else {
            self.overruled.remove(name);
        }
    }

    /// A Service is global if it and its Namespace are (Cilium 1.19, global namespaces).
    pub(super) fn mesh(&self, service: &Service) -> Mesh {
        if self.homebound.contains(&service.name.namespace) {
            Mesh::default()
        } else {
            service.mesh
        }
    }

    /// Services that say that they are global, in Namespaces that say that none is.
    pub(super) fn overruled(&self) -> &BTreeSet<ObjectName> {
        &self.overruled
    }
}
