use std::net::IpAddr;

use ipnet::IpNet;

use super::row_bytes;
use crate::model::{Address, ClusterId, RowChange};

/// What a link allows its peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The id that it must have.
    pub id: Option<ClusterId>,
    /// Where its endpoints may be. `None`: in what it announced when it was first connected, if it did.
    pub cidrs: Option<Vec<IpNet>>,
    /// Services and endpoints that are held of it.
    pub rows_max: u64,
    /// What they may cost, by [`row_bytes`].
    pub bytes_max: u64,
}

impl Terms {
    pub const ROWS_MAX: u64 = 1_000_000;
    pub const BYTES_MAX: u64 = 256 << 20;
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            id: None,
            cidrs: None,
            rows_max: Self::ROWS_MAX,
            bytes_max: Self::BYTES_MAX,
        }
    }
}

/// Ranges that a cluster can announce, and a link allow.
pub const CIDRS_MAX: usize = 64;

/// Why a row is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Refusal {
    /// It is another cluster's.
    ForeignCluster,
    /// A field is missing or wrong.
    Malformed,
    /// Its address is loopback, link-local, multicast or none: it would mean something else on every node.
    SpecialAddress,
    /// Its address is in our own cluster's ranges.
    OwnAddress,
    /// Its address is outside the ranges that the link allows.
    OutsideAddress,
    /// The peer has as many rows as it may.
    TooManyRows,
    /// The peer's rows are as large as they may be.
    TooManyBytes,
}

impl Refusal {
    pub const ALL: [Self; 7] = [
        Self::ForeignCluster,
        Self::Malformed,
        Self::SpecialAddress,
        Self::OwnAddress,
        Self::OutsideAddress,
        Self::TooManyRows,
        Self::TooManyBytes,
    ];

    /// One word, for metrics and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ForeignCluster => "foreign-cluster",
            Self::Malformed => "malformed",
            Self::SpecialAddress => "special-address",
            Self::OwnAddress => "own-address",
            Self::OutsideAddress => "outside-address",
            Self::TooManyRows => "too-many-rows",
            Self::TooManyBytes => "too-many-bytes",
        }
    }

    /// It may be accepted as soon as other rows go.
    pub(super) fn is_quota(self) -> bool {
        matches!(self, Self::TooManyRows | Self::TooManyBytes)
    }
}

/// What a peer's rows are held to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    /// `None`: everywhere.
    pub(super) allowed: Option<&'a [IpNet]>,
    /// Our own cluster's ranges.
    pub(super) own: &'a [IpNet],
    pub(super) rows_max: u64,
    pub(super) bytes_max: u64,
}

/// What a peer has, without the row that is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Claimed {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

impl Rules<'_> {
    /// For rows of our own mesh server, which has held its peers to its rules.
    pub(super) const NONE: Self = Self {
        allowed: None,
        own: &[],
        rows_max: u64::MAX,
        bytes_max: u64::MAX,
    };

    pub(super) fn judge(&self, change: &RowChange, claimed: Claimed) -> Result<(), Refusal> {
        match change {
            RowChange::ServiceGone(_) | RowChange::EndpointGone(_) => return Ok(()),
            RowChange::Service(_) => {}
            RowChange::Endpoint(row) => self.judge_address(row.address)?,
        }
        if claimed.rows >= self.rows_max {
            return Err(Refusal::TooManyRows);
        }
        if claimed.bytes.saturating_add(row_bytes(change)) > self.bytes_max {
            return Err(Refusal::TooManyBytes);
        }
        Ok(())
    }

    pub(super) fn judge_address(&self, address: Address) -> Result<(), Refusal> {
        let is_in = |cidrs: &[IpNet]| cidrs.iter().any(|cidr| cidr.contains(&address.ip()));
        match self.allowed {
            _ if is_special(address) => Err(Refusal::SpecialAddress),
            _ if is_in(self.own) => Err(Refusal::OwnAddress),
            Some(allowed) if !is_in(allowed) => Err(Refusal::OutsideAddress),
            _ => Ok(()),
        }
    }
}

/// No endpoint of another cluster is reached there.
pub(super) fn is_special(address: Address) -> bool {
    let local = match address.ip() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let ip = address.ip();
    local || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;
    use crate::mesh::simulation::{endpoint_at, service};

    fn cidrs(text: &str) -> Vec<IpNet> {
        text.split_whitespace()
            .map(|cidr| cidr.parse().unwrap())
            .collect()
    }

    #[test]
    fn addresses_are_judged_by_ranges() {
        use Refusal::{OutsideAddress, OwnAddress, SpecialAddress};
        let (allowed, own) = (cidrs("10.12.0.0/16 fd00:12::/64"), cidrs("10.12.128.0/17"));
        let rules = |allowed, own| Rules {
            allowed,
            own,
            ..Rules::NONE
        };
        for (address, anywhere, ranged) in [
            ("10.12.1.5", Ok(()), Ok(())),
            ("fd00:12::5", Ok(()), Ok(())),
            ("10.13.0.1", Ok(()), Err(OutsideAddress)),
            ("fd00:13::1", Ok(()), Err(OutsideAddress)),
            ("10.12.200.1", Ok(()), Err(OwnAddress)),
            ("127.0.0.1", Err(SpecialAddress), Err(SpecialAddress)),
            ("::1", Err(SpecialAddress), Err(SpecialAddress)),
            ("0.0.0.0", Err(SpecialAddress), Err(SpecialAddress)),
            ("::", Err(SpecialAddress), Err(SpecialAddress)),
            ("169.254.169.254", Err(SpecialAddress), Err(SpecialAddress)),
            ("fe80::1", Err(SpecialAddress), Err(SpecialAddress)),
            ("224.0.0.1", Err(SpecialAddress), Err(SpecialAddress)),
            ("ff02::1", Err(SpecialAddress), Err(SpecialAddress)),
            ("255.255.255.255", Err(SpecialAddress), Err(SpecialAddress)),
        ] {
            let row = endpoint_at("a", address);
            let judge = |rules: Rules<'_>| rules.judge(&row, Claimed::default());
            assert_eq!(judge(Rules::NONE), anywhere, "{address}");
            assert_eq!(judge(rules(Some(&allowed), &own)), ranged, "{address}");
        }
        // A service has no address, and what goes is nobody's harm.
        let nowhere = rules(Some(&[]), &[]);
        assert_eq!(nowhere.judge(&service("a", 80), Claimed::default()), Ok(()));
        let gone = crate::mesh::RowKey::of(&endpoint_at("a", "127.0.0.1")).gone();
        assert_eq!(nowhere.judge(&gone, Claimed::default()), Ok(()));
    }

    #[test]
    fn quotas_count_the_row_itself() {
        let row = service("a", 80);
        let bytes = row_bytes(&row);
        let rules = Rules {
            rows_max: 2,
            bytes_max: 10 * bytes,
            ..Rules::NONE
        };
        let judge = |rows, bytes| rules.judge(&row, Claimed { rows, bytes });
        assert_eq!(judge(1, 9 * bytes), Ok(()));
        assert_eq!(judge(2, 0), Err(Refusal::TooManyRows));
        assert_eq!(judge(1, 9 * bytes + 1), Err(Refusal::TooManyBytes));
    }
}
