//! The addresses that an API server would have given, and who holds one that several Services claim.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use crate::model::{Address, ObjectName};

/// IP families, as a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Families {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

impl Families {
    pub(super) const BOTH: Self = Self { v4: true, v6: true };

    pub(super) fn has(self, address: Address) -> bool {
        if address.is_v4() { self.v4 } else { self.v6 }
    }
    pub(super) fn add(&mut self, v4: bool) {
        *(if v4 { &mut self.v4 } else { &mut self.v6 }) = true;
    }
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// `--service-cidr`: one range of a family, the first one gives a Service its family. Without any range Services have
/// no addresses but those that they give, and the families of their endpoints are whichever those are.
#[derive(Clone, Debug, Default)]
pub(super) struct Cidrs {
    v4: Option<IpNet>,
    v6: Option<IpNet>,
    first_is_v6: bool,
}

impl Cidrs {
    /// The first range of each family counts.
    pub(super) fn new(cidrs: &[IpNet]) -> Self {
        let first = |v4: bool| {
            cidrs
                .iter()
                .find(|cidr| matches!(cidr, IpNet::V4(_)) == v4)
                .map(IpNet::trunc)
        };
        Self {
            v4: first(true),
            v6: first(false),
            first_is_v6: matches!(cidrs.first(), Some(IpNet::V6(_))),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    /// The family of a Service that asks for none.
    pub(super) fn first(&self) -> Families {
        if self.is_empty() {
            return Families::BOTH;
        }
        Families {
            v4: !self.first_is_v6,
            v6: self.first_is_v6,
        }
    }

    pub(super) fn all(&self) -> Families {
        if self.is_empty() {
            return Families::BOTH;
        }
        Families {
            v4: self.v4.is_some(),
            v6: self.v6.is_some(),
        }
    }

    /// The same for a name on every node and after every restart: SHA-256 of `namespace/name`, its first 16 bytes as
    /// a number, modulo the addresses of the range without its first and last one (network and broadcast; in IPv6
    /// the subnet-router anycast address). None if there is no range of that family, or nothing in it.
    pub(super) fn derive(&self, name: &ObjectName, v4: bool) -> Option<Address> {
        let cidr = if v4 { self.v4 } else { self.v6 }?;
        let host_bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        let usable = 1_u128.checked_shl(host_bits).unwrap_or(0).wrapping_sub(2);
        if host_bits < 2 {
            return None;
        }
        let digest = Sha256::digest(name.to_string());
        let mut number = [0; 16];
        number.copy_from_slice(&digest[..16]);
        let offset = 1 + u128::from_be_bytes(number) % usable;
        Some(Address::from(match cidr.network() {
            // At most 32 host bits: the offset fits.
            IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from(
                network.to_bits() | u32::try_from(offset).ok()?,
            )),
            IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from(network.to_bits() | offset)),
        }))
    }
}

/// Who wants which address. A given address beats a derived one, then the smaller name holds it, so that all nodes
/// agree at all times.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    claims: HashMap<Address, BTreeSet<Claim>>,
    contested: BTreeSet<Address>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Claim {
    /// `false`, a given address, comes first.
    pub(super) derived: bool,
    pub(super) name: ObjectName,
}

impl Addresses {
    /// The holders before and after, if they differ.
    pub(super) fn add(&mut self, address: Address, claim: Claim) -> Vec<ObjectName> {
        self.change(address, |claims| {
            claims.insert(claim);
        })
    }

    /// The holders before and after, if they differ.
    pub(super) fn remove(&mut self, address: Address, claim: &Claim) -> Vec<ObjectName> {
        self.change(address, |claims| {
            claims.remove(claim);
        })
    }

    fn change(
        &mut self,
        address: Address,
        change: impl FnOnce(&mut BTreeSet<Claim>),
    ) -> Vec<ObjectName> {
        let claims = self.claims.entry(address).or_default();
        let before = claims.first().map(|claim| claim.name.clone());
        change(claims);
        let after = claims.first().map(|claim| claim.name.clone());
        if claims.len() > 1 {
            self.contested.insert(address);
        } else {
            self.contested.remove(&address);
        }
        if claims.is_empty() {
            self.claims.remove(&address);
        }
        if before == after {
            Vec::new()
        } else {
            before.into_iter().chain(after).collect()
        }
    }

    pub(super) fn holds(&self, address: Address, name: &ObjectName) -> bool {
        self.claims
            .get(&address)
            .and_then(BTreeSet::first)
            .is_some_and(|claim| claim.name == *name)
    }

    /// Addresses that several claim: the holder first, then those who got none.
    pub(super) fn contested(&self) -> impl Iterator<Item = (Address, &BTreeSet<Claim>)> {
        self.contested
            .iter()
            .filter_map(|address| Some((*address, self.claims.get(address)?)))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]
    use super::*;

    fn cidrs(texts: &[&str]) -> Cidrs {
        Cidrs::new(
            &texts
                .iter()
                .map(|text| text.parse().unwrap())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn an_address_depends_on_the_name_and_the_range_alone() {
        // Numbers of this test are a promise: another release that gave others would break every client's cache.
        let both = cidrs(&["10.96.0.0/12", "fd00:10:96::/108"]);
        let name = ObjectName::new("production", "backend");
        assert_eq!(
            both.derive(&name, true).unwrap().to_string(),
            "10.109.123.226"
        );
        assert_eq!(
            both.derive(&name, false).unwrap().to_string(),
            "fd00:10:96::d:7be2"
        );
        assert_eq!(
            cidrs(&["10.99.1.2/12"]).derive(&name, true),
            both.derive(&name, true),
            "host bits do not count"
        );
        assert_eq!(cidrs(&["10.96.0.0/12"]).derive(&name, false), None);
    }

    #[test]
    fn neither_end_of_a_range_is_given() {
        let tiny = cidrs(&["192.0.2.8/30", "2001:db8::/126"]);
        for number in 0..64 {
            let name = ObjectName::new("n", &number.to_string());
            let v4 = tiny.derive(&name, true).unwrap().to_string();
            assert!(["192.0.2.9", "192.0.2.10"].contains(&v4.as_str()), "{v4}");
            let v6 = tiny.derive(&name, false).unwrap().to_string();
            assert!(
                ["2001:db8::1", "2001:db8::2"].contains(&v6.as_str()),
                "{v6}"
            );
        }
        for none in ["192.0.2.8/31", "192.0.2.8/32"] {
            assert_eq!(
                cidrs(&[none]).derive(&ObjectName::new("a", "b"), true),
                None
            );
        }
        assert!(
            cidrs(&["0.0.0.0/0", "::/0"])
                .derive(&ObjectName::new("a", "b"), false)
                .is_some()
        );
    }

    #[test]
    fn given_beats_derived_then_the_smaller_name_holds() {
        let address: Address = "10.96.0.9".parse().unwrap();
        let claim = |derived, name| Claim {
            derived,
            name: ObjectName::new("n", name),
        };
        let mut addresses = Addresses::default();
        assert_eq!(
            addresses.add(address, claim(true, "b")),
            [ObjectName::new("n", "b")]
        );
        assert_eq!(
            addresses.add(address, claim(true, "a")),
            [ObjectName::new("n", "b"), ObjectName::new("n", "a")]
        );
        assert!(addresses.add(address, claim(true, "c")).is_empty());
        assert_eq!(addresses.add(address, claim(false, "z")).len(), 2);
        assert!(addresses.holds(address, &ObjectName::new("n", "z")));
        assert_eq!(addresses.contested().count(), 1);
        for (derived, name) in [(false, "z"), (true, "a"), (true, "b")] {
            addresses.remove(address, &claim(derived, name));
        }
        assert!(addresses.holds(address, &ObjectName::new("n", "c")));
        assert_eq!(addresses.contested().count(), 0);
    }
}
