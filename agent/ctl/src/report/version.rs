//! `version`.

use isthmus_proto::node::v1 as proto;
use schemars::JsonSchema;
use serde::Serialize;

use super::Node;
use crate::output::{Report, Style};
use crate::text::clean;

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Version of agentctl.
    pub client: String,
    /// Who answered; null if nobody was asked or nobody answered.
    pub agent: Option<Node>,
}

impl Version {
    pub fn new(agent: Option<proto::NodeInfo>) -> Self {
        Self {
            client: env!("CARGO_PKG_VERSION").to_owned(),
            agent: agent.map(|info| Some(info).into()),
        }
    }
}

impl Report for Version {
    const KIND: &'static str = "Version";

    fn text(&self, _wide: bool, _style: Style) -> String {
        let mut out = format!("agentctl       {}\n", self.client);
        if let Some(agent) = &self.agent {
            out.push_str(&format!(
                "isthmus-agent  {} on {} of cluster {}, map layout {}\n",
                clean(&agent.version),
                clean(&agent.name),
                clean(&agent.cluster),
                agent.abi_version
            ));
        }
        out
    }
    fn is_bad(&self) -> bool {
        false
    }
}
