//! Tests the changes of who may call what.

use super::*;
use crate::machine_state::FoundServices;
use crate::plan::Selection;
use crate::services::Services;

/// Returns the changes when `new` is planned on an Incus to which `old` was applied.
fn changes(old: &str, new: &str) -> Vec<String> {
    let state = applied(old);
    let mut facts = facts();
    in_order(&infra(old), &state, &mut facts);
    of(new, &state, &facts)
}

fn of(text: &str, state: &State, facts: &Facts) -> Vec<String> {
    let plan = planned(text, state, facts, &[]).unwrap();
    let lines = plan.permissions.iter().map(|change| change.line.clone());
    lines.collect()
}

#[test]
fn what_is_granted_changed_and_revoked_is_named_by_machine_and_service() {
    let with = |services: &str| {
        let services = format!("services: [{services}]");
        let text = INFRA.replace(
            "services: [{name: sign, tool: gpg_sign, consumers: [dev]}]",
            &services,
        );
        text.replace("      dev:\n", "      web: {}\n      dev:\n")
    };
    let sign = with("{name: sign, tool: gpg_sign, consumers: [dev]}");
    assert_eq!(changes(&sign, &sign), [""; 0]);
    assert_eq!(
        of(&sign, &empty(), &facts()),
        ["+ dev may call signer/sign"]
    );
    let both = with("{name: sign, tool: gpg_sign, consumers: [dev, web]}");
    assert_eq!(changes(&sign, &both), ["+ web may call signer/sign"]);
    assert_eq!(
        changes(&both, &sign),
        ["- web may no longer call signer/sign"]
    );
    let none = with("{name: sign, tool: gpg_sign}");
    assert_eq!(
        changes(&sign, &none),
        ["- dev may no longer call signer/sign"]
    );
    let renamed = with("{name: other, tool: gpg_sign, consumers: [dev]}");
    assert_eq!(
        changes(&sign, &renamed),
        [
            "+ dev may call signer/other",
            "- dev may no longer call signer/sign"
        ]
    );
    for other in [
        "{name: sign, tool: clipboard_get, consumers: [dev]}",
        "{name: sign, tool: gpg_sign, consumers: [dev], limits: {calls_per_minute: 1}}",
    ] {
        assert_eq!(
            changes(&sign, &with(other)),
            ["~ dev calling signer/sign: tool, arguments or limits changed"]
        );
    }
}

#[test]
fn a_permission_without_its_channel_is_none_yet() {
    let mut state = applied(INFRA);
    let dev = instance(&mut state, &Object::machine("work", "dev"));
    dev.devices.retain(|name, _| !name.starts_with("mcp"));
    assert_eq!(of(INFRA, &state, &facts()), ["+ dev may call signer/sign"]);
}

#[test]
fn what_a_machine_that_is_no_longer_declared_may_call_is_named_too() {
    // The consumer is gone from the file: its provider's file names it.
    let alone = INFRA.split("  work:").next().unwrap();
    let alone = alone.replace("consumers: [dev]", "consumers: []");
    assert_eq!(
        changes(INFRA, &alone),
        ["- dev may no longer call signer/sign"]
    );
    // The provider is gone: only the device shows the permission.
    let consumer = INFRA.replace(
        "      signer:\n        ip: 10.100.0.10\n        services: [{name: sign, tool: gpg_sign, consumers: [dev]}]",
        "      other: {}",
    );
    assert_eq!(
        changes(INFRA, &consumer),
        ["- dev may no longer call signer"]
    );
    // A copy calls as its original.
    let mut state = applied(INFRA);
    let mut copy = instance(&mut state, &Object::machine("work", "dev")).clone();
    "copy".clone_into(&mut copy.name);
    copy.expanded_devices.clear();
    state.instances.push(copy);
    assert_eq!(
        of(INFRA, &state, &facts()),
        ["- copy may no longer call signer"]
    );
}

#[test]
fn an_unknown_machine_changes_nothing_and_an_unreadable_file_grants_anew() {
    let state = applied(INFRA);
    let id = InstanceId::new("vault", "signer");
    let mut unread = facts();
    unread.unread.insert(id.clone(), "no answer".to_owned());
    assert_eq!(of(INFRA, &state, &unread), [""; 0]);
    let mut damaged = facts();
    in_order(&infra(INFRA), &state, &mut damaged);
    let found = damaged.inside.get_mut(&id).unwrap();
    found.services = Some(FoundServices::with(b"x", None));
    assert_eq!(of(INFRA, &state, &damaged), ["+ dev may call signer/sign"]);
}

#[test]
fn a_machine_that_lies_in_its_file_is_shown_within_limits() {
    let state = applied(INFRA);
    let mut facts = facts();
    in_order(&infra(INFRA), &state, &mut facts);
    let service = |name: String| serde_json::json!({"name": name, "tool": "gpg_sign", "consumers": ["dev", "nobody"]});
    let services: Vec<_> = (0..1000)
        .map(|number| service(format!("s{number}")))
        .collect();
    let services = serde_json::json!({"machine": "signer", "services": services});
    let services: Services = serde_json::from_value(services).unwrap();
    let found = facts.inside.get_mut(&InstanceId::new("vault", "signer"));
    found.unwrap().services = Some(FoundServices::with(b"x", Some(services.outline())));
    let lines = of(INFRA, &state, &facts);
    assert_eq!(lines.len(), 200);
    assert!(!lines.concat().contains("nobody"));
    let last = lines.last().unwrap();
    assert!(
        last.ends_with(" (and 801 more changes for its services)"),
        "{last}"
    );
}

#[test]
fn deleted_machines_end_the_permissions_at_their_ends() {
    let state = applied(INFRA);
    let of = |selection| {
        let deletions = crate::plan::destroy("demo", &state, selection, false);
        let lines = deletions.permissions.into_iter().map(|change| change.line);
        lines.collect::<Vec<_>>()
    };
    let gone = ["- dev may no longer call signer"];
    assert_eq!(of(Selection::All), gone);
    assert_eq!(of(Selection::Machine("signer", None)), gone);
    assert_eq!(of(Selection::Domain("work")), gone);
    assert_eq!(of(Selection::Machine("other", None)), [""; 0]);
}
