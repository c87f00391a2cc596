//! Checks the edges of small infrastructures against the design rules.

use super::*;
use crate::infra;

/// A provider, its consumer, and an unrelated machine.
const THREE: &str = "
project_name: demo
domains:
  vault:
    subnet_id: 0
    machines:
      vault-signer:
        services:
          - {name: a, tool: gpg_sign, consumers: [work-dev]}
  work:
    subnet_id: 1
    machines:
      work-dev: {}
      aside: {}
";

fn read(text: &str) -> Infra {
    infra::parse("infra.yml", text).unwrap().infra
}

fn device(name: &str, keys: &[(&str, &str)]) -> Device {
    let keys = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Device {
        name: name.to_owned(),
        keys: keys.collect(),
    }
}

#[test]
fn an_edge_is_a_pair_whatever_the_number_of_services() {
    let more = "[work-dev]}\n          - {name: b, tool: gpg_sign, consumers: [aside, work-dev]}";
    let pairs = edges(&read(&THREE.replace("[work-dev]}", more))).unwrap();
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
    let text = THREE.replace("subnet_id: 0", "subnet_id: 0\n    enabled: false");
    assert_eq!(edges(&read(&text)), Ok(vec![]));
}

#[test]
fn the_name_of_an_edge_is_a_digest_of_where_its_ends_are() {
    // Computed with `sha256sum` over the strings, each preceded by its length as eight big-endian bytes.
    let edge = &edges(&read(THREE)).unwrap()[0];
    assert_eq!(edge.hash, "f258b0bc2b0a11fc");
    assert_eq!(edge.uid, 2_032_189_247);
    let other = &edges(&read(&THREE.replace("demo", "demo2"))).unwrap()[0];
    assert_ne!((&other.hash, other.uid), (&edge.hash, edge.uid));
}

#[test]
fn texts_do_not_run_together() {
    assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    assert_ne!(digest(&["a", ""]), digest(&["", "a"]));
}

#[test]
fn the_devices_are_those_of_the_design() {
    let text = THREE.replace("work-dev: {}", "work-dev: {mcp: {uid: 1000, gid: 100}}");
    let edge = &edges(&read(&text)).unwrap()[0];
    let uid = edge.uid.to_string();
    let name = format!("mcp_{}", edge.hash);
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
    let infra = read(THREE);
    let first = edges(&infra).unwrap().remove(0);
    let mut second = first.clone();
    second.consumer.machine = "aside".parse().unwrap();
    let faults = clashes(&infra, &[first.clone(), second]);
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].code, "channel-clash");
    assert_eq!(
        faults[0].message,
        format!(
            "the channels `work-dev` → `vault-signer` and `aside` → `vault-signer` get the same name on the host, `{}`",
            first.hash
        )
    );
    assert!(clashes(&infra, &[first]).is_empty());
}

#[test]
fn a_virtual_machine_is_no_end() {
    let aside = THREE.replace("aside: {}", "aside: {type: vm}");
    assert!(edges(&read(&aside)).is_ok());
    let end = THREE.replace("work-dev: {}", "work-dev: {type: vm}");
    let faults = edges(&read(&end)).unwrap_err().0;
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].code, "virtual-machine-end");
    assert_eq!(faults[0].place.as_ref().unwrap().line, 13);
}

#[test]
fn every_code_is_a_heading_and_every_heading_a_code() {
    let (_, channels) = include_str!("../../docs/diagnostics.md")
        .split_once("\n## Channels\n")
        .unwrap();
    let section = channels.split("\n## ").next().unwrap();
    let headings: Vec<&str> = section
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    assert_eq!(headings, [VIRTUAL_MACHINE_END, CHANNEL_CLASH]);
    assert_eq!(headings.len(), CODES.len());
}
