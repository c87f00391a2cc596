//! Tests plans against an in-memory Incus: from scratch, after a change, and with obstacles.

mod address;
mod altered;
mod destroy;
mod inside;
mod memory;
mod obstacles;
mod permissions;
mod share;
mod upkeep;

use serde_json::json;

use super::{Action, DesiredState, Facts, FolderState, HostFolder, Plan, plan};
use crate::diagnostic::Faults;
use crate::edge::{Edge, edges};
use crate::incus::state::InstanceId;
use crate::incus::state::{Alias, Instance};
use crate::incus::{Object, State};
use crate::infra::{Infra, parse};
use memory::{carry, instance};

const INFRA: &str = r"
project_name: demo
global: {default_os_image: bb}
domains:
  vault:
    subnet_id: 0
    machines:
      signer:
        ip: 10.100.0.10
        services: [{name: sign, tool: gpg_sign, consumers: [dev]}]
  work:
    description: Where work is done
    subnet_id: 1
    ephemeral: true
    profiles:
      small: {config: {limits.cpu: 1}, devices: {scratch: {type: disk, source: /srv/scratch, path: /mnt}}}
    machines:
      dev:
        description: Of work
        ip: 10.100.1.10
        snapshots_expiry: 12h
        profiles: [default, small]
        config: {limits.memory: 1GiB}
        storage_volumes: {data: {size: 1GiB, path: /data}}
";

fn infra(text: &str) -> Infra {
    match parse("demo/infra.yml", text) {
        Ok(read) => read.infra,
        Err(Faults(faults)) => panic!("{faults:#?}"),
    }
}

/// Returns an Incus with only a pool and an image.
fn empty() -> State {
    State {
        pools: vec!["default".to_owned()],
        aliases: vec![Alias {
            name: "bb".to_owned(),
            kind: "container".to_owned(),
        }],
        ..State::default()
    }
}

fn facts() -> Facts {
    Facts {
        root: true,
        ..Facts::default()
    }
}

fn planned(text: &str, state: &State, facts: &Facts, adopt: &[&str]) -> Result<Plan, Faults> {
    let infra = infra(text);
    let edges: Vec<Edge> = edges(&infra)?;
    let adopt: Vec<String> = adopt.iter().map(|&name| name.to_owned()).collect();
    let wanted = DesiredState {
        infra: &infra,
        edges: &edges,
        adopt: &adopt,
        program: PROGRAM,
        is_shown: false,
    };
    let mut facts = facts.clone();
    in_order(&infra, state, &mut facts);
    plan(wanted, state, &facts)
}

fn lines(plan: &Plan) -> Vec<String> {
    plan.actions().flat_map(Action::lines).collect()
}

/// Digest of the program for the machines.
const PROGRAM: &str = "0f";

/// Records the expected content of existing machines, unless the test has set different content.
fn in_order(infra: &Infra, state: &State, facts: &mut Facts) {
    for (domain, machine) in infra.machines() {
        let id = InstanceId::new(domain.name.as_str(), machine.name.as_str());
        let is_there = |one: &&Instance| one.id() == id;
        if let Some(there) = state.instances.iter().find(is_there) {
            let found = inside::done(machine, there.status == "Running");
            facts.inside.entry(id).or_insert(found);
        }
    }
}

/// Returns the code of each fault.
fn codes(text: &str, state: &State, facts: &Facts, adopt: &[&str]) -> Vec<&'static str> {
    match planned(text, state, facts, adopt) {
        Ok(plan) => panic!("no fault, but {:#?}", lines(&plan)),
        Err(Faults(faults)) => faults.iter().map(|fault| fault.code).collect(),
    }
}

/// Returns an Incus to which this file has been applied.
fn applied(text: &str) -> State {
    let mut state = empty();
    let plan = planned(text, &state, &facts(), &[]).unwrap();
    carry(&mut state, &plan);
    assert_eq!(
        lines(&planned(text, &state, &facts(), &[]).unwrap()),
        Vec::<String>::new()
    );
    state
}

#[test]
fn from_nothing_all_is_made_in_the_order_in_which_it_can_be() {
    let mut facts = facts();
    facts.folders = vec![HostFolder {
        path: "/var/lib/anklume".to_owned(),
        state: FolderState::Missing,
    }];
    let plan = planned(INFRA, &empty(), &facts, &[]).unwrap();
    let infra = infra(INFRA);
    let device = edges(&infra).unwrap()[0].device_name();
    assert_eq!(
        lines(&plan),
        [
            "+ folder /var/lib/anklume on the host",
            "+ project vault",
            "+ acl net-vault (keeps the domain apart)",
            "+ network net-vault (10.100.0.0/24)",
            "+ device root on profile default of vault",
            "+ project work",
            "+ acl net-work (keeps the domain apart)",
            "+ network net-work (10.100.1.0/24)",
            "+ device root on profile default of work",
            "+ profile small of work",
            "+ machine signer (bb, 10.100.0.10)",
            "~ machine signer status: stopped → running",
            "+ volume dev-data of work (1GiB)",
            "+ machine dev (bb, 10.100.1.10)",
            "~ machine dev status: stopped → running",
            "+ program on signer",
            "+ name and links of the program on signer",
            "+ services file on signer",
            "+ program on dev",
            "+ name and links of the program on dev",
            &format!("+ device {device} on signer (provider for dev)"),
            &format!("+ device {device} on dev (consumer of signer)"),
        ]
    );
}

#[test]
fn a_machine_that_incus_did_not_finish_is_made_again_and_any_other_one_stays() {
    const MARK: &str = "user.anklume.unfinished";
    // Plans after this change to the machine `dev`; returns whether it is deleted.
    let is_deleted = |facts: &Facts, adopt: &[&str], change: &dyn Fn(&mut Instance)| {
        // Services need root, which one of the cases lacks.
        let text = &INFRA.replace("consumers: [dev]", "consumers: []");
        let mut state = applied(text);
        let dev = state
            .instances
            .iter_mut()
            .find(|one| one.name == "dev")
            .unwrap();
        dev.status = "Stopped".to_owned();
        dev.config.remove("volatile.last_state.power");
        change(dev);
        let lines = lines(&planned(text, &state, facts, adopt).unwrap());
        let deleted = lines.iter().any(|line| line.starts_with("- machine dev"));
        let made = lines.contains(&"+ machine dev (bb, 10.100.1.10)".to_owned());
        assert_eq!(deleted, made, "{lines:#?}");
        deleted
    };
    let set = |dev: &mut Instance, key: &str, value: &str| {
        dev.config.insert(key.to_owned(), value.to_owned());
    };
    let marked = |dev: &mut Instance| set(dev, MARK, "true");
    assert!(is_deleted(&facts(), &[], &marked));
    assert!(!is_deleted(&facts(), &[], &|_| {}));
    // It has been started since.
    assert!(!is_deleted(&facts(), &[], &|dev| {
        marked(dev);
        set(dev, "volatile.last_state.power", "STOPPED");
    }));
    for status in ["Running", "Frozen", "Error", "Starting"] {
        assert!(!is_deleted(&facts(), &[], &|dev| {
            marked(dev);
            dev.status = status.to_owned();
        }));
    }
    // Another run may be creating it.
    let unlocked = Facts {
        root: false,
        ..facts()
    };
    assert!(!is_deleted(&unlocked, &[], &marked));
    // A foreign machine is kept, even if the user adopts it.
    assert!(!is_deleted(&facts(), &["dev"], &|dev| {
        marked(dev);
        dev.config.remove("user.anklume.project");
    }));
    assert!(!is_deleted(&facts(), &["dev"], &|dev| {
        marked(dev);
        set(dev, "user.anklume.machine", "work/other");
    }));
}

#[test]
fn a_machine_that_is_made_again_takes_nothing_over_from_its_remains() {
    let text = &INFRA.replace("consumers: [dev]", "consumers: []");
    let created = |state: &State| {
        let plan = planned(text, state, &facts(), &[]).unwrap();
        let actions = plan.domains.iter().flat_map(|domain| &domain.machines);
        let mut actions = actions.flat_map(|machine| &machine.make);
        let create = actions.find(
            |action| matches!(action, Action::Create { object, .. } if object.name() == "dev"),
        );
        format!("{:?}", create.unwrap())
    };
    let mut state = applied(text);
    let mut without = state.clone();
    without.instances.retain(|one| one.name != "dev");
    let dev = state.instances.iter_mut().find(|one| one.name == "dev");
    let dev = dev.unwrap();
    dev.status = "Stopped".to_owned();
    dev.config.remove("volatile.last_state.power");
    for (key, value) in [
        ("user.anklume.unfinished", "true"),
        ("user.anklume.image", "of an earlier infra.yml"),
        ("user.anklume.inside", "true"),
        ("image.anklume", "true"),
    ] {
        dev.config.insert(key.to_owned(), value.to_owned());
    }
    let root = dev.devices.remove("root").unwrap_or_default();
    dev.devices.insert("disk".to_owned(), root);
    assert_eq!(created(&state), created(&without));
}

/// Checks that this change to the file results in these plan lines, and that carrying them out completes it.
#[track_caller]
fn is_planned(old: &str, new: &str, expected: &[String]) {
    let changed = INFRA.replacen(old, new, 1);
    assert_ne!(changed, INFRA, "{old}");
    let mut state = applied(INFRA);
    let plan = planned(&changed, &state, &facts(), &[]).unwrap();
    assert_eq!(lines(&plan), expected, "{old} → {new}");
    carry(&mut state, &plan);
    let again = planned(&changed, &state, &facts(), &[]).unwrap();
    assert_eq!(lines(&again), Vec::<String>::new(), "{old} → {new}");
}

#[test]
fn a_change_of_the_file_is_what_is_planned_and_nothing_else() {
    let infra = infra(INFRA);
    let edge = edges(&infra).unwrap().remove(0);
    let device = edge.device_name();
    let gone = [
        format!("- device {device} on signer (provider for dev)"),
        format!("- device {device} on dev (consumer of signer)"),
    ];
    let cases = [
        (
            "1GiB}\n        storage",
            "2GiB}\n        storage",
            vec!["~ machine dev limits.memory: 1GiB → 2GiB".to_owned()],
        ),
        (
            "config: {limits.memory: 1GiB}",
            "boot_priority: 3",
            vec![
                "~ machine dev boot.autostart.priority: (none) → 3".to_owned(),
                "~ machine dev limits.memory: 1GiB → (none)".to_owned(),
            ],
        ),
        (
            "size: 1GiB",
            "size: 2GiB",
            vec!["~ volume dev-data of work size: 1GiB → 2GiB".to_owned()],
        ),
        (
            "{data: {size: 1GiB, path: /data}}",
            "{}",
            vec!["- device vol-data on dev".to_owned()],
        ),
        (
            "limits.cpu: 1",
            "limits.cpu: 2",
            vec!["~ profile small of work limits.cpu: 1 → 2".to_owned()],
        ),
        (
            "path: /mnt}}",
            "path: /other}}",
            vec!["~ device scratch on profile small of work path: /mnt → /other".to_owned()],
        ),
        (
            "[default, small]",
            "[default]",
            vec!["~ machine dev profiles: default, small → default".to_owned()],
        ),
        (
            "Where work is done",
            "Elsewhere",
            vec!["~ project work description: Where work is done → Elsewhere".to_owned()],
        ),
        (
            "ip: 10.100.1.10",
            "ip: 10.100.1.11",
            vec!["~ device eth0 on dev ipv4.address: 10.100.1.10 → 10.100.1.11".to_owned()],
        ),
        (
            "    ephemeral: true\n",
            "",
            vec!["~ machine dev security.protection.delete: (none) → true".to_owned()],
        ),
        ("consumers: [dev]", "consumers: []", gone.to_vec()),
        (
            "services: [{name: sign",
            "services: [{name: other, tool: clipboard_get, consumers: [dev]}, {name: sign",
            Vec::new(),
        ),
    ];
    for (old, new, expected) in &cases {
        is_planned(old, new, expected);
    }
}

#[test]
fn what_is_taken_out_of_the_file_is_taken_off_and_units_of_time_are_those_of_incus() {
    let cases = [
        (
            "        profiles: [default, small]\n",
            "",
            "~ machine dev profiles: default, small → default",
        ),
        (
            "    description: Where work is done\n",
            "",
            "~ project work description: Where work is done → (none)",
        ),
        (
            "        description: Of work\n",
            "",
            "~ machine dev description: Of work → (none)",
        ),
        (
            "small: {",
            "small: {description: Little, ",
            "~ profile small of work description: (none) → Little",
        ),
        (
            "snapshots_expiry: 12h",
            "snapshots_expiry: 30m",
            "~ machine dev snapshots.expiry: 12H → 30M",
        ),
        (
            "snapshots_expiry: 12h",
            "snapshots_expiry: 7d",
            "~ machine dev snapshots.expiry: 12H → 7d",
        ),
    ];
    for (old, new, expected) in cases {
        is_planned(old, new, &[expected.to_owned()]);
    }
}

#[test]
fn the_channels_of_one_machine_go_one_after_the_other() {
    let many = |consumers: &str| {
        INFRA
            .replace("consumers: [dev]", &format!("consumers: {consumers}"))
            .replace("      dev:\n", "      one: {}\n      two: {}\n      dev:\n")
    };
    let state = applied(&many("[one, two, dev]"));
    let plan = planned(&many("[]"), &state, &facts(), &[]).unwrap();
    let chains: Vec<(&str, usize)> = plan
        .revoked()
        .map(|chain| match &chain[0] {
            Action::Revoke(one) => (one.machine.name(), chain.len()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(chains, [("signer", 3), ("one", 1), ("two", 1), ("dev", 1)]);
    // A failed revocation does not stop the others.
    assert!(plan.revoked.iter().all(Action::stands_alone));
    let host = Action::Sweep {
        path: String::new(),
    };
    assert!(!host.stands_alone());
}

#[test]
fn a_new_domain_is_closed_in_the_lists_of_the_others() {
    let one = INFRA
        .split("  work:")
        .next()
        .unwrap()
        .replace("consumers: [dev]", "consumers: []");
    let state = applied(&one);
    let plan = planned(INFRA, &state, &facts(), &[]).unwrap();
    let closed = "+ acl net-vault egress: reject 10.100.1.0/24".to_owned();
    assert!(lines(&plan).contains(&closed), "{:#?}", lines(&plan));
    // A domain that is no longer in the file, but still in Incus, stays closed too.
    let state = applied(INFRA);
    let plan = planned(&one, &state, &facts(), &[]).unwrap();
    assert!(
        !lines(&plan).iter().any(|line| line.contains("acl")),
        "{:#?}",
        lines(&plan)
    );
    assert_eq!(plan.notes.len(), 2, "{:#?}", plan.notes);
}

#[test]
fn a_key_of_a_device_that_is_no_longer_declared_goes_and_one_set_by_hand_stays() {
    let shared = |access: &str| {
        INFRA.to_owned()
            + &format!(
                "shared_volumes: {{docs: {{source: /srv/docs, consumers: {{dev: {access}}}}}}}\n"
            )
    };
    let mut state = applied(&shared("ro"));
    let dev = instance(&mut state, &Object::machine("work", "dev"));
    let docs = dev.devices.get_mut("sv-docs").unwrap();
    docs.insert("raw.mount.options".to_owned(), "noexec".to_owned());
    let plan = planned(&shared("rw"), &state, &facts(), &[]).unwrap();
    assert_eq!(
        lines(&plan),
        ["~ device sv-docs on dev readonly: true → (none)"]
    );
    let plan = planned(INFRA, &state, &facts(), &[]).unwrap();
    assert_eq!(lines(&plan), ["- device sv-docs on dev"]);
    // anklume does not remove keys that it never set.
    let dev = instance(&mut state, &Object::machine("work", "dev"));
    dev.config.remove("user.anklume.keys");
    let plan = planned(&shared("rw"), &state, &facts(), &[]).unwrap();
    let marks = lines(&plan);
    assert!(
        marks.iter().all(|line| line.contains("user.anklume.keys")),
        "{marks:#?}"
    );
}

#[test]
fn a_copy_is_not_ours_and_its_channel_goes() {
    let mut state = applied(INFRA);
    let mut copy = instance(&mut state, &Object::machine("vault", "signer")).clone();
    "copy".clone_into(&mut copy.name);
    copy.expanded_devices.clear();
    state.instances.push(copy);
    let device = edges(&infra(INFRA)).unwrap()[0].device_name();
    let plan = planned(INFRA, &state, &facts(), &[]).unwrap();
    assert_eq!(
        lines(&plan),
        [
            format!("- device {device} on copy (provider for dev, not an end of that channel)"),
            format!("~ device {device} on signer (provider for dev, recreated)"),
        ]
    );
    let declared = INFRA.replace(
        "consumers: [dev]}]\n",
        "consumers: [dev]}]\n      copy: {}\n",
    );
    assert_eq!(codes(&declared, &state, &facts(), &[]), ["not-ours"]);
    let plan = planned(&declared, &state, &facts(), &["copy"]).unwrap();
    assert!(
        lines(&plan)[0].starts_with("- device mcp_"),
        "{:#?}",
        lines(&plan)
    );
}

#[test]
fn values_of_any_kind_are_shown_on_one_line_and_escaped() {
    let hostile = INFRA.replace(
        "{limits.memory: 1GiB}",
        r#"{user.text: "a\nb\e[2J", user.long: "LONG"}"#,
    );
    let hostile = hostile.replace("LONG", &"x".repeat(100));
    let plan = planned(&hostile, &applied(INFRA), &facts(), &[]).unwrap();
    let shown = lines(&plan);
    assert!(
        shown.iter().all(|line| !line.contains(['\n', '\u{1b}'])),
        "{shown:#?}"
    );
    assert!(
        shown.contains(&"~ machine dev user.text: (none) → a\\nb\\u{1b}[2J".to_owned()),
        "{shown:#?}"
    );
    assert!(
        shown.iter().any(|line| line.ends_with("xxx…")),
        "{shown:#?}"
    );
}
