//! A domain's network and the access list that isolates it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::difference::{Desired, config_map, create, edit, edits};
use super::ownership::{self, Ownership, may_touch, owner};
use super::{Action, Obstacles, PlanCode, PlanInputs};
use crate::diagnostic::quote;
use crate::incus::state::{Acl, IncusNetwork};
use crate::incus::{ConfigMap, Devices, Direction, Edit, Object, as_object};
use crate::infra::Domain;

/// Prefix of the descriptions of anklume's rules; other rules are left alone.
const OUR_RULE: &str = "anklume: ";
/// Shortest prefix of a connected network that must not contain a domain's subnet; shorter ones are whole private ranges.
const ROUTE_MIN: u8 = 16;
/// Prefix length of a domain's subnet, in bits.
const PREFIX: u8 = 24;

fn subnet(domain: &Domain) -> String {
    format!("{}/{PREFIX}", domain.network.subnet)
}

/// The subnets of all other domains: those in the file, including disabled ones, and those that are still in Incus.
fn other_subnets(inputs: &PlanInputs<'_>, domain: &Domain) -> String {
    let declared = inputs.wanted.infra.domains.iter();
    let declared = declared
        .filter(|other| other.name != domain.name)
        .map(|other| other.network.subnet);
    let left = inputs.state.networks.iter().filter(|network| {
        network.name != domain.network.name
            && owner(&network.config, inputs.project()) == Ownership::Ours
    });
    let left = left.filter_map(|network| Some(parse_subnet(network)?.0));
    let mut subnets: BTreeSet<Ipv4Addr> = declared.chain(left).collect();
    subnets.remove(&domain.network.subnet);
    let subnets = subnets.iter().map(|subnet| format!("{subnet}/{PREFIX}"));
    subnets.collect::<Vec<String>>().join(",")
}

/// The first address of a managed network, and its prefix length.
fn parse_subnet(network: &IncusNetwork) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = network.config.get("ipv4.address")?.split_once('/')?;
    let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    Some((first_address(address, prefix), prefix))
}

/// The first address of a network.
fn first_address(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    Ipv4Addr::from(u32::from(address) & mask)
}

/// The rules that isolate a domain, by direction.
///
/// Incoming traffic is accepted only from the domain itself, including the host's address in it; the network's default
/// rejects the rest. Outgoing traffic may go anywhere except other domains and their gateways, which are on the host,
/// where their own defaults are not consulted.
fn rules(inputs: &PlanInputs<'_>, domain: &Domain) -> [(Direction, Vec<ConfigMap>); 2] {
    let rule = |action: &str, side: &str, subject: &str, about: &str| {
        config_map([
            ("action", action),
            (side, subject),
            ("state", "enabled"),
            ("description", &format!("{OUR_RULE}{about}")),
        ])
    };
    let others = other_subnets(inputs, domain);
    let egress =
        (!others.is_empty()).then(|| rule("reject", "destination", &others, "the other domains"));
    let ingress = rule("allow", "source", &subnet(domain), "this domain");
    [
        (Direction::Ingress, vec![ingress]),
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
) -> Option<Action> {
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
    let Some(current) = current else {
        let body = json!({"name": name, "type": "bridge", "config": as_object(&want.config)});
        return Some(create(object, body, subnet(domain)));
    };
    if !current.managed || current.kind != "bridge" {
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
        return None;
    }
    if !may_touch(inputs, domain, &object, &current.config, faults) {
        return None;
    }
    edit(object, edits(&current.config, &Devices::new(), "", &want))
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
