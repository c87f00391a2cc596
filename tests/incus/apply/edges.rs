//! The devices that use anklume's folder match the edges, on the right machines, whatever happened to the machines.

use std::collections::BTreeMap;
use std::path::Path;

use super::plan::SEED;
use crate::project::{incus, succeeded};
use crate::world::World;

/// Devices by `PROJECT/MACHINE DEVICE`, each with all its keys.
type Devices = BTreeMap<String, BTreeMap<String, String>>;

/// Returns whether a device uses one of anklume's paths.
fn is_on_a_channel(keys: &BTreeMap<String, String>) -> bool {
    keys.values()
        .any(|value| value.contains("/var/lib/anklume/mcp/"))
}

/// Every device in Incus that uses one of anklume's paths, on any machine in any project.
fn devices() -> Devices {
    let list = incus(["query", "/1.0/instances?recursion=1&all-projects=true"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let mut found = Devices::new();
    for instance in list.as_array().unwrap() {
        let place = format!(
            "{}/{}",
            instance["project"].as_str().unwrap(),
            instance["name"].as_str().unwrap()
        );
        let devices = instance["devices"].clone();
        let devices: Devices = serde_json::from_value(devices).unwrap();
        let own = devices
            .into_iter()
            .filter(|(_, keys)| is_on_a_channel(keys));
        found.extend(own.map(|(name, keys)| (format!("{place} {name}"), keys)));
    }
    found
}

/// The devices that `anklume sync` writes for Ansible, from the file alone.
fn declared(world: &World) -> Devices {
    let ran = world.run(&["sync"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let mut found = Devices::new();
    for file in std::fs::read_dir(ran.folder.path().join("host_vars")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let machine: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        let place = format!(
            "{}/{}",
            machine["instance_domain"].as_str().unwrap(),
            machine["instance_name"].as_str().unwrap()
        );
        let devices = machine.get("instance_devices").cloned();
        let devices: Devices =
            devices.map_or_else(Devices::new, |one| serde_json::from_value(one).unwrap());
        let own = devices
            .into_iter()
            .filter(|(_, keys)| is_on_a_channel(keys));
        found.extend(own.map(|(name, keys)| (format!("{place} {name}"), keys)));
    }
    found
}

/// Asserts that the devices in Incus are exactly those of the file, key for key.
#[track_caller]
fn are_as_declared(world: &World, count: usize) {
    let found = devices();
    assert_eq!(found, declared(world));
    assert_eq!(found.len(), count, "{found:#?}");
}

fn socket(device: &str) -> String {
    format!(
        "/var/lib/anklume/mcp/{}.sock",
        device.strip_prefix("mcp_").unwrap()
    )
}

/// Returns whether the consumer can list the provider's services.
fn carries(world: &World) -> bool {
    let list = format!("anklume mcp list -i {}", world.machine(0, "signer"));
    let (listed, tools) = world.exec(1, "dev", &list);
    listed && tools.starts_with("sign ")
}

fn edge(world: &World) -> String {
    let devices = world.edge_devices(0, &world.machine(0, "signer"));
    assert_eq!(devices.len(), 1, "{devices:?}");
    devices.concat()
}

#[test]
fn devices_and_sockets_are_those_of_the_edges() {
    let mut world = World::new(SEED);
    world.apply();
    are_as_declared(&world, 2);
    a_left_over_socket_is_swept_and_a_strange_file_is_not(&world);
    a_removed_service_takes_devices_and_sockets_with_it(&mut world);
    a_machine_may_not_redirect_the_folder_of_its_sockets(&mut world);
    what_a_snapshot_brings_back_is_put_right(&mut world);
}

fn a_removed_service_takes_devices_and_sockets_with_it(world: &mut World) {
    let device = edge(world);
    are_as_declared(world, 2);
    assert!(carries(world));
    world.declare(&SEED.replace("consumers: [{b}-dev]", "consumers: []"));
    world.apply();
    are_as_declared(world, 0);
    assert!(!Path::new(&socket(&device)).exists());
    assert_eq!(world.exec(1, "dev", "ls /srv/anklume/mcp").1, "");
    world.is_settled();
}

#[test]
fn many_consumers_of_one_provider_are_revoked_in_one_run() {
    const MANY: usize = 10;
    let names: Vec<String> = (0..MANY).map(|number| format!("{{b}}-c{number}")).collect();
    let machines: Vec<String> = names
        .iter()
        .map(|name| format!("      {name}: {{}}\n"))
        .collect();
    let text = |consumers: &str| {
        crate::world::pair("ephemeral: true", "name: sign, tool: gpg_sign")
            .replace("      {b}-dev: {}\n", &machines.concat())
            .replace("[{b}-dev]", consumers)
    };
    let mut world = World::new(&text(&format!("[{}]", names.join(", "))));
    world.apply();
    are_as_declared(&world, 2 * MANY);
    world.declare(&text("[]"));
    world.apply();
    are_as_declared(&world, 0);
    world.is_settled();
}

#[test]
fn a_copy_loses_the_channel_and_the_original_gets_its_socket_back() {
    let world = World::new(SEED);
    world.apply();
    let device = edge(&world);
    for (domain, name) in [(0, "signer"), (1, "dev")] {
        let (original, copy) = (world.machine(domain, name), world.machine(domain, "copy"));
        let copied = world.incus(domain, &["copy", &original, &copy]);
        assert!(copied.status.success(), "{copied:?}");
        // The original machine has the address; without it, the copy starts and takes over the socket.
        world.incus(
            domain,
            &["config", "device", "unset", &copy, "eth0", "ipv4.address"],
        );
        assert!(world.incus(domain, &["start", &copy]).status.success());
    }
    assert_eq!(devices().len(), 4);
    let plan = world.plan();
    let lost = format!(
        "- device {device} on {} (provider for {}, not an end of that channel)",
        world.machine(0, "copy"),
        world.machine(1, "dev")
    );
    let again = format!(
        "~ device {device} on {} (provider for {}, recreated)",
        world.machine(0, "signer"),
        world.machine(1, "dev")
    );
    let revoked = format!(
        "- {} may no longer call {}",
        world.machine(1, "copy"),
        world.machine(0, "signer")
    );
    for line in [&lost, &again, &revoked] {
        assert!(plan.contains(line), "{line}: {plan:#?}");
    }
    world.apply();
    are_as_declared(&world, 2);
    assert!(carries(&world));
    world.is_settled();
    // The copies do not belong to anklume: `destroy` would keep them and everything that they use.
    for (domain, name) in [(0, "copy"), (1, "copy")] {
        let copy = world.machine(domain, name);
        succeeded(&world.incus(
            domain,
            &["config", "set", &copy, "security.protection.delete="],
        ));
        succeeded(&world.incus(domain, &["delete", "--force", &copy]));
    }
}

fn what_a_snapshot_brings_back_is_put_right(world: &mut World) {
    let dev = world.machine(1, "dev");
    assert!(
        world
            .incus(1, &["snapshot", "create", &dev, "s"])
            .status
            .success()
    );
    world.declare(&SEED.replace("consumers: [{b}-dev]", "consumers: []"));
    world.apply();
    world.is_settled();
    let restored = world.incus(1, &["snapshot", "restore", &dev, "s"]);
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(devices().len(), 1);
    world.apply();
    are_as_declared(world, 0);
    world.is_settled();
}

fn a_left_over_socket_is_swept_and_a_strange_file_is_not(world: &World) {
    let left = format!("/var/lib/anklume/mcp/{:016x}.sock", std::process::id());
    let strange = format!("/var/lib/anklume/mcp/t-apply-{}", std::process::id());
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    std::fs::write(&strange, "mine").unwrap();
    // `apply` removes the socket, but not the other file.
    world.apply();
    assert!(!Path::new(&left).exists() && Path::new(&strange).exists());
    std::fs::remove_file(&strange).unwrap();
}

/// An edge works again once its consumer no longer redirects the folder.
fn a_machine_may_not_redirect_the_folder_of_its_sockets(world: &mut World) {
    assert!(
        world
            .exec(1, "dev", "rm -rf /srv/anklume; ln -s /tmp /srv/anklume")
            .0
    );
    world.declare(SEED);
    let (status, answer) = world.apply_json();
    assert_eq!((status, &answer["failed"]), (1, &1.into()), "{answer:#}");
    assert!(
        answer
            .to_string()
            .contains("machine altered: `/srv/anklume` in it is not a folder"),
        "{answer:#}"
    );
    assert!(world.exec(1, "dev", "rm /srv/anklume").0);
    world.apply();
    assert!(carries(world));
}
