//! A domain's network and its access list, which isolates it and lets through what `network_policies` permit.
//!
//! Incus checks rules that reject before rules that allow. A permitted destination is therefore cut out of the rule that
//! rejects the other domains; the access list of the destination decides about sources, protocols and ports.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::difference::{Desired, create, delete, edit, edits};
use super::ownership::{self, Ownership, may_touch, owner};
use super::{Action, Obstacles, PlanCode, PlanInputs};
use crate::diagnostic::quote;
use crate::incus::state::{Acl, IncusNetwork};
use crate::incus::{ConfigMap, Devices, Direction, Edit, Object, as_object};
use crate::infra::Domain;
use crate::infra::policy::{NetworkEnd, NetworkPolicy};

/// Prefix of the descriptions of anklume's rules; other rules are left alone.
const OUR_RULE: &str = "anklume: ";
/// Shortest prefix of a connected network that must not contain a domain's subnet; shorter ones are whole private ranges.
const ROUTE_MIN: u8 = 16;
/// Prefix length of a domain's subnet, in bits.
pub(super) const PREFIX: u8 = 24;
/// First and last octets of the addresses that machines may have.
const HOSTS: (u8, u8) = (1, 253);
/// Statuses of a network whose creation did not finish.
const UNFINISHED: [&str; 2] = ["Pending", "Errored"];
/// A key of a network whose change makes Incus set up the bridge again.
pub(crate) const EXPIRY: &str = "ipv4.dhcp.expiry";
/// Maximum number of ports in a rule, with xtables.
const PORTS_MAX: usize = 15;
/// ICMP type of an echo request.
const PING: &str = "8";

fn subnet(domain: &Domain) -> String {
    format!("{}/{PREFIX}", domain.network.subnet)
}

/// The addresses of all other domains to which nothing may be sent, in Incus's form. Counts the domains in the file,
/// including disabled ones, and those that are still in Incus.
fn closed_addresses(inputs: &PlanInputs<'_>, domain: &Domain, open: &[AddressRange]) -> String {
    let declared = inputs.wanted.infra.domains.iter();
    let declared = declared
        .filter(|other| other.name != domain.name)
        .map(|other| other.network.subnet);
    // A declared network gets its declared subnet, whatever it has now.
    let is_ours = |name: &str| {
        let mut domains = inputs.wanted.infra.domains.iter();
        domains.any(|one| one.network.name == name)
    };
    let left = inputs.state.networks.iter().filter(|network| {
        !is_ours(&network.name) && owner(&network.config, inputs.project()) == Ownership::Ours
    });
    let left = left.filter_map(|network| Some(parse_subnet(network)?.0));
    let mut subnets: BTreeSet<Ipv4Addr> = declared.chain(left).collect();
    subnets.remove(&domain.network.subnet);
    let closed = subnets.into_iter().flat_map(|subnet| without(subnet, open));
    closed.collect::<Vec<_>>().join(",")
}

/// Addresses from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct AddressRange(Ipv4Addr, Ipv4Addr);

impl AddressRange {
    /// The addresses of an end of a policy: of a domain, those that machines may have, without that of the host.
    fn of(inputs: &PlanInputs<'_>, end: &NetworkEnd) -> Option<Self> {
        if let Some((_, address)) = end.machine {
            return Some(Self(address, address));
        }
        let mut domains = inputs.wanted.infra.enabled();
        let subnet = domains
            .find(|domain| domain.name == end.domain)?
            .network
            .subnet;
        let [a, b, c, _] = subnet.octets();
        Some(Self(
            Ipv4Addr::new(a, b, c, HOSTS.0),
            Ipv4Addr::new(a, b, c, HOSTS.1),
        ))
    }
}

/// The addresses of an end of a policy, in Incus's form. The host's address in a domain is part of its subnet, but stays
/// closed to the other domains by their own rules.
fn end_addresses(inputs: &PlanInputs<'_>, end: &NetworkEnd) -> Option<String> {
    if let Some((_, address)) = end.machine {
        return Some(address.to_string());
    }
    let mut domains = inputs.wanted.infra.enabled();
    let domain = domains.find(|domain| domain.name == end.domain)?;
    Some(subnet(domain))
}

/// Splits addresses into aligned blocks: Incus accepts ranges only with nftables, not with xtables.
fn blocks(first: u32, last: u32) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut next = Some(first);
    while let Some(from) = next.filter(|from| *from <= last) {
        let mut host_bits = from.trailing_zeros();
        let end = |host_bits: u32| from | u32::MAX.checked_shr(32 - host_bits).unwrap_or(0);
        while end(host_bits) > last {
            host_bits -= 1;
        }
        let address = Ipv4Addr::from(from);
        blocks.push(match host_bits {
            0 => address.to_string(),
            bits => format!("{address}/{}", 32 - bits),
        });
        next = end(host_bits).checked_add(1);
    }
    blocks
}

/// Returns the parts of a subnet outside of these ranges, in blocks.
fn without(subnet: Ipv4Addr, open: &[AddressRange]) -> Vec<String> {
    let first = u32::from(subnet);
    let last = first | u32::from(u8::MAX);
    let mut next = first;
    let mut parts = Vec::new();
    let mut add = |from: u32, to: u32| parts.extend(blocks(from, to));
    let mut open: Vec<(u32, u32)> = open
        .iter()
        .map(|range| (u32::from(range.0), u32::from(range.1)))
        .filter(|(from, to)| *from >= first && *to <= last)
        .collect();
    open.sort_unstable();
    for (from, to) in open {
        if from > next {
            add(next, from - 1);
        }
        next = next.max(to.saturating_add(1));
    }
    add(next, last);
    parts
}

/// A permitted direction of a policy.
struct Flow<'a> {
    from: &'a NetworkEnd,
    to: &'a NetworkEnd,
    policy: &'a NetworkPolicy,
}

/// Returns the permitted directions of all policies.
fn flows<'a>(inputs: &PlanInputs<'a>) -> Vec<Flow<'a>> {
    let policies = inputs.wanted.infra.policies.iter();
    let flows = policies.flat_map(|policy| {
        let flow = |from, to| Flow { from, to, policy };
        let back = policy.bidirectional.then(|| flow(&policy.to, &policy.from));
        [Some(flow(&policy.from, &policy.to)), back]
    });
    flows.flatten().collect()
}

/// The first address of a managed network, and its prefix length.
pub(super) fn parse_subnet(network: &IncusNetwork) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = network.config.get("ipv4.address")?.split_once('/')?;
    let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    Some((first_address(address, prefix), prefix))
}

/// The first address of a network.
pub(super) fn first_address(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    Ipv4Addr::from(u32::from(address) & mask)
}

/// The rules of a domain, by direction.
///
/// Incoming traffic is accepted from the domain itself, including the host's address in it, and as policies permit; the
/// network's default rejects the rest. Outgoing traffic may go anywhere except other domains and their gateways, which are
/// on the host, where their own defaults are not consulted.
fn rules(inputs: &PlanInputs<'_>, domain: &Domain) -> [(Direction, Vec<ConfigMap>); 2] {
    let rule = |action: &str, about: &str, keys: &[(&str, &str)]| {
        let own = [
            ("action", action),
            ("state", "enabled"),
            ("description", &format!("{OUR_RULE}{about}")),
        ];
        let all = own.iter().chain(keys);
        let all = all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        all.collect::<ConfigMap>()
    };
    let (mut open, mut ingress) = (BTreeSet::new(), Vec::new());
    ingress.push(rule("allow", "this domain", &[("source", &subnet(domain))]));
    for Flow { from, to, policy } in flows(inputs) {
        let ends = end_addresses(inputs, from).zip(end_addresses(inputs, to));
        let Some((source, destination)) = ends else {
            continue;
        };
        if from.domain == domain.name {
            open.extend(AddressRange::of(inputs, to));
        }
        if to.domain != domain.name {
            continue;
        }
        let about = format!("{} may reach {}", from.name(), to.name());
        let ends = [("source", &*source), ("destination", &*destination)];
        let mut allow = |keys: &[(&str, &str)]| {
            ingress.push(rule("allow", &about, &[&ends[..], keys].concat()));
        };
        let ports: Option<BTreeSet<u16>> =
            policy.ports.as_ref().map(|it| it.iter().copied().collect());
        for protocol in &policy.protocols {
            let protocol = ("protocol", protocol.as_str());
            let Some(ports) = &ports else {
                allow(&[protocol]);
                continue;
            };
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            for some in ports.chunks(PORTS_MAX) {
                allow(&[protocol, ("destination_port", &some.join(","))]);
            }
        }
        if ports.is_none() {
            allow(&[("protocol", "icmp4"), ("icmp_type", PING)]);
        }
    }
    // Two policies may say the same.
    let mut seen = BTreeSet::new();
    ingress.retain(|rule| seen.insert(rule.clone()));
    let open: Vec<AddressRange> = open.into_iter().collect();
    let closed = closed_addresses(inputs, domain, &open);
    let egress = (!closed.is_empty())
        .then(|| rule("reject", "the other domains", &[("destination", &closed)]));
    [
        (Direction::Ingress, ingress),
        (Direction::Egress, egress.into_iter().collect()),
    ]
}

/// Plans the access list.
pub(super) fn acl(
    inputs: &PlanInputs<'_>,
    domain: &Domain,
    faults: &mut Obstacles,
) -> Option<Action> {
    let name = domain.network.name.as_str();
    let object = Object::Acl(name.to_owned());
    let rules = rules(inputs, domain);
    let mut want = Desired::default().marked(inputs.project());
    want.set(ownership::DOMAIN, domain.name.as_str());
    let Some(current) = inputs.state.acls.iter().find(|one| one.name == name) else {
        let mut body = json!({"name": name, "config": as_object(&want.config)});
        for (direction, rules) in &rules {
            let rules: Vec<Value> = rules.iter().map(as_object).collect();
            if let Some(body) = body.as_object_mut() {
                body.insert(direction.as_str().to_owned(), rules.into());
            }
        }
        return Some(create(object, body, "keeps the domain apart"));
    };
    if !may_touch(inputs, domain, &object, &current.config, faults) {
        return None;
    }
    let mut edits = edits(&current.config, &Devices::new(), "", &want);
    let rules = rules.into_iter().map(|(direction, new)| Edit::Rules {
        direction,
        old: our_rules(current, direction),
        new,
    });
    edits.extend(rules.filter(|edit| !matches!(edit, Edit::Rules { old, new, .. } if old == new)));
    edit(object, edits)
}

/// The non-empty keys of the rules that anklume created.
fn our_rules(acl: &Acl, direction: Direction) -> Vec<ConfigMap> {
    let rules = match direction {
        Direction::Ingress => &acl.ingress,
        Direction::Egress => &acl.egress,
    };
    let is_ours = |about: &String| about.starts_with(OUR_RULE);
    let ours = rules
        .iter()
        .filter(|rule| rule.get("description").is_some_and(is_ours));
    let mut ours: Vec<ConfigMap> = ours.cloned().collect();
    for rule in &mut ours {
        rule.retain(|_, value| !value.is_empty());
    }
    ours
}

/// Plans the network. `infra` has already checked that its name fits an interface.
pub(super) fn network(
    inputs: &PlanInputs<'_>,
    domain: &Domain,
    faults: &mut Obstacles,
) -> Vec<Action> {
    let name = domain.network.name.as_str();
    let object = Object::Network(name.to_owned());
    let mut networks = inputs.state.networks.iter();
    let current = networks.find(|one| one.name == name);
    overlaps(inputs, domain, current.is_some(), faults);
    let [a, b, c, _] = domain.network.subnet.octets();
    let mut want = Desired::default();
    want.set(
        "ipv4.address",
        format!("{}/{PREFIX}", domain.network.gateway),
    );
    want.set("ipv4.nat", "true");
    want.set(
        "ipv4.dhcp.ranges",
        format!("{a}.{b}.{c}.100-{a}.{b}.{c}.249"),
    );
    // Without IPv6, no traffic can bypass the IPv4 rules.
    want.set("ipv6.address", "none");
    want.set("security.acls.default.ingress.action", "reject");
    want.set("security.acls.default.egress.action", "allow");
    // The user's own lists are kept alongside ours.
    let lists = current.and_then(|network| network.config.get("security.acls"));
    let lists = match lists.filter(|lists| !lists.is_empty()) {
        Some(lists) if lists.split(',').any(|one| one.trim() == name) => lists.clone(),
        Some(lists) => format!("{lists},{name}"),
        None => name.to_owned(),
    };
    want.set("security.acls", lists);
    let mut want = want.marked(inputs.project());
    want.set(ownership::DOMAIN, domain.name.as_str());
    let body = json!({"name": name, "type": "bridge", "config": as_object(&want.config)});
    let interfaces = inputs.facts.interfaces.as_ref();
    let has_interface = interfaces.map(|interfaces| interfaces.contains_key(name));
    // Incus does not list interfaces of every kind.
    let is_other = match current {
        Some(current) => !current.managed || current.kind != "bridge",
        None => has_interface == Some(true),
    };
    if is_other {
        faults.add(
            PlanCode::BridgeName,
            Some(&domain.place),
            format!(
                "the domain {} needs a bridge {}, but the host uses that name for something else",
                quote(domain.name.as_str()),
                quote(name)
            ),
            format!(
                "give the domain another name, or remove that interface (`ip link show {name}`)"
            ),
        );
        return Vec::new();
    }
    let Some(current) = current else {
        return vec![create(object, body, subnet(domain))];
    };
    if !may_touch(inputs, domain, &object, &current.config, faults) {
        return Vec::new();
    }
    if UNFINISHED.contains(&&*current.status) {
        // Incus refuses every change of such a network, and nothing can use it.
        let create = create(object.clone(), body, subnet(domain));
        let left = has_interface == Some(true);
        let left = left.then(|| Action::RemoveBridge(name.to_owned()));
        let actions = [Some(delete(object)), left, Some(create)];
        return actions.into_iter().flatten().collect();
    }
    let edits = edits(&current.config, &Devices::new(), "", &want);
    let mut actions: Vec<Action> = edit(object.clone(), edits).into_iter().collect();
    if let Some(interfaces) = interfaces {
        let is_gone = !interfaces.contains_key(name);
        let mut ports = ports(inputs, name);
        ports.retain(|(_, port)| {
            let bridge = interfaces.get(port);
            bridge.is_some_and(|bridge| bridge.as_deref() != Some(name))
        });
        if is_gone || !ports.is_empty() {
            actions.push(Action::RestoreBridge {
                network: object,
                is_gone,
                expiry: current.config.get(EXPIRY).cloned(),
                ports,
            });
        }
    }
    actions
}

/// Returns the machines that are running on a network, each with its interface on the host.
fn ports(inputs: &PlanInputs<'_>, network: &str) -> Vec<(String, String)> {
    let running = inputs.state.instances.iter().filter(|one| one.is_running());
    let ports = running.flat_map(|machine| {
        let nics = machine.expanded_devices.iter();
        let nics = nics.filter(|(_, keys)| keys.get("network").is_some_and(|it| it == network));
        nics.filter_map(|(device, _)| {
            let key = format!("volatile.{device}.host_name");
            Some((machine.name.clone(), machine.config.get(&key)?.clone()))
        })
    });
    ports.collect()
}

/// Reports other networks that overlap with this one.
fn overlaps(inputs: &PlanInputs<'_>, domain: &Domain, exists: bool, faults: &mut Obstacles) {
    let ours = domain.network.subnet;
    let meets = |network: Ipv4Addr, prefix: u8| {
        let shorter = prefix.min(PREFIX);
        first_address(ours, shorter) == first_address(network, shorter)
    };
    let networks = || inputs.state.networks.iter().filter(|one| one.managed);
    let others = networks().filter(|one| one.name != domain.network.name);
    let mut taken: Vec<String> = others
        .filter(|one| parse_subnet(one).is_some_and(|(network, prefix)| meets(network, prefix)))
        .map(|one| format!("the network {}", quote(&one.name)))
        .collect();
    if !exists {
        let routes = inputs.facts.routes.iter();
        let routes = routes
            .filter(|route| route.prefix >= ROUTE_MIN && meets(route.network, route.prefix))
            .filter(|route| !networks().any(|one| one.name == route.interface));
        taken.extend(
            routes.map(|route| format!("the host's interface {}", quote(&route.interface))),
        );
    }
    taken.dedup();
    for other in taken {
        faults.add(
            PlanCode::SubnetInUse,
            Some(&domain.place),
            format!(
                "the subnet of {}, {}, overlaps with that of {other}",
                quote(domain.name.as_str()),
                subnet(domain)
            ),
            "choose another `subnet_id`, or another `base_subnet` for all domains",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_cut_out_of_a_subnet() {
        let range = |from: u8, to: u8| {
            AddressRange(Ipv4Addr::new(10, 1, 2, from), Ipv4Addr::new(10, 1, 2, to))
        };
        let cut = |open: &[AddressRange]| without(Ipv4Addr::new(10, 1, 2, 0), open).join(",");
        assert_eq!(cut(&[]), "10.1.2.0/24");
        let elsewhere = AddressRange(Ipv4Addr::new(10, 1, 3, 1), Ipv4Addr::new(10, 1, 3, 1));
        assert_eq!(cut(&[elsewhere]), "10.1.2.0/24");
        assert_eq!(
            cut(&[range(5, 5)]),
            "10.1.2.0/30,10.1.2.4,10.1.2.6/31,10.1.2.8/29,10.1.2.16/28,10.1.2.32/27,10.1.2.64/26,10.1.2.128/25"
        );
        assert_eq!(
            cut(&[range(1, 1)]),
            "10.1.2.0,10.1.2.2/31,10.1.2.4/30,10.1.2.8/29,10.1.2.16/28,10.1.2.32/27,10.1.2.64/26,10.1.2.128/25"
        );
        assert_eq!(cut(&[range(1, 253)]), "10.1.2.0,10.1.2.254/31");
        assert_eq!(
            cut(&[range(7, 7), range(5, 5), range(6, 6)]),
            "10.1.2.0/30,10.1.2.4,10.1.2.8/29,10.1.2.16/28,10.1.2.32/27,10.1.2.64/26,10.1.2.128/25"
        );
        assert_eq!(cut(&[range(5, 5), range(1, 253)]), "10.1.2.0,10.1.2.254/31");
        assert_eq!(cut(&[range(0, 255)]), "");
    }
}
