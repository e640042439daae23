//! What `clustermesh connect` and `disconnect` did.

use schemars::JsonSchema;
use serde::Serialize;

use crate::output::{Report, Style};
use crate::text::{Seconds, clean};

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLink {
    /// The other cluster.
    pub name: String,
    /// The link's file.
    pub file: String,
    pub done: Done,
    /// True once the agent sees the other cluster connected; null if nobody waited.
    pub connected: Option<bool>,
    /// How long that took, or was waited for; null if nobody waited.
    pub waited_seconds: Option<Seconds>,
    /// What the agent knows of the cause, if it is not connected.
    pub not_connected_because: Option<String>,
    /// What to run for the other cluster: a link is one direction.
    pub other_side: String,
    /// True if `otherSide` has parts that only a person can fill in, in capitals.
    pub other_side_is_incomplete: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Done {
    Written,
    /// It was so before.
    Unchanged,
    Removed,
}

impl Report for ClusterLink {
    const KIND: &'static str = "ClusterLinkChange";

    fn text(&self, _wide: bool, _style: Style) -> String {
        let Self { name, file, .. } = self;
        let mut out = match self.done {
            Done::Written => format!("{file} written\n"),
            Done::Unchanged => format!("{file} was so before\n"),
            Done::Removed => format!("{file} removed: nothing of {name} is used any more\n"),
        };
        if let (Some(connected), Some(time)) = (self.connected, self.waited_seconds) {
            out.push_str(&if connected {
                format!(
                    "{name} is connected, {} after the link was there\n",
                    time.fine()
                )
            } else {
                format!("{name} is not connected after {time}; the link stays and is tried on\n")
            });
            if let Some(cause) = &self.not_connected_because {
                out.push_str(&format!("  {}\n", clean(cause)));
            }
        }
        let what = match self.done {
            Done::Removed => format!("A link is one direction. To end the other one, on {name}:"),
            _ => format!("A link is one direction. For the other one, on {name}:"),
        };
        out.push_str(&format!("{what}\n  {}\n", self.other_side));
        if self.other_side_is_incomplete {
            out.push_str("  (fill in what is written in capitals: this agentctl cannot know it)\n");
        }
        out
    }
    fn is_bad(&self) -> bool {
        self.connected == Some(false)
    }
}
