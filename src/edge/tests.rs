//! The edges of hand-made infrastructures, against the rules of the design.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::*;
use crate::diagnostic::{Place, Source};
use crate::infra::{Addressing, DeclaredService, Global, MachineType, McpUsers, Network, Profile};
use crate::name::ToolName;

fn place() -> Place {
    Place {
        source: Arc::new(Source {
            path: "infra.yml".to_owned(),
            text: String::new(),
        }),
        line: 1,
        column: 1,
        bytes: 0..0,
    }
}

fn machine(name: &str, consumers: &[&str]) -> Machine {
    let services = if consumers.is_empty() {
        vec![]
    } else {
        vec![service("a", consumers)]
    };
    Machine {
        name: name.parse().unwrap(),
        place: place(),
        kind: MachineType::Container,
        description: String::new(),
        ip: None,
        os_image: "images:debian/13".to_owned(),
        ephemeral: false,
        gpu: None,
        profiles: vec![],
        config: vec![],
        devices: vec![],
        storage_volumes: None,
        roles: None,
        boot_autostart: None,
        boot_priority: None,
        snapshots_schedule: None,
        snapshots_expiry: None,
        mcp: McpUsers::default(),
        services,
    }
}

fn service(name: &str, consumers: &[&str]) -> DeclaredService {
    DeclaredService {
        name: name.parse().unwrap(),
        place: place(),
        tool: ToolName::GpgSign,
        consumers: consumers.iter().map(|name| name.parse().unwrap()).collect(),
        with: Map::new(),
    }
}

fn domain(name: &str, machines: Vec<Machine>) -> Domain {
    Domain {
        name: name.parse().unwrap(),
        description: String::new(),
        enabled: true,
        subnet_id: 0,
        trust_level: None,
        ephemeral: false,
        profiles: vec![],
        ai_provider: "local".to_owned(),
        ai_sanitize: Value::Bool(false),
        network: Network {
            name: format!("net-{name}"),
            subnet: Ipv4Addr::new(10, 100, 0, 0),
            gateway: Ipv4Addr::new(10, 100, 0, 254),
        },
        machines,
    }
}

fn infra(domains: Vec<Domain>) -> Infra {
    Infra {
        project: "demo".to_owned(),
        global: Global {
            addressing: Addressing::Subnets {
                base_subnet: "10.100".to_owned(),
            },
            default_os_image: None,
            default_connection: None,
            default_user: None,
        },
        domains,
        network_policies: vec![],
    }
}

/// A vault that serves a work machine, and one that has nothing to do with it.
fn three() -> Infra {
    infra(vec![
        domain("vault", vec![machine("vault-signer", &["work-dev"])]),
        domain(
            "work",
            vec![machine("work-dev", &[]), machine("aside", &[])],
        ),
    ])
}

fn device(name: &str, keys: &[(&str, &str)]) -> Device {
    let keys = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Device {
        name: name.to_owned(),
        keys: keys.collect(),
    }
}

/// The codes and messages of the faults when one machine of [`three`] gets a device.
fn faults_with(at: (usize, usize), device: Device) -> Vec<String> {
    let mut infra = three();
    infra.domains[at.0].machines[at.1].devices.push(device);
    messages(&infra)
}

fn messages(infra: &Infra) -> Vec<String> {
    let faults = edges(infra).err().map_or_else(Vec::new, |faults| faults.0);
    let text = |fault: &Diagnostic| format!("{}: {}", fault.code, fault.message);
    faults.iter().map(text).collect()
}

const VAULT: (usize, usize) = (0, 0);
const WORK: (usize, usize) = (1, 0);
const ASIDE: (usize, usize) = (1, 1);

#[test]
fn an_edge_is_a_pair_whatever_the_number_of_services() {
    let mut infra = three();
    let vault = &mut infra.domains[0].machines[0];
    vault
        .services
        .push(service("b", &["aside", "work-dev", "vault-signer"]));
    let pairs: Vec<_> = edges(&infra).unwrap();
    let pairs: Vec<_> = pairs
        .iter()
        .map(|edge| {
            (
                edge.consumer.machine.as_str(),
                edge.provider.machine.as_str(),
            )
        })
        .collect();
    assert_eq!(
        pairs,
        [("work-dev", "vault-signer"), ("aside", "vault-signer")]
    );
}

#[test]
fn a_disabled_domain_has_no_edge() {
    for disabled in [0, 1] {
        let mut infra = three();
        infra.domains[disabled].enabled = false;
        assert_eq!(edges(&infra), Ok(vec![]));
    }
}

#[test]
fn the_name_of_an_edge_is_a_digest_of_where_its_ends_are() {
    // printf of each text after its length as eight bytes, big-endian, through sha256sum.
    let edge = &edges(&three()).unwrap()[0];
    assert_eq!(edge.hash, "f258b0bc2b0a11fc");
    assert_eq!(edge.uid, 2_032_189_247);
    let mut other = three();
    other.project = "demo2".to_owned();
    assert_ne!(edges(&other).unwrap()[0].hash, edge.hash);
    assert_ne!(edges(&other).unwrap()[0].uid, edge.uid);
}

#[test]
fn texts_do_not_run_together() {
    assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    assert_ne!(digest(&["a", ""]), digest(&["", "a"]));
}

#[test]
fn the_devices_are_those_of_the_design() {
    let mut infra = three();
    infra.domains[1].machines[0].mcp = McpUsers {
        run_as: None,
        uid: 1000,
        gid: 100,
    };
    let edge = &edges(&infra).unwrap()[0];
    let uid = edge.uid.to_string();
    let name = format!("mcp-{}", edge.hash);
    let host = format!("unix:/var/lib/anklume/mcp/{}.sock", edge.hash);
    let provider = device(
        &name,
        &[
            ("type", "proxy"),
            ("bind", "host"),
            ("listen", &host),
            ("connect", "unix:/run/anklume/mcp/work-dev.sock"),
            ("uid", &uid),
            ("gid", &uid),
            ("mode", "0600"),
        ],
    );
    assert_eq!(edge.provider_device(), provider);
    let consumer = device(
        &name,
        &[
            ("type", "proxy"),
            ("bind", "instance"),
            ("listen", "unix:/srv/anklume/mcp/vault-signer.sock"),
            ("connect", &host),
            ("uid", "1000"),
            ("gid", "100"),
            ("mode", "0600"),
            ("security.uid", &uid),
            ("security.gid", &uid),
        ],
    );
    assert_eq!(edge.consumer_device(), consumer);
}

#[test]
fn the_later_name_of_a_clash_takes_the_next_free_uid() {
    let names: Vec<MachineName> = ["a", "b", "c", "d"]
        .iter()
        .map(|n| n.parse().unwrap())
        .collect();
    let wanted = |places: [u32; 4]| {
        let given = uids(names.iter().zip(places).rev());
        names
            .iter()
            .map(|name| given[name] - FIRST_UID)
            .collect::<Vec<_>>()
    };
    assert_eq!(wanted([7, 7, 8, 7]), [7, 9, 8, 10]);
    assert_eq!(wanted([UIDS - 1, UIDS - 1, 3, 0]), [UIDS - 1, 1, 3, 0]);
}

#[test]
fn two_edges_of_one_name_are_a_fault() {
    let infra = three();
    let first = edges(&infra).unwrap().remove(0);
    let mut second = first.clone();
    second.consumer.machine = "aside".parse().unwrap();
    let machines = infra
        .machines()
        .map(|(domain, machine)| (machine.name.as_str(), (domain, machine)))
        .collect();
    let faults = clashes(&[first.clone(), second], &machines);
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].code, "edge-clash");
    assert_eq!(
        faults[0].message,
        format!(
            "the channels `work-dev` → `vault-signer` and `aside` → `vault-signer` get the same name on the host, `{}`",
            first.hash
        )
    );
    assert!(clashes(&[first], &machines).is_empty());
}

#[test]
fn a_privileged_end_is_a_fault_however_it_became_one() {
    let key = ("security.privileged".to_owned(), "True".to_owned());
    let off = ("security.privileged".to_owned(), "false".to_owned());
    let profile = Profile {
        devices: vec![],
        config: vec![key.clone()],
    };
    let mut own = three();
    own.domains[0].machines[0].config.push(key);
    assert_eq!(
        messages(&own),
        [
            "edge-privileged: `vault-signer` is privileged and an end of a service: its root is root on the host"
        ]
    );
    let mut by_default = three();
    by_default.domains[1]
        .profiles
        .push(("default".to_owned(), profile.clone()));
    assert_eq!(messages(&by_default).len(), 1);
    let mut by_profile = three();
    by_profile.domains[1]
        .profiles
        .push(("p".to_owned(), profile));
    assert_eq!(messages(&by_profile).len(), 0);
    by_profile.domains[1].machines[0]
        .profiles
        .push("p".to_owned());
    assert_eq!(messages(&by_profile).len(), 1);
    by_profile.domains[1].machines[0].config.push(off);
    assert_eq!(messages(&by_profile).len(), 0);
}

#[test]
fn a_virtual_machine_is_no_end() {
    let mut infra = three();
    infra.domains[1].machines[1].kind = MachineType::VirtualMachine;
    assert_eq!(messages(&infra).len(), 0);
    infra.domains[1].machines[0].kind = MachineType::VirtualMachine;
    assert!(messages(&infra)[0].starts_with("edge-virtual-machine: `work-dev` is"));
}

#[test]
fn nothing_lies_over_the_folders_of_sockets_of_an_end() {
    let disk = |path| {
        device(
            "d",
            &[("type", "disk"), ("source", "/data"), ("path", path)],
        )
    };
    for bad in [
        "/srv",
        "/srv/anklume",
        "/srv/anklume/mcp/",
        "/srv/x/../anklume/mcp/a",
        "/run",
        "//run/./anklume",
    ] {
        assert_eq!(faults_with(WORK, disk(bad)).len(), 1, "{bad}");
        assert_eq!(faults_with(VAULT, disk(bad)).len(), 1, "{bad}");
        assert_eq!(faults_with(ASIDE, disk(bad)).len(), 0, "{bad}");
    }
    for good in ["/", "/srv/anklume/portal", "/srv/anklume/mcp2", "/data"] {
        assert_eq!(faults_with(WORK, disk(good)).len(), 0, "{good}");
    }
}

#[test]
fn no_other_proxy_reaches_a_socket_of_an_edge() {
    let inside = device(
        "p",
        &[
            ("type", "proxy"),
            ("listen", "tcp:0.0.0.0:1"),
            ("connect", "unix:/run/anklume/mcp/work-dev.sock"),
        ],
    );
    assert_eq!(
        faults_with(VAULT, inside),
        [
            "edge-device: the device `p` of `vault-signer` reaches `/run/anklume/mcp`, the folder of the machine's service sockets"
        ]
    );
    let instead = device(
        "p",
        &[
            ("type", "proxy"),
            ("bind", "instance"),
            ("listen", "unix:/srv/anklume/mcp/vault-signer.sock"),
            ("connect", "unix:/elsewhere"),
        ],
    );
    assert_eq!(faults_with(WORK, instead).len(), 1);
    let host = device(
        "p",
        &[
            ("type", "proxy"),
            ("bind", "instance"),
            ("listen", "unix:/tmp/x"),
            ("connect", "unix:/var/lib/anklume/mcp/0123456789abcdef.sock"),
        ],
    );
    assert_eq!(faults_with(ASIDE, host).len(), 1);
    let disk = device(
        "d",
        &[("type", "disk"), ("source", "/var/lib"), ("path", "/x")],
    );
    assert_eq!(faults_with(ASIDE, disk).len(), 1);
    let pool = device(
        "d",
        &[
            ("type", "disk"),
            ("pool", "default"),
            ("source", "var"),
            ("path", "/x"),
        ],
    );
    assert_eq!(faults_with(ASIDE, pool).len(), 0);
}

#[test]
fn a_device_of_an_end_has_no_name_of_ours() {
    let named = |name| device(name, &[("type", "nic")]);
    assert_eq!(faults_with(WORK, named("mcp-0123456789abcdef")).len(), 1);
    assert_eq!(faults_with(WORK, named("mcp-0123456789abcde")).len(), 0);
    assert_eq!(faults_with(ASIDE, named("mcp-0123456789abcdef")).len(), 0);
}

#[test]
fn the_host_connects_to_nothing_below_a_folder_that_a_machine_can_write() {
    let mut infra = three();
    let proxy = device(
        "p",
        &[
            ("type", "proxy"),
            ("bind", "instance"),
            ("listen", "unix:/tmp/x"),
            ("connect", "unix:/data/share/x.sock"),
        ],
    );
    infra.domains[1].machines[1].devices.push(proxy);
    assert_eq!(messages(&infra).len(), 0);
    let mut disk = device(
        "d",
        &[("type", "disk"), ("source", "/data"), ("path", "/x")],
    );
    infra.domains[0].machines[0].devices.push(disk.clone());
    assert_eq!(messages(&infra).len(), 1);
    disk.keys.push(("readonly".to_owned(), "true".to_owned()));
    infra.domains[0].machines[0].devices = vec![disk];
    assert_eq!(messages(&infra).len(), 0);
}

#[test]
fn without_an_edge_devices_are_the_users_own_affair() {
    let mut infra = three();
    infra.domains[0].machines[0].services.clear();
    let disk = device("d", &[("type", "disk"), ("source", "/"), ("path", "/srv")]);
    infra.domains[0].machines[0].devices.push(disk);
    assert_eq!(messages(&infra).len(), 0);
}
