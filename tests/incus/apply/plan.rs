//! Tests what `apply` creates, changes, keeps and removes.

use crate::harness::Ran;
use crate::recorder::{Fate, Recorder};
use crate::world::World;

/// Two domains, a service between them, and a volume.
pub(super) const SEED: &str = r#"
domains:
  {a}:
    subnet_id: 1
    machines:
      {a}-signer:
        ip: "{base}.1.10"
        services:
          - {name: sign, tool: gpg_sign, consumers: [{b}-dev]}
  {b}:
    subnet_id: 2
    ephemeral: true
    profiles:
      small: {config: {limits.cpu: 1}}
    machines:
      {b}-dev:
        ip: "{base}.2.10"
        config: {limits.memory: 1GiB}
        boot_autostart: true
        profiles: [default, small]
        storage_volumes: {data: {size: 10MiB, path: /data}}
"#;

/// Runs `anklume apply --dry-run --exit-code`, which must send Incus no write request.
#[track_caller]
fn dry_run(world: &World) -> Ran {
    let recorder = Recorder::new(|_, _| Fate::Pass);
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let run = world.anklume(&["apply", "--dry-run", "--exit-code"]);
    let ran = run.env("INCUS_SOCKET", socket).run();
    assert_eq!(recorder.writes(), [""; 0], "{ran:?}");
    ran
}

#[test]
fn what_is_declared_is_made_and_a_second_run_sends_no_writing_request() {
    let world = World::new(SEED);
    let dry = dry_run(&world);
    assert_eq!(dry.status, 6, "{}", dry.stderr);
    let made = [
        "+ project {a}",
        "+ acl net-{a} (keeps the domain apart)",
        "+ network net-{a} ({base}.1.0/24)",
        "+ device root on profile default of {a}",
        "+ project {b}",
        "+ acl net-{b} (keeps the domain apart)",
        "+ network net-{b} ({base}.2.0/24)",
        "+ device root on profile default of {b}",
        "+ profile small of {b}",
        "+ machine {a}-signer (bb, {base}.1.10)",
        "~ machine {a}-signer status: stopped → running",
        "+ volume {b}-dev-data of {b} (10MiB)",
        "+ machine {b}-dev (bb, {base}.2.10)",
        "~ machine {b}-dev status: stopped → running",
    ];
    let made = world.filled(&made.map(|line| format!("{line}\n")).concat());
    assert!(dry.stdout.contains(&made), "{}\n{made}", dry.stdout);
    assert!(
        !world
            .domains
            .iter()
            .enumerate()
            .any(|(domain, _)| world.is_there(domain))
    );

    let ran = world.apply();
    // As many as the lines of the plan.
    let planned = dry.stdout.lines().count();
    assert_eq!(ran.stdout, format!("done: {planned} changes\n"));
    let count = format!("{planned} changes; nothing was changed\n");
    assert!(dry.stderr.ends_with(&count), "{}", dry.stderr);
    world.is_settled();
    // Count write requests on Incus's side, including those that run programs in machines.
    let recorder = Recorder::new(|_, _| Fate::Pass);
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let again = world.anklume(&["apply"]).env("INCUS_SOCKET", socket).run();
    assert_eq!(again.status, 0, "{again:?}");
    assert_eq!(recorder.writes(), [""; 0]);
    assert_eq!(world.plan(), ["nothing to do: Incus is as declared"]);
    let dry = dry_run(&world);
    assert_eq!(dry.status, 0, "{dry:?}");
    assert!(world.exec(0, "signer", "true").0 && world.exec(1, "dev", "true").0);
    assert!(world.exec(1, "dev", "test -d /data").0);
    for (key, value) in [
        ("limits.memory", "1GiB"),
        ("boot.autostart", "true"),
        ("user.anklume.project", &world.name),
        ("security.protection.delete", ""),
    ] {
        assert_eq!(world.config(1, "dev", key), value, "{key}");
    }
    assert_eq!(
        world.config(0, "signer", "security.protection.delete"),
        "true"
    );
}

#[test]
fn only_declared_keys_are_compared_and_what_is_no_longer_declared_goes() {
    let mut world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    let by_hand = [
        vec!["config", "set", &dev, "user.mine=1", "limits.processes=500"],
        vec![
            "config",
            "device",
            "add",
            &dev,
            "null",
            "unix-char",
            "path=/dev/null",
        ],
        vec!["config", "device", "set", &dev, "eth0", "boot.priority=3"],
        vec!["profile", "set", "small", "user.mine=1"],
    ];
    for command in &by_hand {
        let output = world.incus(1, command);
        assert!(output.status.success(), "{output:?}");
    }
    world.is_settled();

    let output = world.incus(1, &["config", "set", &dev, "limits.memory=3GiB"]);
    assert!(output.status.success());
    let changed = SEED
        .replace("boot_autostart: true", "boot_priority: 7")
        .replace("{limits.cpu: 1}", "{limits.cpu: 2}");
    world.declare(&changed);
    let mut expected = [
        "~ machine {b}-dev boot.autostart.priority: (none) → 7",
        "~ machine {b}-dev boot.autostart: true → (none)",
        "~ machine {b}-dev limits.memory: 3GiB → 1GiB",
        "~ profile small of {b} limits.cpu: 1 → 2",
    ]
    .map(|line| world.filled(line));
    expected.sort_unstable();
    assert_eq!(dry_run(&world).status, 6);
    assert_eq!(world.plan(), expected);
    world.apply();
    world.is_settled();
    for (key, value) in [
        ("user.mine", "1"),
        ("limits.processes", "500"),
        ("boot.autostart", ""),
    ] {
        assert_eq!(world.config(1, "dev", key), value, "{key}");
    }
    let devices = world.incus(1, &["config", "device", "show", &dev]);
    let devices = String::from_utf8_lossy(&devices.stdout).into_owned();
    assert!(
        devices.contains("boot.priority: \"3\"") && devices.contains("/dev/null"),
        "{devices}"
    );
}

#[test]
fn keys_that_apply_does_not_apply_are_named() {
    let world = World::new(&SEED.replace("boot_autostart: true", "weight: 3"));
    let ran = world.run(&["apply", "--dry-run"]);
    let (_, keys) = ran.stderr.split_once("not applied by anklume: ").unwrap();
    assert_eq!(keys.lines().next(), Some("`weight`"), "{ran:?}");
    let plain = World::new(SEED);
    let ran = plain.run(&["apply", "--dry-run"]);
    assert!(!ran.stderr.contains("not applied"), "{ran:?}");
}

#[test]
fn a_stopped_machine_is_started_and_one_that_is_no_longer_declared_stays() {
    let mut world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    assert!(world.incus(1, &["stop", "--force", &dev]).status.success());
    let started = world.filled("~ machine {b}-dev status: stopped → running");
    assert_eq!(world.plan(), [started]);
    // The channels of a machine that was only started are tested too.
    let (status, answer) = world.apply_json();
    assert_eq!(status, 0, "{answer:#}");
    let actions = answer["actions"].as_array().unwrap().iter();
    let verbs: Vec<_> = actions
        .map(|action| action["verb"].as_str().unwrap())
        .collect();
    assert_eq!(verbs, ["change", "prove"]);
    world.is_settled();

    let fewer = SEED.replace("{b}-dev", "{b}-new").replace(".2.10", ".2.11");
    world.declare(&fewer);
    let ran = world.apply();
    let note = format!(
        "`anklume destroy --domain {} --machine {dev}` deletes it",
        world.domains[1]
    );
    assert!(ran.stderr.contains(&note), "{}", ran.stderr);
    assert!(world.exec(1, "dev", "true").0);
    // A renamed machine leaves nothing behind: its devices and sockets are those of the new name.
    assert_eq!(world.edge_devices(1, &dev), Vec::<String>::new());
    let new = world.machine(1, "new");
    assert_eq!(world.edge_devices(1, &new).len(), 1);
    assert_eq!(world.edge_devices(0, &world.machine(0, "signer")).len(), 1);
    let sockets = world.exec(1, "dev", "ls /srv/anklume/mcp").1;
    assert_eq!(sockets, "");
    world.is_settled();
}

#[test]
fn a_machine_that_moved_to_another_domain_is_deleted_only_where_it_was() {
    const PLAIN: &str = r#"
domains:
  {a}: {subnet_id: 1, machines: {{a}-keeper: {}}}
  {b}: {subnet_id: 2, machines: {{a}-moved: {ip: "{base}.2.20"}}}
"#;
    let mut world = World::new(PLAIN);
    world.apply();
    let moved = "{a}-moved: {ip: \"{base}.1.20\"}";
    let text = PLAIN.replace("{a}-keeper: {}", &format!("{{a}}-keeper: {{}}, {moved}"));
    world.declare(&text.replace("{{a}-moved: {ip: \"{base}.2.20\"}}", "{{a}-left: {}}"));
    let ran = world.apply();
    let name = world.machine(0, "moved");
    let (_, command) = ran.stderr.split_once("still exists; `anklume ").unwrap();
    let (command, _) = command.split_once('`').unwrap();

    // The name alone does not say which one.
    let both = world.run(&["destroy", "-i", &name, "--yes", "--force"]);
    let message = format!(
        "error: `{name}` is a machine in several domains: {}, {}\n  = help: name its domain too: `--domain DOMAIN`\n",
        world.domains[0], world.domains[1]
    );
    both.is(1, "", &message);
    let command: Vec<&str> = command.split(' ').chain(["--yes"]).collect();
    let ran = world.run(&command);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(!world.incus(1, &["info", &name]).status.success());
    assert!(world.incus(0, &["info", &name]).status.success());
    world.is_settled();
}

#[test]
fn destroy_asks_refuses_what_is_not_ephemeral_and_leaves_what_is_not_ours() {
    let world = World::new(SEED);
    world.apply();
    let (signer, dev) = (world.machine(0, "signer"), world.machine(1, "dev"));
    let ran = world.run(&["destroy", "--domain", &world.domains[1]]);
    assert_eq!(ran.status, 2, "{}", ran.stderr);
    assert!(
        ran.stderr.contains(&format!("- machine {dev}\n")),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("`--yes` deletes without asking"),
        "{}",
        ran.stderr
    );

    let ran = world.run(&["destroy", "--yes"]);
    let refused = format!(
        "error: not ephemeral, so not deleted: {signer}\n  = help: `--force` deletes them anyway; nothing was deleted\n"
    );
    ran.is(1, "", &refused);
    assert!(world.exec(1, "dev", "true").0, "something was deleted");

    let ran = world.run(&["destroy", "--machine", &dev, "--yes"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout, "done: 3 changes\n");
    assert!(!world.incus(1, &["info", &dev]).status.success());
    world.apply();

    let by_hand = world.machine(1, "mine");
    let pool = ["create", "-q", "bb", &by_hand];
    assert!(world.incus(1, &pool).status.success());
    let profile = ["profile", "create", "theirs"];
    assert!(world.incus(1, &profile).status.success());
    let ran = world.run(&["destroy", "--yes", "--force"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let note = format!(
        "note: the domain `{}` is kept because anklume did not create some of its content: {by_hand}, profile theirs",
        world.domains[1]
    );
    assert!(ran.stderr.contains(&note), "{}", ran.stderr);
    assert!(world.incus(1, &["info", &by_hand]).status.success());
    assert!(!world.is_there(0), "the first domain is gone");
    world.incus(1, &["delete", &by_hand]);
    let ran = world.run(&["destroy", "--yes"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        world.is_there(1),
        "a domain with somebody's profile is gone"
    );
    world.incus(1, &["profile", "delete", "theirs"]);
    let ran = world.run(&["destroy", "--yes"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let ran = world.run(&["destroy", "--yes"]);
    ran.answers("nothing to delete: anklume created nothing in Incus for this file\n");
}

#[test]
fn a_machine_that_cannot_be_deleted_keeps_its_own_domain_and_no_other() {
    let world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    let recorder = Recorder::new(move |_, line| {
        if line.starts_with(&format!("DELETE /1.0/instances/{dev}")) {
            let busy = r#"{"type":"error","error_code":500,"error":"the volume is busy"}"#;
            return Fate::Answer(500, busy.to_owned());
        }
        Fate::Pass
    });
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let run = world.anklume(&["destroy", "--yes", "--force"]);
    let ran = run.env("INCUS_SOCKET", socket).run();
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(!world.is_there(0) && world.is_there(1), "{}", ran.stderr);
    let kept = world.filled("! remove project {b}: skipped, a part of it could not be deleted\n");
    assert!(ran.stderr.contains(&kept), "{}", ran.stderr);
    assert!(
        ran.stderr
            .contains("Incus reports: the volume is busy (HTTP 500)"),
        "{}",
        ran.stderr
    );
    let ran = world.run(&["destroy", "--yes", "--force"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(!world.is_there(1));
}
