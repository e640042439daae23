//! Rules by tables, and two properties: what is broken changes nothing, and the way to a state does not show in it.
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

mod annotations;
mod endpoints;
mod files;
mod properties;
mod rules;
mod services;

use std::collections::BTreeMap;

use super::*;
use crate::model::{EndpointKey, EndpointRow, ObjectName, RowChange, ServiceRow};

const START: Duration = Duration::ZERO;

/// Files, and the rows that they made, as a store would hold them.
struct Source {
    manifests: Manifests,
    rows: Rows,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Rows {
    services: BTreeMap<ObjectName, ServiceRow>,
    endpoints: BTreeMap<EndpointKey, EndpointRow>,
}

impl Source {
    fn new() -> Self {
        Self::with_cidrs(&["10.96.0.0/12", "fd00:10:96::/108"])
    }

    fn with_cidrs(cidrs: &[&str]) -> Self {
        let service_cidrs = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Self {
            manifests: Manifests::new(ManifestOptions { service_cidrs }),
            rows: Rows::default(),
        }
    }

    fn write(&mut self, path: &str, text: &str) -> usize {
        self.write_at(path, text, START)
    }

    fn write_at(&mut self, path: &str, text: &str, now: Duration) -> usize {
        self.manifests
            .update(path, FileContent::Present(text.as_bytes().into()), now);
        self.take()
    }

    fn remove(&mut self, path: &str) -> usize {
        self.manifests.update(path, FileContent::Removed, START);
        self.take()
    }

    /// Applies the batch and proves that each change is one.
    fn take(&mut self) -> usize {
        let batch = self.manifests.take_batch();
        assert!(!batch.complete);
        for change in &batch.changes {
            match change.clone() {
                RowChange::Service(row) => {
                    assert_ne!(
                        self.rows
                            .services
                            .insert(row.name.clone(), (*row).clone())
                            .as_ref(),
                        Some(&*row)
                    );
                }
                RowChange::ServiceGone(name) => {
                    assert!(self.rows.services.remove(&name).is_some(), "{name}")
                }
                RowChange::Endpoint(row) => {
                    assert_ne!(
                        self.rows
                            .endpoints
                            .insert(row.key(), (*row).clone())
                            .as_ref(),
                        Some(&*row)
                    );
                }
                RowChange::EndpointGone(key) => {
                    assert!(self.rows.endpoints.remove(&key).is_some(), "{key:?}")
                }
            }
        }
        let summary = self.manifests.summary();
        assert_eq!(
            (summary.services, summary.endpoints),
            (self.rows.services.len(), self.rows.endpoints.len())
        );
        batch.changes.len()
    }

    fn service(&self, name: &str) -> &ServiceRow {
        let (namespace, name) = name.split_once('/').unwrap();
        &self.rows.services[&ObjectName::new(namespace, name)]
    }

    /// Endpoints as `10.0.0.1 http/TCP:8080 Ready`.
    fn endpoints(&self, service: &str) -> Vec<String> {
        let words = |row: &EndpointRow| {
            let ports: Vec<_> = row
                .ports
                .iter()
                .map(|p| format!("{}/{}:{}", p.name, p.protocol, p.port))
                .collect();
            let words = format!(
                "{} {} {:?} {}",
                row.address,
                ports.join(","),
                row.condition,
                row.reason
            );
            words.trim_end().to_owned()
        };
        self.rows
            .endpoints
            .values()
            .filter(|row| row.service.to_string() == service)
            .map(words)
            .collect()
    }

    fn problems(&self) -> Vec<String> {
        self.problems_at(START)
    }

    fn problems_at(&self, now: Duration) -> Vec<String> {
        self.manifests
            .problems(now)
            .iter()
            .map(|problem| format!("{:?} {problem}", problem.kind))
            .collect()
    }
}

/// A Service `n/s` with `spec` in flow style.
fn service(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: n}}\nspec: {{{spec}}}\n"
    )
}

/// A pod that is ready, labelled `app: a`.
fn pod(name: &str, ip: &str) -> String {
    pod_with(
        name,
        &format!("podIP: {ip}, conditions: [{{type: Ready, status: \"True\"}}]"),
        "",
    )
}

fn pod_with(name: &str, status: &str, metadata: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: n, labels: {{app: a}}, {metadata}}}\n\
         spec: {{nodeName: n1, containers: [{{name: c, ports: [{{name: http, containerPort: 80}}]}}]}}\nstatus: {{{status}}}\n"
    )
}

/// A slice of service `n/s`.
fn slice(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: n, labels: {{kubernetes.io/service-name: s}}}}\n{rest}\n"
    )
}
