//! A machine can have many things besides services: all of them are created, and a second run finds them as declared.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::world::World;

/// A machine with every key that `apply` supports, except services.
const INFRA: &str = r#"
shared_volumes:
  docs: {source: "{folder}/new/docs", consumers: {{a}: rw}}
domains:
  {a}:
    subnet_id: 1
    description: Of the domain
    ephemeral: true
    profiles:
      small: {description: Of the profile, config: {limits.cpu: 1}}
    machines:
      {a}-one:
        description: Of the machine
        ip: "{base}.1.10"
        profiles: [default, small]
        config: {limits.memory: 1GiB}
        devices: {"null": {type: unix-char, path: /dev/null}}
        storage_volumes: {data: {size: 10MiB, path: /data}}
        persistent_data: {conf: {path: /conf}, fixed: {path: /fixed, readonly: true}}
        boot_autostart: true
        boot_priority: 7
        snapshots_schedule: "0 2 * * *"
        snapshots_expiry: 12h
"#;

/// Sets the mode of a path.
fn open(path: &Path, rights: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(rights)).unwrap();
}

/// Runs this copy of `id` with `-u` as an unprivileged user on the host.
fn as_nobody(program: &Path) -> std::io::Result<String> {
    let output = Command::new(program)
        .arg("-u")
        .uid(65534)
        .gid(65534)
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn what_is_declared_is_there_and_what_a_machine_leaves_on_the_host_makes_nobody_root() {
    let world = World::new(INFRA);
    // Accessible to everybody, except for the folders that `apply` creates.
    open(world.folder.path(), 0o755);
    world.apply();
    world.is_settled();
    let machine = world.machine(0, "one");
    for (key, value) in [
        ("limits.memory", "1GiB"),
        ("boot.autostart", "true"),
        ("boot.autostart.priority", "7"),
        ("snapshots.schedule", "0 2 * * *"),
        ("snapshots.expiry", "12H"),
    ] {
        assert_eq!(world.config(0, "one", key), value, "{key}");
    }
    let answer = |args: &[&str]| {
        let output = world.incus(0, args);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shows = answer(&["config", "show", &machine]);
    assert!(shows.contains("description: Of the machine\n"), "{shows}");
    assert!(shows.contains("- default\n- small\n"), "{shows}");
    let profile = answer(&["profile", "show", "small"]);
    assert!(
        profile.contains("description: Of the profile\n"),
        "{profile}"
    );
    let writes = "test -d /data && touch /shared/docs/x /conf/x && ! touch /fixed/x 2>/dev/null";
    assert!(world.exec(0, "one", writes).0);

    for place in ["shared/docs", "conf"] {
        let target = format!("{machine}/{place}/id");
        let pushed = world.incus(0, &["file", "push", "-q", "/usr/bin/id", &target]);
        assert!(pushed.status.success(), "{pushed:?}");
        let leave =
            format!("chown 0:0 /{place}/id && chmod 4755 /{place}/id && chmod 0777 /{place}");
        assert!(world.exec(0, "one", &leave).0);
    }
    let folder = world.folder.path();
    let conf = world.filled("data/{a}/{a}-one/conf");
    for share in ["new/docs", &conf] {
        let program = folder.join(share).join("id");
        let mode = std::fs::metadata(&program).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o4755, "{share}");
        let kept_out = as_nobody(&program).unwrap_err().kind();
        assert_eq!(kept_out, std::io::ErrorKind::PermissionDenied, "{share}");
    }

    // If other users on the host can reach the folder, `apply` reports it and does nothing.
    open(&folder.join("new"), 0o755);
    assert_eq!(as_nobody(&folder.join("new/docs/id")).unwrap(), "0\n");
    let (ran, closes) = (world.run(&["apply"]), "help: `chmod 0700 {folder}/new`");
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.stderr.contains("error[open-share]"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&world.filled(closes)), "{}", ran.stderr);
    open(&folder.join("new"), 0o700);
    world.is_settled();
}

#[test]
fn a_machine_that_writes_a_share_gets_no_other_folder_of_the_host_by_one_within() {
    let mut world = World::new(INFRA);
    open(world.folder.path(), 0o755);
    world.apply();
    // A source in the machine's share is refused, whether it is named directly or through a link into the share.
    let inner = |source: &str| {
        let share = format!(
            "shared_volumes:\n  inner: {{source: \"{{folder}}/{source}\", path: /inner, consumers: {{{{a}}: ro}}}}"
        );
        INFRA.replace("shared_volumes:", &share)
    };
    let link = world.folder.path().join("link");
    std::os::unix::fs::symlink(world.folder.path().join("new/docs/inner"), &link).unwrap();
    // Root in the machine makes the source a link to `/`.
    assert!(world.exec(0, "one", "ln -s / /shared/docs/inner").0);
    for (source, said) in [
        (
            "new/docs/inner",
            " is in `{folder}/new/docs`, a host folder that a machine may write to",
        ),
        (
            "link",
            " leads into `{folder}/new/docs`, a host folder that a machine may write to",
        ),
    ] {
        world.declare(&inner(source));
        let ran = world.run(&["apply"]);
        let said = format!("error[source-in-shared-folder]: `{{folder}}/{source}`{said}");
        assert_eq!(ran.status, 1, "{ran:?}");
        assert!(ran.stderr.contains(&world.filled(&said)), "{}", ran.stderr);
    }
    assert!(!world.exec(0, "one", "test -e /inner").0);
    // A folder is not created through a link either.
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/nowhere", &link).unwrap();
    world.declare(&inner("link/x"));
    let ran = world.run(&["apply"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.stderr.contains("is a symbolic link"), "{}", ran.stderr);
    std::fs::remove_file(&link).unwrap();
    // A folder next to the share is created.
    world.declare(&inner("new/inner"));
    world.apply();
    assert!(world.exec(0, "one", "test -d /inner").0);
}
