//! What `clustermesh certs` made.

use schemars::JsonSchema;
use serde::Serialize;

use crate::output::{Report, Style};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterCertificates {
    pub cluster: String,
    /// Files that are new. Keys that were there are used again.
    pub written: Vec<String>,
    /// The directory of the authority that signed them.
    pub authority: String,
    pub valid_for_days: i64,
}

impl Report for ClusterCertificates {
    const KIND: &'static str = "ClusterCertificates";

    fn text(&self, _wide: bool, _style: Style) -> String {
        let Self {
            authority,
            valid_for_days,
            ..
        } = self;
        let mut out = String::new();
        for file in &self.written {
            out.push_str(&format!("{file} written\n"));
        }
        out.push_str(&format!(
            "The certificates are good for {valid_for_days} days; the same command makes new ones.\n\
             For another cluster: agentctl clustermesh certs --cluster NAME --out DIR --ca {authority}\n\
             Who has {authority}/ca.key can speak for every cluster of the mesh: keep it off the nodes.\n"
        ));
        out
    }
    fn is_bad(&self) -> bool {
        false
    }
}
