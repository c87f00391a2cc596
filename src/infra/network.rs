//! Computes domains' subnets and machines' addresses: pure arithmetic on octets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::TrustLevel;

/// First two octets of subnets if `base_subnet` is not set.
pub(super) const BASE_SUBNET: &str = "10.100";
/// First octet of every zone.
pub(super) const ZONE_OCTET: u8 = 10;
/// Second octet of the first zone if `zone_base` is not set.
pub(super) const ZONE_BASE: u8 = 100;
/// Largest `subnet_id`.
pub(super) const SUBNET_ID_MAX: u8 = 254;
/// Last octet of the gateway.
pub(super) const GATEWAY: u8 = 254;
/// Last octet of the firewall machine that `firewall_mode: vm` adds.
pub(super) const FIREWALL: u8 = 253;
/// Last octets assigned automatically to machines in a zone.
pub(super) const AUTOMATIC: std::ops::RangeInclusive<u8> = 1..=99;

/// Parses the two octets of a `base_subnet`; refuses leading zeros, which some programs read as octal.
pub(super) fn base_octets(text: &str) -> Option<(u8, u8)> {
    let (first, second) = text.split_once('.')?;
    Some((octet(first)?, octet(second)?))
}

fn octet(text: &str) -> Option<u8> {
    let number = text.parse::<u8>().ok()?;
    (number.to_string() == text).then_some(number)
}

/// Returns the second octet of a zone; `None` if it would exceed 255.
pub(super) fn zone_octet(zone_base: u8, trust: TrustLevel) -> Option<u8> {
    let offset = match trust {
        TrustLevel::Admin => 0,
        TrustLevel::Trusted => 10,
        TrustLevel::SemiTrusted => 20,
        TrustLevel::Untrusted => 40,
        TrustLevel::Disposable => 50,
    };
    zone_base.checked_add(offset)
}

/// Assigns each domain in a zone its `subnet_id`: the declared one or, in name order, the first free one;
/// `None` if none is left.
pub(super) fn subnet_ids(zone: &[(&str, Option<u8>)]) -> BTreeMap<String, Option<u8>> {
    let mut taken: BTreeSet<u8> = zone.iter().filter_map(|(_, id)| *id).collect();
    let mut names: Vec<&(&str, Option<u8>)> = zone.iter().collect();
    names.sort_by_key(|(name, _)| *name);
    let mut next = 0..=SUBNET_ID_MAX;
    names
        .into_iter()
        .map(|(name, written)| {
            let id = written.or_else(|| next.find(|id| !taken.contains(id)));
            taken.extend(id);
            ((*name).to_owned(), id)
        })
        .collect()
}

/// The reason why a machine may not have a particular address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressFault {
    /// Not in the subnet.
    Outside,
    /// The address of the subnet itself.
    Network,
    /// The gateway's address.
    Gateway,
    /// The broadcast address.
    Broadcast,
}

/// Checks whether a machine in this /24 may have this address.
pub(super) fn check_address(address: Ipv4Addr, subnet: Ipv4Addr) -> Result<(), AddressFault> {
    let [.., last] = address.octets();
    if host(subnet, last) != address {
        return Err(AddressFault::Outside);
    }
    match last {
        0 => Err(AddressFault::Network),
        GATEWAY => Err(AddressFault::Gateway),
        255 => Err(AddressFault::Broadcast),
        _ => Ok(()),
    }
}

/// Returns the address with this last octet in a /24.
pub(super) fn host(subnet: Ipv4Addr, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = subnet.octets();
    Ipv4Addr::new(a, b, c, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_subnet_is_two_octets_in_one_notation() {
        assert_eq!(base_octets("10.100"), Some((10, 100)));
        for bad in [
            "", "10", "10.", "10.256", "10.0100", "10.1.2", "banana", "+1.2", "10.100\n",
        ] {
            assert_eq!(base_octets(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn zones_do_not_leave_the_octet() {
        assert_eq!(zone_octet(100, TrustLevel::Admin), Some(100));
        assert_eq!(zone_octet(205, TrustLevel::Disposable), Some(255));
        assert_eq!(zone_octet(245, TrustLevel::Disposable), None);
    }

    #[test]
    fn subnet_ids_are_the_written_ones_and_then_the_first_free_by_name() {
        let ids = subnet_ids(&[("c", None), ("a", None), ("b", Some(0)), ("d", Some(2))]);
        let ids: Vec<_> = ids.into_iter().collect();
        let expected =
            [("a", 1), ("b", 0), ("c", 3), ("d", 2)].map(|(name, id)| (name.to_owned(), Some(id)));
        assert_eq!(ids, expected);
    }

    #[test]
    fn the_256th_domain_of_a_zone_has_no_subnet() {
        let names: Vec<String> = (0..300).map(|n| format!("d{n:03}")).collect();
        let zone: Vec<_> = names.iter().map(|name| (name.as_str(), None)).collect();
        let ids = subnet_ids(&zone);
        assert_eq!(ids.get("d254"), Some(&Some(254)));
        assert_eq!(ids.get("d255"), Some(&None));
    }

    #[test]
    fn a_machine_has_neither_the_first_nor_the_last_two_addresses() {
        let subnet = Ipv4Addr::new(10, 100, 0, 0);
        for (last, expected) in [
            (0, Err(AddressFault::Network)),
            (1, Ok(())),
            (253, Ok(())),
            (254, Err(AddressFault::Gateway)),
            (255, Err(AddressFault::Broadcast)),
        ] {
            assert_eq!(
                check_address(host(subnet, last), subnet),
                expected,
                "{last}"
            );
        }
        let outside = Ipv4Addr::new(10, 100, 1, 1);
        assert_eq!(check_address(outside, subnet), Err(AddressFault::Outside));
    }
}
