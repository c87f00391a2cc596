//! `anklume sync`: the files that Ansible reads.

mod ansible;
mod race;
mod refusal;
mod report;
mod text;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::harness::{Anklume, Ran, have};

/// The quick start of the documentation, with the domain that its first edition forgot.
const QUICK_START: &str = "\
project_name: demo
domains:
  vault:
    subnet_id: 0
    machines:
      vault-signer:
        type: lxc
        ip: \"10.100.0.10\"
        services:
          - name: file_sign
            tool: gpg_sign
            consumers: [work-dev, pro-dev]
          - name: clipboard
            tool: clipboard_get
            consumers: [work-dev]
  work:
    subnet_id: 1
    machines:
      work-dev:
        type: lxc
        ip: \"10.100.1.10\"
  pro:
    subnet_id: 2
    machines:
      pro-dev:
        type: lxc
        ip: \"10.100.2.10\"
";

/// A domain with one machine and nothing else.
const ONE: &str = "\
project_name: demo
domains:
  work:
    subnet_id: 1
    machines:
      work-dev: {}
";

/// The files that [`ONE`] has, in the order in which they are written.
const FILES_OF_ONE: [&str; 4] = [
    "group_vars/all.yml",
    "inventory/work.yml",
    "group_vars/work.yml",
    "host_vars/work-dev.yml",
];

/// First lines of every file.
const HEAD: &str = "\
---
# === MANAGED BY infra.yml ===
# Do not edit this section — it will be overwritten by `make sync`
";
/// Last lines of every file.
const TAIL: &str = "\
# === END MANAGED ===

# Your custom variables below:
";

/// A program of the Python environment that `tests/setup.sh` makes; see [`have`].
#[track_caller]
fn python(program: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/python/bin")
        .join(program);
    have(&format!("target/python/bin/{program}"), path.is_file()).then_some(path)
}

/// A run of `anklume sync` in the folder that an earlier run left.
fn again<const N: usize>(ran: Ran, args: [&str; N]) -> Anklume {
    Anklume::in_folder(ran.folder).args(["sync"]).args(args)
}

/// Every file below a folder, but the declaration.
fn tree(base: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![base.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap() != "infra.yml" {
                let name = path.strip_prefix(base).unwrap().display().to_string();
                files.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    files
}

/// When each file below a folder was last written.
fn times(base: &Path) -> BTreeMap<String, std::time::SystemTime> {
    let time = |name: String| {
        let time = base.join(&name).metadata().unwrap().modified().unwrap();
        (name, time)
    };
    tree(base).into_keys().map(time).collect()
}

#[test]
fn the_first_example_as_first_printed_says_its_one_fault_and_writes_nothing() {
    let pro = QUICK_START.find("  pro:").unwrap();
    let printed = QUICK_START[..pro].replace("project_name: demo\n", "");
    let ran = Anklume::new().infra(&printed).args(["sync"]).run();
    ran.is(
        1,
        "",
        "\
error[unknown-consumer]: `pro-dev` is not a machine of this file
  --> infra.yml:11:35
   |
11 |             consumers: [work-dev, pro-dev]
   |                                   ^^^^^^^
   = help: declare the machine in a domain, or take it off the list
",
    );
    assert!(tree(ran.folder.path()).is_empty());
}

#[test]
fn the_quick_start_gives_these_files_to_the_byte() {
    let ran = Anklume::new().infra(QUICK_START).args(["sync"]).run();
    ran.answers(
        "\
created group_vars/all.yml
created inventory/vault.yml
created group_vars/vault.yml
created host_vars/vault-signer.yml
created inventory/work.yml
created group_vars/work.yml
created host_vars/work-dev.yml
created inventory/pro.yml
created group_vars/pro.yml
created host_vars/pro-dev.yml
10 files: 10 created
",
    );
    let body = |file: &str, body: &str| assert_eq!(ran.read(file), format!("{HEAD}{body}{TAIL}"));
    body(
        "group_vars/all.yml",
        "\
project_name: demo
base_subnet: '10.100'
default_os_image: images:debian/13
incus_all_images:
  - images:debian/13
",
    );
    body(
        "group_vars/vault.yml",
        "\
domain_name: vault
domain_description: ''
domain_ephemeral: false
domain_ai_provider: local
domain_ai_sanitize: false
incus_project: vault
incus_network:
  name: net-vault
  subnet: 10.100.0.0/24
  gateway: 10.100.0.254
subnet_id: 0
",
    );
    body(
        "inventory/vault.yml",
        "\
all:
  children:
    vault:
      hosts:
        vault-signer:
          ansible_host: 10.100.0.10
",
    );
    // The names and uids of channels: SHA-256 over the project and the places of the ends.
    body(
        "host_vars/vault-signer.yml",
        "\
instance_name: vault-signer
instance_type: lxc
instance_description: ''
instance_domain: vault
instance_ephemeral: false
instance_os_image: images:debian/13
instance_ip: 10.100.0.10
instance_devices:
  mcp-f258b0bc2b0a11fc:
    type: proxy
    bind: host
    listen: unix:/var/lib/anklume/mcp/f258b0bc2b0a11fc.sock
    connect: unix:/run/anklume/mcp/work-dev.sock
    uid: '2032189247'
    gid: '2032189247'
    mode: '0600'
  mcp-93730a049637a599:
    type: proxy
    bind: host
    listen: unix:/var/lib/anklume/mcp/93730a049637a599.sock
    connect: unix:/run/anklume/mcp/pro-dev.sock
    uid: '2056420032'
    gid: '2056420032'
    mode: '0600'
instance_services:
  - name: file_sign
    tool: gpg_sign
    consumers:
      - work-dev
      - pro-dev
  - name: clipboard
    tool: clipboard_get
    consumers:
      - work-dev
",
    );
    body(
        "host_vars/work-dev.yml",
        "\
instance_name: work-dev
instance_type: lxc
instance_description: ''
instance_domain: work
instance_ephemeral: false
instance_os_image: images:debian/13
instance_ip: 10.100.1.10
instance_devices:
  mcp-f258b0bc2b0a11fc:
    type: proxy
    bind: instance
    listen: unix:/srv/anklume/mcp/vault-signer.sock
    connect: unix:/var/lib/anklume/mcp/f258b0bc2b0a11fc.sock
    uid: '0'
    gid: '0'
    mode: '0600'
    security.uid: '2032189247'
    security.gid: '2032189247'
",
    );
}

#[test]
fn a_machine_with_everything_has_every_key_in_its_place() {
    let infra = "\
project_name: demo
global: {default_os_image: images:alpine/3.20, default_connection: community.general.incus, default_user: root}
shared_volumes:
  docs: {consumers: {work: ro}}
domains:
  empty: {subnet_id: 9, description: nobody here}
  work:
    subnet_id: 1
    trust_level: trusted
    ephemeral: true
    ai_provider: cloud
    profiles:
      gui: {devices: {x: {type: unix-char, source: /dev/x}}, config: {limits.cpu: 2}}
    machines:
      work-dev:
        description: \"a: b\"
        ip: 10.100.1.10
        gpu: false
        profiles: [default, gui]
        config: {security.nesting: true, limits.memory: 2GiB, user.x: 1.5}
        devices: {web: {type: proxy, listen: tcp:0.0.0.0:80, connect: tcp:127.0.0.1:80}}
        persistent_data: {conf: {path: /etc/app, readonly: true}}
        storage_volumes: {cache: {pool: default, size: 1GiB, path: /var/cache}}
        services:
          - name: sign
            tool: gpg_sign
            consumers: [aside]
            with: {key_id: \"0x1f\"}
        roles: [base]
        ephemeral: false
        boot_autostart: true
        boot_priority: 10
        snapshots_schedule: \"0 3 * * *\"
        snapshots_expiry: 30d
      aside: {mcp: {uid: 1000, gid: 100}}
network_policies:
  - {from: work, to: host, ports: [22], protocol: tcp}
";
    let ran = Anklume::new().infra(infra).args(["sync"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let body = |file: &str, body: &str| assert_eq!(ran.read(file), format!("{HEAD}{body}{TAIL}"));
    body(
        "group_vars/all.yml",
        "\
project_name: demo
base_subnet: '10.100'
default_os_image: images:alpine/3.20
psot_default_connection: community.general.incus
psot_default_user: root
incus_all_images:
  - images:alpine/3.20
network_policies:
  - from: work
    to: host
    ports:
      - 22
    protocol: tcp
",
    );
    body(
        "group_vars/work.yml",
        "\
domain_name: work
domain_description: ''
domain_ephemeral: true
domain_trust_level: trusted
domain_ai_provider: cloud
domain_ai_sanitize: true
incus_project: work
incus_network:
  name: net-work
  subnet: 10.100.1.0/24
  gateway: 10.100.1.254
subnet_id: 1
incus_profiles:
  gui:
    devices:
      x:
        type: unix-char
        source: /dev/x
    config:
      limits.cpu: '2'
",
    );
    body(
        "host_vars/work-dev.yml",
        "\
instance_name: work-dev
instance_type: lxc
instance_description: 'a: b'
instance_domain: work
instance_ephemeral: false
instance_os_image: images:alpine/3.20
instance_ip: 10.100.1.10
instance_gpu: false
instance_profiles:
  - default
  - gui
instance_config:
  security.nesting: 'true'
  limits.memory: 2GiB
  user.x: '1.5'
instance_devices:
  sv-docs:
    type: disk
    source: /srv/anklume/shares/docs
    path: /shared/docs
    shift: 'true'
    readonly: 'true'
  pd-conf:
    type: disk
    source: /srv/anklume/data/work/work-dev/conf
    path: /etc/app
    shift: 'true'
    readonly: 'true'
  web:
    type: proxy
    listen: tcp:0.0.0.0:80
    connect: tcp:127.0.0.1:80
  mcp-7c80d36d5d2ff19f:
    type: proxy
    bind: host
    listen: unix:/var/lib/anklume/mcp/7c80d36d5d2ff19f.sock
    connect: unix:/run/anklume/mcp/aside.sock
    uid: '2069174364'
    gid: '2069174364'
    mode: '0600'
instance_storage_volumes:
  cache:
    pool: default
    size: 1GiB
    path: /var/cache
instance_services:
  - name: sign
    tool: gpg_sign
    consumers:
      - aside
    with:
      key_id: '0x1f'
instance_roles:
  - base
instance_boot_autostart: true
instance_boot_priority: 10
instance_snapshots_schedule: 0 3 * * *
instance_snapshots_expiry: 30d
",
    );
    body(
        "inventory/empty.yml",
        "\
all:
  children:
    empty:
      hosts:
",
    );
    body(
        "inventory/work.yml",
        "\
all:
  children:
    work:
      hosts:
        work-dev:
          ansible_host: 10.100.1.10
        aside:
",
    );
    let aside = ran.read("host_vars/aside.yml");
    assert!(
        aside.contains("    uid: '1000'\n    gid: '100'\n"),
        "{aside}"
    );
    assert!(!aside.contains("instance_ip"), "{aside}");
}

#[test]
fn a_second_run_writes_nothing_and_a_change_writes_its_own_file_alone() {
    let first = Anklume::new().infra(ONE).args(["sync"]).run();
    let before = times(first.folder.path());
    let second = again(first, []).run();
    second.answers("nothing to do: 4 files up to date\n");
    assert_eq!(times(second.folder.path()), before);
    let infra = ONE.replace("{}", "{description: new}");
    let third = again(second, []).infra(&infra).run();
    third.answers("updated host_vars/work-dev.yml\n4 files: 1 updated, 3 unchanged\n");
    let mut after = times(third.folder.path());
    assert!(after["host_vars/work-dev.yml"] > before["host_vars/work-dev.yml"]);
    after.insert(
        "host_vars/work-dev.yml".to_owned(),
        before["host_vars/work-dev.yml"],
    );
    assert_eq!(after, before);
}

#[test]
fn a_disabled_domain_has_no_files_and_those_it_had_are_left() {
    let disabled = ONE.replace("subnet_id: 1", "subnet_id: 1\n    enabled: false");
    let fresh = Anklume::new().infra(&disabled).args(["sync"]).run();
    fresh.answers("created group_vars/all.yml\n1 file: 1 created\n");
    let enabled = again(fresh, []).infra(ONE).run();
    let before = tree(enabled.folder.path());
    let off = again(enabled, ["--clean-orphans"]).infra(&disabled).run();
    off.answers("updated group_vars/all.yml\n1 file: 1 updated\n");
    let mut after = tree(off.folder.path());
    after.insert(
        "group_vars/all.yml".to_owned(),
        before["group_vars/all.yml"].clone(),
    );
    assert_eq!(after, before);
}

#[test]
fn an_infra_folder_and_a_base_dir_say_where_from_and_where_to() {
    let (base, domain) = (
        "project_name: demo\nglobal: {}\n",
        "work:\n  subnet_id: 1\n  machines:\n    work-dev: {}\n",
    );
    let ran = Anklume::new()
        .file("infra/base.yml", base)
        .file("infra/domains/work.yml", domain)
        .file("out/keep", "")
        .args(["sync", "--infra", "infra", "--base-dir", "out"])
        .run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let beside = Anklume::new().infra(ONE).args(["sync"]).run();
    for file in FILES_OF_ONE {
        assert_eq!(ran.read(&format!("out/{file}")), beside.read(file));
    }
    // Without a folder to write into: beside the folder that declares.
    let ran = again(ran, ["--infra", "infra"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert_eq!(ran.read(FILES_OF_ONE[0]), beside.read(FILES_OF_ONE[0]));
}
