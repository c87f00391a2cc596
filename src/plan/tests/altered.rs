//! Tests what is planned after somebody changed Incus by hand.

use super::*;
use crate::edge::DEVICE_PREFIX;
use crate::incus::state::IncusNetwork;
use crate::plan::facts::TakenIds;

fn set(state: &mut State, machine: (&str, &str), keys: &[(&str, &str)]) {
    let machine = instance(state, &Object::machine(machine.0, machine.1));
    for (key, value) in keys {
        machine
            .config
            .insert((*key).to_owned(), (*value).to_owned());
        machine
            .expanded_config
            .insert((*key).to_owned(), (*value).to_owned());
    }
}

fn network<'s>(state: &'s mut State, name: &str) -> &'s mut IncusNetwork {
    let mut networks = state.networks.iter_mut();
    networks.find(|network| network.name == name).unwrap()
}

fn of(state: &State, facts: &Facts) -> Vec<String> {
    lines(&planned(INFRA, state, facts, &[]).unwrap())
}

#[test]
fn a_network_that_was_not_finished_is_made_again() {
    for status in ["Pending", "Errored"] {
        let mut state = applied(INFRA);
        status.clone_into(&mut network(&mut state, "net-work").status);
        assert_eq!(
            of(&state, &facts()),
            ["- network net-work", "+ network net-work (10.100.1.0/24)"]
        );
    }
    // Its creation may have left a bridge.
    let mut state = applied(INFRA);
    "Pending".clone_into(&mut network(&mut state, "net-work").status);
    let left = Facts {
        interfaces: Some(
            [
                ("net-work".to_owned(), None),
                ("net-vault".to_owned(), None),
            ]
            .into(),
        ),
        ..facts()
    };
    assert_eq!(
        of(&state, &left),
        [
            "- network net-work",
            "- bridge net-work on the host",
            "+ network net-work (10.100.1.0/24)"
        ]
    );
    let mut state = applied(INFRA);
    "Unavailable".clone_into(&mut network(&mut state, "net-work").status);
    assert_eq!(of(&state, &facts()), [""; 0]);
}

#[test]
fn a_bridge_that_is_gone_is_made_again_and_its_machines_are_connected() {
    let mut state = applied(INFRA);
    set(
        &mut state,
        ("work", "dev"),
        &[("volatile.eth0.host_name", "veth1")],
    );
    let dev = instance(&mut state, &Object::machine("work", "dev"));
    dev.expanded_devices = dev.devices.clone();
    let with = |interfaces: Option<&[(&str, Option<&str>)]>| Facts {
        interfaces: interfaces.map(|all| {
            let all = all.iter();
            all.map(|&(one, bridge)| (one.to_owned(), bridge.map(str::to_owned)))
                .collect()
        }),
        ..facts()
    };
    let (work, vault) = (("net-work", None), ("net-vault", None));
    assert_eq!(of(&state, &with(None)), [""; 0]);
    assert_eq!(of(&state, &with(Some(&[work, vault]))), [""; 0]);
    let connected = ("veth1", Some("net-work"));
    assert_eq!(of(&state, &with(Some(&[work, vault, connected]))), [""; 0]);
    // An earlier run ended before it had connected the machine.
    for bridge in [None, Some("other")] {
        assert_eq!(
            of(&state, &with(Some(&[work, vault, ("veth1", bridge)]))),
            ["~ network net-work dev: not connected → reconnected"]
        );
    }
    assert_eq!(
        of(&state, &with(Some(&[vault, ("veth1", None)]))),
        ["~ network net-work bridge missing on the host → recreated, dev reconnected"]
    );
}

#[test]
fn the_network_of_another_address_is_put_right_in_one_run() {
    let mut state = applied(INFRA);
    let config = &mut network(&mut state, "net-work").config;
    config.insert("ipv4.address".to_owned(), "10.100.9.254/24".to_owned());
    assert_eq!(
        of(&state, &facts()),
        ["~ network net-work ipv4.address: 10.100.9.254/24 → 10.100.1.254/24"]
    );
}

#[test]
fn a_network_moves_after_its_machines_gave_up_their_addresses() {
    let state = applied(INFRA);
    let moved = INFRA
        .replace("subnet_id: 1", "subnet_id: 7")
        .replace("10.100.1.10", "10.100.7.10");
    let shown = lines(&planned(&moved, &state, &facts(), &[]).unwrap());
    let at = |text: &str| shown.iter().position(|line| line.contains(text)).unwrap();
    let gives = at("eth0 on dev ipv4.address: 10.100.1.10 → (none)");
    let network_moves = at("network net-work ipv4.address");
    let takes = at("eth0 on dev ipv4.address: (none) → 10.100.7.10");
    assert!(gives < network_moves && network_moves < takes, "{shown:#?}");
    // Where the network has moved already, Incus only lets the device be removed.
    let mut state = state;
    let config = &mut network(&mut state, "net-work").config;
    config.insert("ipv4.address".to_owned(), "10.100.7.254/24".to_owned());
    let shown = lines(&planned(&moved, &state, &facts(), &[]).unwrap());
    let (gone, back) = ("- device eth0 on dev", "+ device eth0 on dev");
    assert!(
        [gone, back]
            .iter()
            .all(|line| shown.iter().any(|it| it == line)),
        "{shown:#?}"
    );
}

#[test]
fn an_end_of_a_channel_does_not_stay_privileged() {
    let mut state = applied(INFRA);
    set(
        &mut state,
        ("work", "dev"),
        &[("security.privileged", "true")],
    );
    let plan = planned(INFRA, &state, &facts(), &[]).unwrap();
    assert_eq!(
        lines(&plan),
        ["~ machine dev security.privileged: true → false (after a restart)"]
    );
    carry(&mut state, &plan);
    // A profile may still say otherwise.
    let dev = instance(&mut state, &Object::machine("work", "dev"));
    dev.expanded_config
        .insert("security.privileged".to_owned(), "true".to_owned());
    assert_eq!(of(&state, &facts()), [""; 0]);
    // A machine without a channel may be privileged.
    let none = INFRA.replace("consumers: [dev]", "consumers: []");
    let mut state = applied(&none);
    set(
        &mut state,
        ("work", "dev"),
        &[("security.privileged", "true")],
    );
    let plan = planned(&none, &state, &facts(), &[]).unwrap();
    assert_eq!(lines(&plan), [""; 0]);
}

#[test]
fn what_takes_effect_after_a_restart_is_said_and_what_the_host_forbids_is_refused() {
    let with = |map: &str| INFRA.replace("limits.memory: 1GiB", &format!("raw.idmap: \"{map}\""));
    let mut state = applied(INFRA);
    let shown = lines(&planned(&with("both 1000 1000"), &state, &facts(), &[]).unwrap());
    assert_eq!(
        shown,
        [
            "~ machine dev raw.idmap: (none) → both 1000 1000 (after a restart)",
            "~ machine dev limits.memory: 1GiB → (none)"
        ]
    );
    let dev = instance(&mut state, &Object::machine("work", "dev"));
    "Stopped".clone_into(&mut dev.status);
    let shown = lines(&planned(&with("both 1000 1000"), &state, &facts(), &[]).unwrap());
    assert!(!shown.concat().contains("restart"), "{shown:#?}");

    let range = |first, count| TakenIds {
        first,
        count,
        by: String::new(),
    };
    let of_host = |uids: Vec<TakenIds>, gids: Vec<TakenIds>| Facts {
        mappable: [Some(uids), Some(gids)],
        ..facts()
    };
    let own = || range(1_000_000, 1_000_000_000);
    let state = applied(INFRA);
    let refused = |map: &str, facts: &Facts| match planned(&with(map), &state, facts, &[]) {
        Ok(_) => None,
        Err(Faults(faults)) => Some((faults[0].message.clone(), faults[0].help.clone().unwrap())),
    };
    let closed = of_host(vec![own()], vec![own()]);
    let open = of_host(vec![own(), range(1000, 1)], vec![range(1000, 1)]);
    let half = of_host(vec![own(), range(1000, 1)], vec![own()]);
    for map in [
        "both 1000 1000",
        "uid 1000 1000\\ngid 1000 1000",
        "uid 1000-1000 5-5",
    ] {
        assert_eq!(refused(map, &open), None, "{map}");
        assert_eq!(refused(map, &facts()), None, "{map}");
        assert!(refused(map, &closed).is_some(), "{map}");
    }
    assert!(refused("uid 1000-1001 1000-1001", &open).is_some());
    assert_eq!(
        refused("both 1000 1000", &half).unwrap(),
        (
            "`raw.idmap` of `dev` maps the host ID 1000, which `/etc/subgid` does not grant to root".to_owned(),
            "add the line `root:1000:1` to `/etc/subgid`, then run `systemctl restart incus.service`".to_owned()
        )
    );
}

#[test]
fn copies_renamed_machines_and_those_that_await_a_restart_are_noted() {
    let notes = |state: &State| planned(INFRA, state, &facts(), &[]).unwrap().notes;
    let mut state = applied(INFRA);
    let mut copy = instance(&mut state, &Object::machine("work", "dev")).clone();
    "old".clone_into(&mut copy.name);
    "Stopped".clone_into(&mut copy.status);
    copy.devices
        .retain(|name, _| !name.starts_with(DEVICE_PREFIX));
    copy.expanded_devices = copy.devices.clone();
    state.instances.push(copy.clone());
    assert_eq!(
        notes(&state),
        [
            "the address 10.100.1.10 of `dev` is also that of `old` (project `work`), so only one of them can run",
            "`old` (project `work`) is a copy of `work/dev` and is left alone",
        ]
    );
    // Without the original, it may be the original itself.
    state.instances.retain(|one| one.name != "dev");
    let Err(Faults(faults)) = planned(INFRA, &state, &facts(), &[]) else {
        panic!("no obstacle")
    };
    let helps: Vec<_> = faults
        .iter()
        .filter_map(|fault| fault.help.as_deref())
        .collect();
    assert_eq!(
        helps,
        [
            "if it is the same machine: `incus stop old --project work`, `incus rename old dev --project work`, \
          then `anklume apply`; if it is a copy: `incus config device unset old eth0 ipv4.address --project work`"
        ]
    );
    let old = instance(&mut state, &Object::machine("work", "old"));
    old.expanded_devices.clear();
    let shown = notes(&state);
    let expected = "`old` (project `work`) was `work/dev` before it was renamed, or is a copy of it, and is left alone";
    assert!(shown.contains(&expected.to_owned()), "{shown:#?}");

    let mut state = applied(INFRA);
    let maps = [
        ("volatile.idmap.current", "[1]"),
        ("volatile.idmap.next", "[2]"),
    ];
    set(&mut state, ("work", "dev"), &maps);
    assert_eq!(
        notes(&state),
        [
            "`dev` runs with other user IDs than configured until it is restarted: `incus restart dev --project work`"
        ]
    );
}
