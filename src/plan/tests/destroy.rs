//! Tests the plan of `destroy`: the deletions, and the objects that are kept.

use super::*;
use crate::plan::{Deletions, Selection, destroy};

fn gone(deletions: &Deletions) -> Vec<String> {
    deletions.actions().flat_map(Action::lines).collect()
}

#[test]
fn destroy_takes_what_is_marked_in_the_order_in_which_it_can_go() {
    let mut state = applied(INFRA);
    assert_eq!(
        gone(&destroy("demo", &state, Selection::All, false)),
        [
            "- machine signer (not ephemeral)",
            "- machine dev",
            "- volume dev-data of work",
            "- network net-vault",
            "- acl net-vault",
            "- project vault",
            "- profile small of work",
            "- network net-work",
            "- acl net-work",
            "- project work",
        ]
    );
    assert_eq!(
        gone(&destroy("other", &state, Selection::All, false)),
        Vec::<String>::new()
    );
    assert_eq!(
        gone(&destroy(
            "demo",
            &state,
            Selection::Machine("dev", None),
            false
        )),
        ["- machine dev", "- volume dev-data of work"]
    );
    assert_eq!(
        gone(&destroy(
            "demo",
            &state,
            Selection::Machine("nobody", None),
            false
        )),
        Vec::<String>::new()
    );
    let device = state.instances[0]
        .devices
        .values()
        .find_map(|device| device.get("listen"));
    let path = device.unwrap().strip_prefix("unix:").unwrap().to_owned();
    let deletions = destroy("demo", &state, Selection::Machine("signer", None), false);
    assert!(matches!(&deletions.machines[0], Action::Delete { sockets, .. } if *sockets == [path]));
    let by_hand: Instance =
        serde_json::from_value(json!({"name": "mine", "project": "work"})).unwrap();
    state.instances.push(by_hand);
    let profile = json!({"name": "theirs", "project": "work"});
    state
        .profiles
        .push(serde_json::from_value(profile).unwrap());
    let volume = json!({"name": "dev-data", "project": "work", "pool": "other"});
    state.volumes.push(serde_json::from_value(volume).unwrap());
    let bucket = "/1.0/storage-pools/default/buckets/logs?project=work".to_owned();
    let mut projects = state.projects.iter_mut();
    let work = projects.find(|one| one.name == "work").unwrap();
    work.used_by.push(bucket);
    let deletions = destroy("demo", &state, Selection::Domain("work"), false);
    assert_eq!(
        gone(&deletions),
        ["- machine dev", "- volume dev-data of work"]
    );
    assert_eq!(
        deletions.notes,
        [
            "the domain `work` is kept because anklume did not create some of its content: mine, dev-data, profile theirs, storage-pools/default/buckets/logs"
        ]
    );
    // The profile and the bucket alone are enough to keep it.
    state.instances.pop();
    state.volumes.pop();
    let deletions = destroy("demo", &state, Selection::All, false);
    assert!(!gone(&deletions).contains(&"- project work".to_owned()));
    assert!(!gone(&deletions).contains(&"- network net-work".to_owned()));
}

#[test]
fn what_is_scheduled_goes_with_the_last_channel() {
    let last = "- rotation of the channels' logs".to_owned();
    let mut state = applied(INFRA);
    let all = |state: &State, rotated| {
        let deletions = destroy("demo", state, Selection::All, rotated);
        gone(&deletions)
    };
    assert_eq!(all(&state, true).last(), Some(&last));
    assert!(!all(&state, false).contains(&last));
    // One end of the channel remains.
    let one = destroy("demo", &state, Selection::Machine("dev", None), true);
    assert!(!gone(&one).contains(&last));
    let mut other = state.instances[0].clone();
    (other.project, other.name) = ("else".to_owned(), "one".to_owned());
    other.config.clear();
    state.instances.push(other);
    assert!(!all(&state, true).contains(&last));
    // An infrastructure without channels leaves the rotation alone.
    let alone = INFRA.replace("consumers: [dev]", "consumers: []");
    assert!(!all(&applied(&alone), true).contains(&last));
}
