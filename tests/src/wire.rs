//! Wires between clusters: loss and cuts, by rules in the backbone. A cut drops packets both ways without a sign: no
//! interface goes down, nothing is refused.

use anyhow::{Result, ensure};

use crate::layout::{ClusterPlan, backbone_netns};
use crate::netns::Netns;

/// The wire between two clusters. What it does holds for packets under way from now on, also of open connections.
#[derive(Clone, Debug)]
pub struct Wire {
    backbone: Netns,
    /// Names the rules' chain.
    chain: String,
    ends: [String; 2],
}

impl Wire {
    /// The wire as the lab file has it: whole, or absent if there is no link. Made once a pair.
    pub(crate) fn lay(a: &ClusterPlan, b: &ClusterPlan) -> Result<Self> {
        let wire = Self::between(a, b);
        let [left, right] = &wire.ends;
        let chain = &wire.chain;
        wire.backbone.nft(&format!(
            "add chain inet isthmus-lab {chain}\n\
             add rule inet isthmus-lab wires iifname \"{left}\" oifname \"{right}\" jump {chain}\n\
             add rule inet isthmus-lab wires iifname \"{right}\" oifname \"{left}\" jump {chain}\n"
        ))?;
        Ok(wire)
    }
    /// A wire that was laid before.
    pub(crate) fn between(a: &ClusterPlan, b: &ClusterPlan) -> Self {
        let (a, b) = if a.number <= b.number { (a, b) } else { (b, a) };
        Self {
            backbone: Netns::new(backbone_netns(&a.lab)),
            chain: format!("wire-{}-{}", a.number, b.number),
            ends: [a.backbone_interfaces(), b.backbone_interfaces()],
        }
    }
    /// Every packet vanishes, both ways.
    pub fn cut(&self) -> Result<()> {
        self.set("drop")
    }
    /// No packet is lost any more.
    pub fn mend(&self) -> Result<()> {
        self.set("")
    }
    /// A share of packets vanishes, each way, each packet by itself.
    pub fn lose(&self, share: f64) -> Result<()> {
        ensure!(
            (0.0..=1.0).contains(&share),
            "loss: {share} is not a share from 0 to 1"
        );
        #[expect(clippy::cast_possible_truncation, reason = "0..=10000, checked above")]
        let in_10_000 = (share * 10_000.0).round() as u32;
        match in_10_000 {
            0 => self.mend(),
            10_000.. => self.cut(),
            _ => self.set(&format!("numgen random mod 10000 < {in_10_000} drop")),
        }
    }
    fn set(&self, rule: &str) -> Result<()> {
        let chain = &self.chain;
        let rule = match rule {
            "" => String::new(),
            rule => format!("add rule inet isthmus-lab {chain} {rule}\n"),
        };
        self.backbone
            .nft(&format!("flush chain inet isthmus-lab {chain}\n{rule}"))
    }
}
