//! A domain's network and the access list that keeps it apart.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::difference::{Desired, edit, edits};
use super::ownership::{self, Ownership, may_touch, owner};
use super::{Action, PlanCode, PlanInputs, fault};
use crate::diagnostic::{Diagnostic, quote};
use crate::incus::state::{Acl, IncusNetwork};
use crate::incus::{ConfigMap, Devices, Direction, Edit, Object, as_object};
use crate::infra::Domain;

/// Maximum length of a name of an interface, in bytes (Linux `IFNAMSIZ` less its final zero).
const INTERFACE_MAX: usize = 15;
/// Prefix of the descriptions of anklume's rules; rules without it belong to somebody else.
const OUR_RULE: &str = "anklume: ";

fn subnet(domain: &Domain) -> String {
    format!("{}/24", domain.network.subnet)
}

/// The subnets of all other domains: those of the file, disabled ones too, and those that are still on Incus.
fn other_subnets(setting: &PlanInputs<'_>, domain: &Domain) -> Vec<String> {
    let declared = setting.wanted.infra.domains.iter();
    let mut subnets: Vec<Ipv4Addr> = declared
        .filter(|other| other.name != domain.name)
        .map(|other| other.network.subnet)
        .collect();
    let left = setting.state.networks.iter().filter(|network| {
        network.name != domain.network.name
            && owner(&network.config, setting.project()) == Ownership::Ours
    });
    subnets.extend(left.filter_map(|network| Some(parse_subnet(network)?.0)));
    subnets.retain(|subnet| *subnet != domain.network.subnet);
    subnets.sort_unstable();
    subnets.dedup();
    subnets
        .iter()
        .map(|subnet| format!("{subnet}/24"))
        .collect()
}

/// The first address of a managed network, and the bits of its prefix.
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

/// The rules that keep a domain apart, by direction.
///
/// What enters is answered only where it comes from the domain itself, the host's own address in it included;
/// everything else is rejected by the network's default. What leaves may go anywhere but to other domains, their
/// gateways included: those are on the host, where no default of theirs is asked.
fn rules(setting: &PlanInputs<'_>, domain: &Domain) -> [(Direction, Vec<ConfigMap>); 2] {
    let rule = |action: &str, side: &str, subject: String, about: &str| -> ConfigMap {
        [
            ("action", action.to_owned()),
            (side, subject),
            ("state", "enabled".to_owned()),
            ("description", format!("{OUR_RULE}{about}")),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    };
    let others = other_subnets(setting, domain);
    let egress = if others.is_empty() {
        Vec::new()
    } else {
        vec![rule(
            "reject",
            "destination",
            others.join(","),
            "the other domains",
        )]
    };
    let ingress = vec![rule("allow", "source", subnet(domain), "this domain")];
    [(Direction::Ingress, ingress), (Direction::Egress, egress)]
}

pub(super) fn acl(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    faults: &mut Vec<Diagnostic>,
) -> Option<Action> {
    let name = domain.network.name.as_str();
    let object = Object::Acl(name.to_owned());
    let rules = rules(setting, domain);
    let mut want = Desired::default().marked(setting.project());
    want.set(ownership::DOMAIN, domain.name.as_str());
    let Some(there) = setting.state.acls.iter().find(|one| one.name == name) else {
        let mut body = json!({"name": name, "config": as_object(&want.config)});
        if let Some(body) = body.as_object_mut() {
            for (direction, rules) in &rules {
                let rules: Vec<Value> = rules.iter().map(as_object).collect();
                body.insert(direction.as_str().to_owned(), rules.into());
            }
        }
        return Some(Action::Create {
            object,
            body,
            about: "keeps the domain apart".to_owned(),
        });
    };
    if !may_touch(setting, domain, &object, &there.config, faults) {
        return None;
    }
    let mut edits = edits(&there.config, &Devices::new(), &want);
    for (direction, new) in rules {
        let old = our_rules(there, direction);
        if old != new {
            edits.push(Edit::Rules {
                direction,
                old,
                new,
            });
        }
    }
    edit(object, edits)
}

/// The filled keys of the rules that anklume made.
fn our_rules(acl: &Acl, direction: Direction) -> Vec<ConfigMap> {
    let rules = match direction {
        Direction::Ingress => &acl.ingress,
        Direction::Egress => &acl.egress,
    };
    let ours = rules.iter().filter(|rule| {
        rule.get("description")
            .is_some_and(|about| about.starts_with(OUR_RULE))
    });
    ours.map(|rule| {
        let filled = rule.iter().filter(|(_, value)| !value.is_empty());
        filled
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    })
    .collect()
}

fn network_want(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    there: Option<&IncusNetwork>,
) -> Desired {
    let [a, b, c, _] = domain.network.subnet.octets();
    let mut want = Desired::default();
    want.set("ipv4.address", format!("{}/24", domain.network.gateway));
    want.set("ipv4.nat", "true");
    want.set(
        "ipv4.dhcp.ranges",
        format!("{a}.{b}.{c}.100-{a}.{b}.{c}.249"),
    );
    // No address, no route, and no way around the rules for IPv4.
    want.set("ipv6.address", "none");
    want.set("security.acls.default.ingress.action", "reject");
    want.set("security.acls.default.egress.action", "allow");
    // The user's own lists stay beside ours.
    let ours = domain.network.name.as_str();
    let lists = there.and_then(|network| network.config.get("security.acls"));
    let lists = match lists.filter(|lists| !lists.is_empty()) {
        Some(lists) if lists.split(',').any(|one| one.trim() == ours) => lists.clone(),
        Some(lists) => format!("{lists},{ours}"),
        None => ours.to_owned(),
    };
    want.set("security.acls", lists);
    let mut want = want.marked(setting.project());
    want.set(ownership::DOMAIN, domain.name.as_str());
    want
}

pub(super) fn network(
    setting: &PlanInputs<'_>,
    domain: &Domain,
    faults: &mut Vec<Diagnostic>,
) -> Option<Action> {
    let name = domain.network.name.as_str();
    if name.len() > INTERFACE_MAX {
        faults.push(fault(
            PlanCode::BridgeName,
            Some(&domain.place),
            format!(
                "the bridge of {} would be {}, and Linux allows {INTERFACE_MAX} characters",
                quote(domain.name.as_str()),
                quote(name)
            ),
            "give the domain a shorter name",
        ));
    }
    let object = Object::Network(name.to_owned());
    let there = setting.state.networks.iter().find(|one| one.name == name);
    overlaps(setting, domain, there.is_some(), faults);
    let want = network_want(setting, domain, there);
    let Some(there) = there else {
        let body = json!({"name": name, "type": "bridge", "config": as_object(&want.config)});
        return Some(Action::Create {
            object,
            body,
            about: subnet(domain),
        });
    };
    if !there.managed || there.kind != "bridge" {
        faults.push(fault(
            PlanCode::BridgeName,
            Some(&domain.place),
            format!(
                "the domain {} needs a bridge {}, and the host has something else of that name",
                quote(domain.name.as_str()),
                quote(name)
            ),
            format!("give the domain another name, or remove it: `ip link show {name}`"),
        ));
        return None;
    }
    if !may_touch(setting, domain, &object, &there.config, faults) {
        return None;
    }
    edit(object, edits(&there.config, &Devices::new(), &want))
}

/// Shortest prefix of a connected network that an address of ours must not be in; shorter ones are whole private ranges.
const ROUTE_MIN: u8 = 16;

/// Other networks with addresses of this one.
fn overlaps(setting: &PlanInputs<'_>, domain: &Domain, there: bool, faults: &mut Vec<Diagnostic>) {
    let ours = domain.network.subnet;
    let meets = |network: Ipv4Addr, prefix: u8| {
        let shorter = prefix.min(24);
        first_address(ours, shorter) == first_address(network, shorter)
    };
    let others = setting.state.networks.iter();
    let others = others.filter(|one| one.managed && one.name != domain.network.name);
    let mut taken: Vec<String> = others
        .filter(|one| parse_subnet(one).is_some_and(|(network, prefix)| meets(network, prefix)))
        .map(|one| format!("the network {}", quote(&one.name)))
        .collect();
    if !there {
        let routes = setting.facts.routes.iter();
        let managed = |interface: &str| {
            let mut networks = setting.state.networks.iter();
            networks.any(|one| one.managed && one.name == interface)
        };
        taken.extend(
            routes
                .filter(|route| route.prefix >= ROUTE_MIN && meets(route.network, route.prefix))
                .filter(|route| !managed(&route.interface))
                .map(|route| format!("the host's interface {}", quote(&route.interface))),
        );
    }
    taken.dedup();
    for other in taken {
        faults.push(fault(
            PlanCode::SubnetInUse,
            Some(&domain.place),
            format!(
                "the subnet of {}, {}, is that of {other} too",
                quote(domain.name.as_str()),
                subnet(domain)
            ),
            "take another `subnet_id`, or another `base_subnet` for all domains",
        ));
    }
}
