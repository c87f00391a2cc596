//! Tests the content of machines, and channels that exist but do not work.

use super::*;
use crate::edge::DEVICE_PREFIX;
use crate::incus::state::InstanceId;
use crate::infra::Machine;
use crate::machine_state::{
    FoundServices, Identity, MachineSpec, ObservedMachine, PROGRAM as PLACE, Serving, Supervisor,
};
use crate::plan::{RecreateReason, Role, mark_unverified, needs_program};
use crate::services::Services;

/// Returns a machine with the expected content.
pub(super) fn done(machine: &Machine, runs: bool) -> ObservedMachine {
    let services = (!machine.services.is_empty()).then(|| Services::of(machine));
    let run_as = machine.mcp.run_as.clone();
    let order = MachineSpec::new(PROGRAM, machine.name.clone(), run_as, services.as_ref());
    let serving = services
        .as_ref()
        .map_or(Serving::Unknown, |services| Serving::Policy {
            digest: services.digest().into(),
            refused: None,
            unlogged: None,
        });
    ObservedMachine {
        runs,
        program: Some(PROGRAM.to_owned()),
        bad_permissions: std::collections::BTreeMap::new(),
        link: Some(PLACE.to_owned()),
        identity: Some(Identity {
            ..order.identity(Supervisor::Nobody)
        }),
        services: order.services.as_deref().map(|file| {
            let outline = services.as_ref().map(Services::outline);
            FoundServices::with(file.as_bytes(), outline)
        }),
        units: std::collections::BTreeMap::new(),
        serving: if runs { serving } else { Serving::Unknown },
        confinement: None,
    }
}

fn with(place: (&str, &str), change: impl FnOnce(&mut ObservedMachine)) -> Facts {
    let mut facts = facts();
    in_order(&infra(INFRA), &applied(INFRA), &mut facts);
    let id = InstanceId::new(place.0, place.1);
    change(facts.inside.get_mut(&id).unwrap());
    facts
}

fn of(facts: &Facts) -> Vec<String> {
    lines(&planned(INFRA, &applied(INFRA), facts, &[]).unwrap())
}

#[test]
fn what_is_gone_from_a_machine_comes_back() {
    let rebuilt = with(("work", "dev"), |found| {
        *found = ObservedMachine {
            runs: true,
            ..ObservedMachine::default()
        }
    });
    assert_eq!(
        of(&rebuilt),
        ["+ program on dev", "+ name and links of the program on dev"]
    );
    let silent = with(("vault", "signer"), |found| found.serving = Serving::Silent);
    assert_eq!(of(&silent), ["~ server on signer: no answer → running"]);
}

#[test]
fn what_could_not_be_read_is_neither_missing_nor_changed() {
    let mut state = applied(INFRA);
    let changed = INFRA.replace("limits.memory: 1GiB", "limits.memory: 2GiB");
    let unread = |state: &State| {
        let mut facts = facts();
        let id = InstanceId::new("work", "dev");
        facts.unread.insert(id, "no answer".to_owned());
        lines(&planned(&changed, state, &facts, &[]).unwrap())
    };
    let cannot = "! machine dev: its files cannot be read: no answer";
    let memory = "~ machine dev limits.memory: 1GiB → 2GiB";
    assert_eq!(unread(&state), [memory, cannot]);
    // Its channel waits too: whether the program is there is unknown.
    let dev = memory::instance(&mut state, &Object::machine("work", "dev"));
    dev.devices
        .retain(|name, _| !name.starts_with(DEVICE_PREFIX));
    let lines = unread(&state);
    assert_eq!(lines[..2], [memory, cannot]);
    assert!(lines[2].starts_with("+ device"), "{lines:#?}");
}

#[test]
fn the_program_is_needed_where_it_is_or_must_be_and_nowhere_else() {
    let alone = INFRA.replace(
        "services: [{name: sign, tool: gpg_sign, consumers: [dev]}]",
        "description: x",
    );
    assert_ne!(alone, INFRA);
    let needed = |text: &str, state: &State| {
        let infra = infra(text);
        needs_program(&infra, &edges(&infra).unwrap(), state)
    };
    assert!(needed(INFRA, &empty()));
    assert!(needed(&INFRA.replace("[dev]", "[]"), &empty()));
    assert!(!needed(&alone, &empty()) && !needed(&alone, &applied(&alone)));
    // The program is also needed to remove the remains of an earlier run.
    assert!(needed(&alone, &applied(INFRA)));
}

#[test]
fn a_broken_channel_is_made_again_and_the_plan_says_why() {
    let device = edges(&infra(INFRA)).unwrap()[0].device_name();
    let hash = device.strip_prefix("mcp_").unwrap().to_owned();
    let mut facts = facts();
    facts
        .broken
        .insert((hash.clone(), Role::Provider), RecreateReason::NoSocket);
    facts
        .broken
        .insert((hash, Role::Consumer), RecreateReason::NoProcess);
    assert_eq!(
        of(&facts),
        [
            format!(
                "~ device {device} on signer (provider for dev, recreated: its socket is gone)"
            ),
            format!(
                "~ device {device} on dev (consumer of signer, recreated: its process is gone)"
            ),
        ]
    );
}

#[test]
fn a_channel_that_nobody_has_proven_is_asked_again_until_somebody_has() {
    let device = edges(&infra(INFRA)).unwrap()[0].device_name();
    let verifications = |plan: &Plan| -> Vec<(bool, bool)> {
        let all = plan.verifications.iter().map(|action| match action {
            Action::VerifyChannel(call) => (call.marked, action.lines().is_empty()),
            other => panic!("{other:?}"),
        });
        all.collect()
    };
    // The run that creates a channel tests it, and then removes the mark.
    let plan = planned(INFRA, &empty(), &facts(), &[]).unwrap();
    assert_eq!(verifications(&plan), [(true, true)]);
    let mut state = empty();
    carry(&mut state, &plan);
    let dev = Object::machine("work", "dev");
    assert!(
        !instance(&mut state, &dev)
            .config
            .keys()
            .any(|key| key.contains("unproven"))
    );
    // If only a machine's content changes, its channel has no mark yet.
    let silent = with(("vault", "signer"), |found| found.serving = Serving::Silent);
    let plan = planned(INFRA, &state, &silent, &[]).unwrap();
    assert_eq!(verifications(&plan), [(false, true)]);
    // If no answer came, the next run only tests the channel again.
    let marked = Action::Edit {
        object: dev.clone(),
        edits: vec![mark_unverified(&device, true)],
        runs: false,
    };
    let failed = Plan {
        verifications: vec![marked],
        ..Plan::default()
    };
    carry(&mut state, &failed);
    let plan = planned(INFRA, &state, &facts(), &[]).unwrap();
    assert_eq!(
        lines(&plan),
        ["~ channel dev → signer: no answer yet → tried again"]
    );
    assert_eq!(verifications(&plan), [(true, false)]);
    carry(&mut state, &plan);
    assert!(planned(INFRA, &state, &facts(), &[]).unwrap().is_empty());
}

#[test]
fn a_machine_that_serves_no_longer_is_withdrawn_from() {
    let without = INFRA.replace(
        "services: [{name: sign, tool: gpg_sign, consumers: [dev]}]",
        "description: x",
    );
    assert_ne!(without, INFRA);
    let state = applied(INFRA);
    let mut facts = facts();
    in_order(&infra(INFRA), &state, &mut facts);
    let plan = planned(&without, &state, &facts, &[]).unwrap();
    let lines = lines(&plan);
    assert!(
        lines.contains(&"- services file on signer".to_owned()),
        "{lines:#?}"
    );
    // Nothing is installed in a machine that was never part of a channel.
    let alone = INFRA.replace("consumers: [dev]", "consumers: []");
    let plan = planned(&alone, &empty(), &Facts::clone(&facts), &[]).unwrap();
    assert!(plan.actions().all(
        |action| !matches!(action, Action::Install { machine, .. } if machine.name() == "dev")
    ));
}
