use std::fmt;

use ipnet::IpNet;

use super::super::{Quarantine, Refusal};
use crate::model::ClusterName;

/// What an operator should read in the mesh server's log.
#[derive(Clone, PartialEq, Debug)]
pub enum Notice {
    /// A list was doubted.
    Quarantined {
        cluster: ClusterName,
        quarantine: Quarantine,
    },
    /// All that was in quarantine was named again, one way or the other.
    Confirmed { cluster: ClusterName },
    /// The grace time is over: the rows went.
    Released { cluster: ClusterName, rows: usize },
    /// Where a peer's endpoints are was learnt from itself, and is held to.
    Learnt {
        cluster: ClusterName,
        cidrs: Vec<IpNet>,
    },
    /// Rows were refused; some of their names.
    Refused {
        cluster: ClusterName,
        reason: Refusal,
        rows: u64,
        names: Vec<String>,
    },
}

/// `10.1.0.0/16, fd00:1::/48`.
fn listed(cidrs: &[IpNet]) -> String {
    let cidrs: Vec<String> = cidrs.iter().map(ToString::to_string).collect();
    cidrs.join(", ")
}

impl Notice {
    pub(super) fn of_quarantine(
        cluster: &ClusterName,
        before: Option<Quarantine>,
        after: Option<Quarantine>,
    ) -> Option<Self> {
        let cluster = cluster.clone();
        match (before, after) {
            (Some(before), Some(after)) if before.until == after.until => None,
            (_, Some(quarantine)) => Some(Self::Quarantined {
                cluster,
                quarantine,
            }),
            (Some(_), None) => Some(Self::Confirmed { cluster }),
            (None, None) => None,
        }
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Quarantined {
                cluster,
                quarantine,
            } => {
                let Quarantine {
                    rows, held, until, ..
                } = quarantine;
                let grace = *until - quarantine.since.moment();
                write!(
                    f,
                    "{cluster}: its newest list leaves out {rows} of {held} rows; they stay for {grace:?}, and go then if \
                     they are not named again (--quarantine-share, --quarantine-time)"
                )
            }
            Self::Confirmed { cluster } => {
                write!(f, "{cluster}: what its list had left out was named again")
            }
            Self::Released { cluster, rows } => write!(
                f,
                "{cluster}: {rows} rows go, that its list had left out and that were not named since"
            ),
            Self::Learnt { cluster, cidrs } => write!(
                f,
                "{cluster}: its endpoints are in {}, as it says; others are refused from now on (spec.cidrs of the link \
                 says otherwise)",
                listed(cidrs)
            ),
            Self::Refused {
                cluster,
                reason,
                rows,
                names,
            } => {
                let (reason, names) = (reason.name(), names.join(", "));
                write!(
                    f,
                    "{cluster}: {rows} rows refused ({reason}), among them {names}"
                )
            }
        }
    }
}
