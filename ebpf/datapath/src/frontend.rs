use isthmus_abi::{Cidr4, Cidr6};

/// The map's number of an IP protocol (IANA), or `None` for one that has no services here. MPTCP (262, Linux' own) is TCP to
/// everybody but the socket's owner.
///
/// Told without a branch for each, lest everything after it be verified once for each.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "it is below 32")]
pub const fn protocol(ip_protocol: u32) -> Option<u16> {
    /// What MPTCP's number has beyond TCP's.
    const MPTCP: u32 = 262 - 6;
    const SERVED: u32 = 1 << 6 | 1 << 17;
    let number = ip_protocol & !MPTCP;
    if number < u32::BITS && SERVED >> number & 1 != 0 {
        Some(number as u16)
    } else {
        None
    }
}

/// The IPv4 address within an IPv4-mapped one (`::ffff:a.b.c.d`), network order.
#[inline(always)]
#[must_use]
pub const fn mapped_v4(address: [u32; 4]) -> Option<u32> {
    if address[0] == 0 && address[1] == 0 && address[2] == 0xffff_u32.to_be() {
        Some(address[3])
    } else {
        None
    }
}

#[inline(always)]
#[must_use]
pub const fn in_cidr4(cidr: &Cidr4, address: u32) -> bool {
    address & cidr.mask == cidr.base
}

#[inline(always)]
#[must_use]
pub const fn in_cidr6(cidr: &Cidr6, address: [u32; 4]) -> bool {
    address[0] & cidr.mask[0] == cidr.base[0]
        && address[1] & cidr.mask[1] == cidr.base[1]
        && address[2] & cidr.mask[2] == cidr.base[2]
        && address[3] & cidr.mask[3] == cidr.base[3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_abi::ScopeProtocol;

    #[test]
    fn protocols_of_services_are_told() {
        assert_eq!(protocol(6), Some(ScopeProtocol::TCP));
        assert_eq!(protocol(262), Some(ScopeProtocol::TCP));
        assert_eq!(protocol(17), Some(ScopeProtocol::UDP));
        for other in (0..1024).filter(|number| ![6, 262, 17, 273].contains(number)) {
            assert_eq!(protocol(other), None, "{other}");
        }
    }

    #[test]
    fn mapped_addresses_are_found() {
        let v4 = 0x0a01_0203_u32.to_be();
        assert_eq!(mapped_v4([0, 0, 0xffff_u32.to_be(), v4]), Some(v4));
        assert_eq!(mapped_v4([0, 0, 0, v4]), None);
        assert_eq!(
            mapped_v4([0xfd00_0000_u32.to_be(), 0, 0xffff_u32.to_be(), v4]),
            None
        );
    }

    #[test]
    fn unused_cidrs_match_nothing() {
        assert!(!in_cidr4(&Cidr4::UNUSED, 0));
        assert!(!in_cidr4(&Cidr4::UNUSED, u32::MAX));
        assert!(!in_cidr6(&Cidr6::UNUSED, [u32::MAX; 4]));
        let ten = Cidr4 {
            base: 0x0a60_0000_u32.to_be(),
            mask: 0xfff0_0000_u32.to_be(),
        };
        assert!(in_cidr4(&ten, 0x0a6f_ffff_u32.to_be()));
        assert!(!in_cidr4(&ten, 0x0a70_0000_u32.to_be()));
    }
}
