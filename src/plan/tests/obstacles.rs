//! Tests the obstacles to a plan, and their removal.

use std::collections::BTreeSet;

use serde_json::json;

use super::memory::{carry, instance};
use super::{Faults, INFRA, applied, codes, empty, facts, infra, lines, planned};
use crate::edge::{FIRST_UID, UIDS, edges};
use crate::incus::state::{IncusNetwork, Project};
use crate::incus::{Object, State};
use crate::plan::{
    Action, Facts, HostRoute, ImageError, PlanCode, RemoteImage, TakenIds, remote_images,
};

#[test]
fn folders_that_anklume_shares_are_made_and_others_must_be_there() {
    let text = INFRA.to_owned() + "shared_volumes: {docs: {consumers: {dev: ro}}}\n";
    let mut facts = facts();
    facts.missing = ["/srv/anklume/shares/docs".to_owned()].into();
    let plan = planned(&text, &empty(), &facts, &[]).unwrap();
    assert_eq!(
        lines(&plan)[0],
        "+ folder /srv/anklume/shares/docs on the host"
    );
    facts.root = false;
    assert_eq!(
        codes(&text, &empty(), &facts, &[]),
        ["host-folder", "no-source"]
    );
    let own = INFRA.replace(
        "        profiles: [",
        "        devices: {d: {type: disk, source: /nowhere, path: /d}}\n        profiles: [",
    );
    facts = self::facts();
    facts.missing = ["/nowhere".to_owned()].into();
    assert_eq!(codes(&own, &empty(), &facts, &[]), ["no-source"]);
}

#[test]
fn what_is_not_ours_stands_in_the_way_until_it_is_adopted() {
    let mut state = applied(INFRA);
    for mark in [
        "user.anklume.project",
        "user.anklume.machine",
        "user.anklume.keys",
    ] {
        instance(&mut state, &Object::machine("work", "dev"))
            .config
            .remove(mark);
        for network in &mut state.networks {
            network.config.remove(mark);
        }
    }
    assert_eq!(
        codes(INFRA, &state, &facts(), &[]),
        ["not-ours", "not-ours", "not-ours"]
    );
    assert_eq!(
        codes(INFRA, &state, &facts(), &["work", "vault"]),
        ["not-ours"]
    );
    assert_eq!(
        codes(INFRA, &state, &facts(), &["work", "nobody", "vault"]),
        ["nothing-to-adopt", "not-ours"]
    );
    let plan = planned(INFRA, &state, &facts(), &["work", "vault", "dev"]).unwrap();
    carry(&mut state, &plan);
    assert!(planned(INFRA, &state, &facts(), &[]).unwrap().is_empty());
    // This profile was made by hand in a domain's project.
    let by_hand = json!({"name": "small", "project": "work", "config": {"limits.cpu": "8"}});
    let mut second = applied(&INFRA.replace("        profiles: [default, small]\n", ""));
    second.profiles.retain(|one| one.name != "small");
    second
        .profiles
        .push(serde_json::from_value(by_hand).unwrap());
    assert_eq!(codes(INFRA, &second, &facts(), &[]), ["not-ours"]);
    let plan = planned(INFRA, &second, &facts(), &["work"]).unwrap();
    let taken = "~ profile small of work limits.cpu: 8 → 1".to_owned();
    assert!(lines(&plan).contains(&taken), "{:#?}", lines(&plan));
    // Objects of another infrastructure cannot be adopted.
    let second = INFRA.replace("project_name: demo", "project_name: second");
    let found = codes(
        &second,
        &state,
        &facts(),
        &["work", "vault", "dev", "signer"],
    );
    assert_eq!(found, ["other-infrastructure"]);
}

#[test]
fn the_host_and_incus_can_stand_in_the_way() {
    let consumer_uid = edges(&infra(INFRA)).unwrap()[0].uid;
    assert!((FIRST_UID..FIRST_UID + UIDS).contains(&consumer_uid));
    let with = |change: &dyn Fn(&mut State, &mut Facts)| {
        let (mut state, mut facts) = (empty(), facts());
        change(&mut state, &mut facts);
        codes(INFRA, &state, &facts, &[])
    };
    let taken = TakenIds {
        first: consumer_uid,
        count: 1,
        by: "`/etc/passwd` for `alice`".to_owned(),
    };
    assert_eq!(
        with(&|_, facts| facts.ids = vec![taken.clone()]),
        ["uid-in-use"]
    );
    let range = TakenIds {
        first: FIRST_UID - 1,
        count: UIDS,
        ..taken.clone()
    };
    assert_eq!(
        with(&|_, facts| facts.ids = vec![range.clone()]),
        ["uid-in-use"]
    );
    let before = TakenIds {
        first: consumer_uid - 10,
        count: 10,
        ..taken.clone()
    };
    let mut near = facts();
    near.ids = vec![before];
    assert!(planned(INFRA, &empty(), &near, &[]).is_ok());
    assert_eq!(with(&|_, facts| facts.root = false), ["host-folder"]);
    assert_eq!(
        with(&|state, _| state.aliases.clear()),
        ["no-image", "no-image"]
    );
    assert_eq!(
        with(&|state, _| "virtual-machine".clone_into(&mut state.aliases[0].kind)),
        ["no-image", "no-image"]
    );
    assert_eq!(
        with(&|state, _| state.pools.clear()),
        ["no-pool", "no-pool"]
    );
    let route = |prefix, network: &str| HostRoute {
        interface: "eth9".to_owned(),
        network: network.parse().unwrap(),
        prefix,
    };
    assert_eq!(
        with(&|_, facts| facts.routes = vec![route(24, "10.100.1.0")]),
        ["subnet-in-use"]
    );
    assert_eq!(
        with(&|_, facts| facts.routes = vec![route(30, "10.100.1.4")]),
        ["subnet-in-use"]
    );
    assert_eq!(
        with(&|_, facts| facts.routes = vec![route(16, "10.100.0.0")]),
        ["subnet-in-use", "subnet-in-use"]
    );
    let mut vpn = facts();
    vpn.routes = vec![route(8, "10.0.0.0"), route(24, "10.101.0.0")];
    assert!(planned(INFRA, &empty(), &vpn, &[]).is_ok());
    let project =
        json!({"name": "work", "config": {"features.images": "true", "features.profiles": "true"}});
    let project: Project = serde_json::from_value(project).unwrap();
    assert_eq!(
        with(&|state, _| state.projects.push(project.clone())),
        ["project-features"]
    );
    let unmanaged: IncusNetwork =
        serde_json::from_value(json!({"name": "net-work", "type": "bridge"})).unwrap();
    assert_eq!(
        with(&|state, _| state.networks.push(unmanaged.clone())),
        ["bridge-name"]
    );
}

#[test]
fn a_profile_s_proxy_among_the_channels_is_named_and_its_socket_is_not_swept() {
    let into = |socket: &str| {
        let listen = format!("unix:/var/lib/anklume/mcp/{socket}");
        json!({"type": "proxy", "bind": "host", "listen": listen, "connect": "unix:/run/x"})
    };
    let socket = "0123456789abcdef.sock";
    let mut state = applied(INFRA);
    let mut facts = facts();
    facts.sockets = vec![socket.to_owned()];
    let profile = |project: &str, socket: &str| {
        let devices = json!({"p": into(socket)});
        let profile = json!({"name": "mine", "project": project, "devices": devices});
        serde_json::from_value(profile).unwrap()
    };
    // A profile in a foreign project is left alone.
    state.profiles.push(profile("elsewhere", socket));
    let plan = planned(INFRA, &state, &facts, &[]).unwrap();
    assert!(plan.is_empty() && plan.notes.len() == 1, "{plan:#?}");
    let hash = edges(&infra(INFRA)).unwrap().remove(0).hash;
    state
        .profiles
        .push(profile("elsewhere", &format!("{hash}.sock")));
    state.profiles.push(profile("work", socket));
    let Err(Faults(faults)) = planned(INFRA, &state, &facts, &[]) else {
        panic!("no fault");
    };
    let said: Vec<_> = faults
        .iter()
        .map(|fault| (fault.code, fault.message.as_str(), fault.help.as_deref()))
        .collect();
    let expected = ["elsewhere", "work"].map(|project| {
        (
            format!("the device `p` of the profile `mine` (project `{project}`) has a socket in `/var/lib/anklume/mcp`, which is reserved for channels"),
            format!("remove it: `incus profile device remove mine p --project {project}`"),
        )
    });
    let expected = expected
        .iter()
        .map(|(message, help)| ("proxy-into-channels", message.as_str(), Some(help.as_str())));
    assert_eq!(said, expected.collect::<Vec<_>>());
    // Proxies in the file are refused before they exist, even without services, when `infra` only warns.
    let proxy = "{p: {type: proxy, listen: 'unix:/var/lib/anklume/mcp/x', connect: 'unix:/x'}}";
    let alone = INFRA.replace("consumers: [dev]", "consumers: []");
    for (old, new) in [
        (
            "devices: {scratch",
            &*format!("devices: {proxy}}}\n      other: {{devices: {{scratch"),
        ),
        (
            "        profiles: [default",
            &*format!("        devices: {proxy}\n        profiles: [default"),
        ),
    ] {
        let text = alone.replacen(old, new, 1);
        assert_ne!(text, alone);
        assert_eq!(
            codes(&text, &empty(), &self::facts(), &[]),
            ["proxy-into-channels"]
        );
    }
}

#[test]
fn an_address_or_a_name_of_a_machine_that_is_no_longer_declared_is_said() {
    let state = applied(INFRA);
    let renamed = INFRA
        .replace("      dev:", "      new:")
        .replace("[dev]", "[new]");
    assert_eq!(codes(&renamed, &state, &facts(), &[]), ["address-in-use"]);
    let elsewhere = renamed.replace("10.100.1.10", "10.100.1.11");
    let plan = planned(&elsewhere, &state, &facts(), &[]).unwrap();
    let shown = lines(&plan);
    assert!(
        shown[0].ends_with("on signer (provider for dev)")
            && shown[1].ends_with("on dev (consumer of signer)"),
        "{shown:#?}"
    );
    assert!(
        plan.notes[0]
            .contains("`dev` (project `work`) is disabled or no longer declared, but still exists"),
        "{:?}",
        plan.notes
    );
    let others =
        "project_name: demo\nglobal: {default_os_image: bb}\ndomains: {other: {subnet_id: 7}}\n";
    assert_eq!(
        codes(others, &state, &facts(), &[]),
        ["other-infrastructure"]
    );
}

#[test]
fn images_of_servers_are_looked_for_and_only_for_machines_that_are_to_be_made() {
    let text = INFRA.replace("default_os_image: bb", "default_os_image: images:debian/13");
    assert_eq!(remote_images(&infra(&text), &empty()), ["images:debian/13"]);
    let mut facts = facts();
    facts.images.insert(
        "images:debian/13".to_owned(),
        Err(ImageError("no network".to_owned())),
    );
    assert_eq!(
        codes(&text, &empty(), &facts, &[]),
        ["no-image", "no-image"]
    );
    let remote = RemoteImage {
        server: "https://example.org".to_owned(),
        protocol: "simplestreams".to_owned(),
        alias: "debian/13".to_owned(),
    };
    facts
        .images
        .insert("images:debian/13".to_owned(), Ok(remote));
    let plan = planned(&text, &empty(), &facts, &[]).unwrap();
    let made = plan.actions().find_map(|action| match action {
        Action::Create {
            object: Object::Machine { .. },
            body,
            ..
        } => Some(body["source"].clone()),
        _ => None,
    });
    let expected = json!({"type": "image", "mode": "pull", "server": "https://example.org", "protocol": "simplestreams", "alias": "debian/13"});
    assert_eq!(made.unwrap(), expected);
    // An existing machine needs no image, regardless of its origin.
    let state = applied(INFRA);
    assert_eq!(remote_images(&infra(&text), &state), Vec::<String>::new());
    let plan = planned(&text, &state, &facts, &[]).unwrap();
    assert!(plan.is_empty() && plan.notes.len() == 2, "{:?}", plan.notes);
}

#[test]
fn every_code_is_a_heading_and_every_heading_a_code() {
    let page = include_str!("../../../docs/diagnostics.md");
    let (_, section) = page.split_once("\n## What `apply` finds\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let headings: BTreeSet<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let codes = PlanCode::ALL.iter().map(|code| code.as_str());
    // The checks of the file itself also report these two.
    let of_both =
        [PlanCode::ProxyIntoChannels, PlanCode::SourceInSharedFolder].map(PlanCode::as_str);
    let codes: BTreeSet<&str> = codes.filter(|code| !of_both.contains(code)).collect();
    assert_eq!(headings, codes);
    for code in of_both {
        assert!(page.contains(&format!("\n### {code}\n")));
    }
}
