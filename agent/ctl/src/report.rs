//! What is shown, as types: built from the agent's answer, judged, then printed as a table or as JSON.

pub mod certs;
pub mod health;
pub mod lb;
pub mod link;
pub mod mesh;
pub mod monitor;
pub mod service;
pub mod status;
pub mod version;

use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use crate::output::{Paint, Style};
use crate::text::{Seconds, clean};

/// Who answered.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    pub name: String,
    pub cluster: String,
    pub cluster_id: u32,
    /// Version of isthmus-agent.
    pub version: String,
    /// Layout of the maps that the agent reads and writes.
    pub abi_version: u32,
    pub uptime_seconds: Seconds,
}

impl From<Option<proto::NodeInfo>> for Node {
    fn from(info: Option<proto::NodeInfo>) -> Self {
        let info = info.unwrap_or_default();
        Self {
            name: info.node,
            cluster: info.cluster,
            cluster_id: info.cluster_id,
            version: info.version,
            abi_version: info.abi_version,
            uptime_seconds: Seconds::new(info.uptime_seconds),
        }
    }
}

impl Node {
    /// The first line of a status.
    fn headline(&self) -> String {
        format!(
            "Cluster {} (id {}), node {}, isthmus-agent {}",
            self.cluster, self.cluster_id, self.name, self.version
        )
    }
}

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attention {
    pub severity: Severity,
    /// What it is about: a peer's name, `feed`, `map frontends4`; empty if the cause says it.
    pub about: String,
    /// What is the matter.
    pub cause: String,
    /// What can be done, a line each.
    pub way_out: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The command exits 1.
    Fault,
    /// Worth knowing, and not wrong.
    Note,
}

impl Attention {
    pub fn fault(about: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(Severity::Fault, about, cause)
    }
    pub fn note(about: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(Severity::Note, about, cause)
    }
    fn new(severity: Severity, about: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            severity,
            about: about.into(),
            cause: cause.into(),
            way_out: Vec::new(),
        }
    }
    #[must_use]
    pub fn way_out(mut self, line: impl Into<String>) -> Self {
        self.way_out.push(line.into());
        self
    }
    pub fn is_fault(&self) -> bool {
        self.severity == Severity::Fault
    }
}

/// A paragraph of attention lines, faults as `! about  cause`, notes as `- about  cause`; what can be done below.
fn attention_text(attention: &[Attention], style: Style) -> String {
    let width = attention.iter().map(|a| a.about.chars().count()).max();
    let width = width.unwrap_or(0).min(24);
    let mut out = String::new();
    for item in attention {
        let (mark, paint) = match item.severity {
            Severity::Fault => ("!", Paint::Bad),
            Severity::Note => ("-", Paint::Warn),
        };
        out.push_str(&style.paint(paint, mark));
        out.push(' ');
        if width > 0 {
            out.push_str(&format!("{:<width$}  ", clean(&item.about)));
        }
        out.push_str(&clean(&item.cause));
        out.push('\n');
        let indent = if width > 0 { width + 4 } else { 2 };
        for line in &item.way_out {
            out.push_str(&format!("{:indent$}{}\n", "", clean(line)));
        }
    }
    out
}

fn has_fault(attention: &[Attention]) -> bool {
    attention.iter().any(Attention::is_fault)
}
