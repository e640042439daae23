use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use isthmus_abi::ScopeProtocol;
use serde::{Deserialize, Serialize};

/// An IP address as the maps hold it: 16 bytes, IPv4 mapped into `::ffff:0:0/96`. Prints as people write it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "IpAddr", into = "IpAddr")]
pub struct Address(Ipv6Addr);

impl Address {
    /// The IPv4 address, if it is one.
    #[must_use]
    pub fn v4(self) -> Option<Ipv4Addr> {
        self.0.to_ipv4_mapped()
    }
    #[must_use]
    pub fn is_v4(self) -> bool {
        self.v4().is_some()
    }
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.0.to_canonical()
    }
    #[must_use]
    pub const fn octets(self) -> [u8; 16] {
        self.0.octets()
    }
    #[must_use]
    pub fn from_octets(octets: [u8; 16]) -> Self {
        Self(Ipv6Addr::from(octets))
    }
    /// Four words in network order, as [`isthmus_abi::BackendRow`] holds them.
    #[must_use]
    pub fn words(self) -> [u32; 4] {
        let o = self.octets();
        [0, 4, 8, 12].map(|i| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]))
    }
    #[must_use]
    pub fn from_words(words: [u32; 4]) -> Self {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::from_octets(octets)
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped()),
            IpAddr::V6(v6) => Self(v6),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(ip: Ipv4Addr) -> Self {
        IpAddr::from(ip).into()
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        address.ip()
    }
}

impl FromStr for Address {
    type Err = std::net::AddrParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpAddr>().map(Self::from)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// Layer-4 protocol of a port. Kubernetes' default is TCP.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The number that map keys carry.
    #[must_use]
    pub const fn abi(self) -> u16 {
        match self {
            Self::Tcp => ScopeProtocol::TCP,
            Self::Udp => ScopeProtocol::UDP,
            Self::Sctp => ScopeProtocol::SCTP,
        }
    }
    /// The reverse of [`Self::abi`].
    #[must_use]
    pub const fn from_abi(number: u16) -> Option<Self> {
        match number {
            ScopeProtocol::TCP => Some(Self::Tcp),
            ScopeProtocol::UDP => Some(Self::Udp),
            ScopeProtocol::SCTP => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_network_order_and_return() {
        let address: Address = "10.1.2.3".parse().expect("an address");
        assert_eq!(address.words()[2], 0xffff_u32.to_be());
        assert_eq!(address.words()[3], 0x0a01_0203_u32.to_be());
        assert_eq!(Address::from_words(address.words()), address);
        assert_eq!(address.to_string(), "10.1.2.3");
        assert!(address.is_v4());
        assert!(!"fd00::1".parse::<Address>().expect("an address").is_v4());
    }
}
