//! Tests what a machine that is not running is said to be.

use super::*;
use crate::edge::edges;
use crate::infra;

const INFRA: &str = "project_name: demo\ndomains:\n  work:\n    subnet_id: 0\n    machines:\n      vault:\n        \
    services: [{name: sign, tool: gpg_sign, consumers: [dev]}]\n      dev: {}\n";

/// Returns what is said of the consumer: its detail and its fix.
fn said(instance: Instance, incus_age: Option<Duration>) -> (String, String) {
    let mut infra = infra::parse("demo/infra.yml", INFRA).unwrap().infra;
    infra.flag = " --infra demo".to_owned();
    let edges = edges(&infra).unwrap();
    let state = State {
        instances: vec![instance],
        ..State::default()
    };
    let facts = Facts {
        incus_age,
        ..Facts::default()
    };
    let examiner = Examiner {
        infra: &infra,
        edges: &edges,
        state: &state,
        facts: &facts,
        program: "",
        calls: &BTreeMap::new(),
        declared: &Applied::default(),
        applied: None,
        apply: "anklume apply --infra demo",
    };
    let broken = examiner.machine(&edges[0].consumer, true).unwrap();
    (broken.detail, broken.fix)
}

/// The consumer, stopped, with these keys.
fn stopped(keys: &[(&str, &str)]) -> Instance {
    let own = [("user.anklume.project", "demo")];
    let config: Vec<_> = own
        .iter()
        .chain(keys)
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let config: BTreeMap<String, String> = config.into_iter().collect();
    Instance {
        name: "dev".to_owned(),
        project: "work".to_owned(),
        kind: "container".to_owned(),
        status: "Stopped".to_owned(),
        expanded_config: config.clone(),
        config,
        ..Instance::default()
    }
}

#[test]
fn a_machine_that_incus_is_about_to_start_is_not_broken_for_good() {
    let age = Some(Duration::from_secs(7));
    let starting = (
        "dev is not running yet: Incus started 7 s ago and may still be starting its machines"
            .to_owned(),
        "anklume doctor --infra demo".to_owned(),
    );
    let start = (
        "dev is stopped".to_owned(),
        "incus start dev --project work".to_owned(),
    );
    let power = |power| ("volatile.last_state.power", power);
    for (keys, age, expected) in [
        (&[power("RUNNING")][..], age, &starting),
        (
            &[("boot.autostart", "true"), power("STOPPED")],
            age,
            &starting,
        ),
        // Incus does not start it, or started long ago.
        (&[power("STOPPED")], age, &start),
        (
            &[("boot.autostart", "false"), power("RUNNING")],
            age,
            &start,
        ),
        (&[power("RUNNING")], None, &start),
    ] {
        assert_eq!(&said(stopped(keys), age), expected, "{keys:?}");
    }
}
