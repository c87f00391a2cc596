//! Tests every byte of each file: existing Ansible roles depend on this layout.

use super::{CLIPBOARD, HEAD, QUICK_START, TAIL};
use crate::harness::{Anklume, Ran};

/// The files for [`QUICK_START`]. Channel names and UIDs are derived from a SHA-256 hash of the project and both ends.
const QUICK_START_FILES: [(&str, &str); 5] = [
    (
        "group_vars/all.yml",
        "\
project_name: demo
base_subnet: \"10.100\"
default_os_image: images:debian/13
incus_all_images:
  - images:debian/13
",
    ),
    (
        "group_vars/vault.yml",
        "\
domain_name: vault
domain_description: \"\"
domain_ephemeral: false
domain_ai_provider: local
domain_ai_sanitize: false
incus_project: vault
incus_network:
  name: net-vault
  subnet: 10.100.0.0/24
  gateway: \"10.100.0.254\"
subnet_id: 0
",
    ),
    (
        "inventory/vault.yml",
        "\
all:
  children:
    vault:
      hosts:
        vault-signer:
          ansible_host: \"10.100.0.10\"
",
    ),
    (
        "host_vars/vault-signer.yml",
        "\
instance_name: vault-signer
instance_type: lxc
instance_description: \"\"
instance_domain: vault
instance_ephemeral: false
instance_os_image: images:debian/13
instance_ip: \"10.100.0.10\"
instance_devices:
  mcp_f258b0bc2b0a11fc:
    type: proxy
    bind: host
    listen: unix:/var/lib/anklume/mcp/f258b0bc2b0a11fc.sock
    connect: unix:/run/anklume/mcp/work-dev.sock
    uid: \"2032189247\"
    gid: \"2032189247\"
    mode: \"0600\"
  mcp_93730a049637a599:
    type: proxy
    bind: host
    listen: unix:/var/lib/anklume/mcp/93730a049637a599.sock
    connect: unix:/run/anklume/mcp/pro-dev.sock
    uid: \"2056420032\"
    gid: \"2056420032\"
    mode: \"0600\"
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
    ),
    (
        "host_vars/work-dev.yml",
        "\
instance_name: work-dev
instance_type: lxc
instance_description: \"\"
instance_domain: work
instance_ephemeral: false
instance_os_image: images:debian/13
instance_ip: \"10.100.1.10\"
instance_devices:
  mcp_f258b0bc2b0a11fc:
    type: proxy
    bind: instance
    listen: unix:/srv/anklume/mcp/vault-signer.sock
    connect: unix:/var/lib/anklume/mcp/f258b0bc2b0a11fc.sock
    uid: \"0\"
    gid: \"0\"
    mode: \"0600\"
    security.uid: \"2032189247\"
    security.gid: \"2032189247\"
",
    ),
];

/// A declaration with every key that is written to a file.
const EVERYTHING: &str = "\
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
            with: {key_id: \"1234567890123456\"}
        roles: [base]
        ephemeral: false
        boot_autostart: true
        boot_priority: 10
        snapshots_schedule: \"0 3 * * *\"
        snapshots_expiry: 30d
      aside: {mcp: {uid: 1000, gid: 100}}
network_policies:
  - {from: work, to: empty, ports: [22], protocol: tcp}
";

/// The files for [`EVERYTHING`].
const EVERYTHING_FILES: [(&str, &str); 5] = [
    (
        "group_vars/all.yml",
        "\
project_name: demo
base_subnet: \"10.100\"
default_os_image: images:alpine/3.20
psot_default_connection: community.general.incus
psot_default_user: root
incus_all_images:
  - images:alpine/3.20
network_policies:
  - from: work
    to: empty
    ports:
      - 22
    protocol: tcp
",
    ),
    (
        "group_vars/work.yml",
        "\
domain_name: work
domain_description: \"\"
domain_ephemeral: true
domain_trust_level: trusted
domain_ai_provider: cloud
domain_ai_sanitize: true
incus_project: work
incus_network:
  name: net-work
  subnet: 10.100.1.0/24
  gateway: \"10.100.1.254\"
subnet_id: 1
incus_profiles:
  gui:
    devices:
      x:
        type: unix-char
        source: /dev/x
    config:
      limits.cpu: \"2\"
",
    ),
    (
        "host_vars/work-dev.yml",
        "\
instance_name: work-dev
instance_type: lxc
instance_description: \"a: b\"
instance_domain: work
instance_ephemeral: false
instance_os_image: images:alpine/3.20
instance_ip: \"10.100.1.10\"
instance_gpu: false
instance_profiles:
  - default
  - gui
instance_config:
  security.nesting: \"true\"
  limits.memory: 2GiB
  user.x: \"1.5\"
instance_devices:
  sv-docs:
    type: disk
    source: /srv/anklume/shares/docs
    path: /shared/docs
    shift: \"true\"
    readonly: \"true\"
  pd-conf:
    type: disk
    source: /srv/anklume/data/work/work-dev/conf
    path: /etc/app
    shift: \"true\"
    readonly: \"true\"
  web:
    type: proxy
    listen: tcp:0.0.0.0:80
    connect: tcp:127.0.0.1:80
  mcp_ae670ca546ae9400:
    type: proxy
    bind: host
    listen: unix:/var/lib/anklume/mcp/ae670ca546ae9400.sock
    connect: unix:/run/anklume/mcp/aside.sock
    uid: \"2002298926\"
    gid: \"2002298926\"
    mode: \"0600\"
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
      key_id: \"1234567890123456\"
instance_roles:
  - base
instance_boot_autostart: true
instance_boot_priority: 10
instance_snapshots_schedule: 0 3 * * *
instance_snapshots_expiry: 30d
",
    ),
    (
        "inventory/empty.yml",
        "\
all:
  children:
    empty:
      hosts: null
",
    ),
    (
        "inventory/work.yml",
        "\
all:
  children:
    work:
      hosts:
        work-dev:
          ansible_host: \"10.100.1.10\"
        aside: null
",
    ),
];

/// Compares the bodies of files with the expected ones.
#[track_caller]
fn have_bodies(ran: &Ran, files: &[(&str, &str)]) {
    for (file, body) in files {
        assert_eq!(ran.read(file), format!("{HEAD}{body}{TAIL}"), "{file}");
    }
}

#[test]
fn the_quick_start_gives_these_files_to_the_byte() {
    let ran = Anklume::new().infra(QUICK_START).args(["sync"]).run();
    ran.is(
        0,
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
        CLIPBOARD,
    );
    have_bodies(&ran, &QUICK_START_FILES);
}

#[test]
fn a_machine_with_everything_has_every_key_in_its_place() {
    let ran = Anklume::new().infra(EVERYTHING).args(["sync"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    have_bodies(&ran, &EVERYTHING_FILES);
    let aside = ran.read("host_vars/aside.yml");
    assert!(
        aside.contains("    uid: \"1000\"\n    gid: \"100\"\n"),
        "{aside}"
    );
    assert!(!aside.contains("instance_ip"), "{aside}");
}
