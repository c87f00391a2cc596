//! What people do to Incus by hand: `doctor` names it, and one run puts it right or says what only a person can do.

use super::plan::SEED;
use crate::project::{incus, succeeded};
use crate::world::{World, pair};

/// Sets the address of the machine `dev`, and asserts that it reaches its gateway.
fn reaches_its_gateway(world: &World) -> bool {
    let command = "ip link set eth0 up; ip addr add {base}.2.10/24 dev eth0 2>/dev/null; ping -c1 -W2 {base}.2.254";
    world.exec(1, "dev", &world.filled(command)).0
}

/// The lines of `doctor` that report a fault.
fn faults(world: &World) -> Vec<String> {
    let ran = world.run(&["doctor"]);
    let lines = ran
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("broken  "));
    let faults: Vec<String> = lines.map(str::to_owned).collect();
    assert_eq!(ran.status, i32::from(!faults.is_empty()), "{ran:?}");
    faults
}

/// Asserts that `doctor` reports exactly this, and that a single run of `apply` puts it right.
#[track_caller]
fn is_named_and_put_right(world: &World, fault: &str) {
    assert_eq!(faults(world), [world.filled(fault)]);
    world.apply();
    world.is_settled();
    assert_eq!(faults(world), [""; 0]);
}

#[test]
fn networks_are_put_right_in_one_run() {
    let mut world = World::new(SEED);
    world.apply();
    let net = world.filled("net-{b}");
    assert!(reaches_its_gateway(&world));
    // The bridge is gone: machines that are running are connected again.
    let gone = std::process::Command::new("ip")
        .args(["link", "del", &net])
        .status();
    assert!(gone.unwrap().success());
    assert!(!reaches_its_gateway(&world));
    is_named_and_put_right(
        &world,
        "Incus differs from infra.yml: ~ network net-{b} bridge missing on the host → recreated, {b}-dev reconnected",
    );
    assert!(reaches_its_gateway(&world));
    // Its address was changed.
    succeeded(&incus([
        "network",
        "set",
        &net,
        &world.filled("ipv4.address={base}.9.254/24"),
    ]));
    is_named_and_put_right(
        &world,
        "Incus differs from infra.yml: ~ network net-{b} ipv4.address: {base}.9.254/24 → {base}.2.254/24",
    );
    // A rule was removed.
    let rule = world.filled("destination={base}.2.0/24");
    let list = world.filled("net-{a}");
    let words = [
        "network",
        "acl",
        "rule",
        "remove",
        "-q",
        &list,
        "egress",
        "action=reject",
        &rule,
    ];
    succeeded(&incus(words));
    is_named_and_put_right(
        &world,
        "Incus differs from infra.yml: + acl net-{a} egress: reject {base}.2.0/24",
    );
    // A machine's address was changed.
    let dev = world.machine(1, "dev");
    let other = world.filled("ipv4.address={base}.2.77");
    succeeded(&world.incus(1, &["config", "device", "set", &dev, "eth0", &other]));
    is_named_and_put_right(
        &world,
        "Incus differs from infra.yml: ~ device eth0 on {b}-dev ipv4.address: {base}.2.77 → {base}.2.10",
    );
    // The subnet of a running machine changes, and is then changed back by hand.
    let moved = SEED
        .replace("subnet_id: 2", "subnet_id: 7")
        .replace("{base}.2.10", "{base}.7.10");
    world.declare(&moved);
    assert_eq!(faults(&world), [""; 0], "not applied yet is not broken");
    world.apply();
    world.is_settled();
    let range = world.filled("ipv4.dhcp.ranges={base}.2.100-{base}.2.249");
    let back = world.filled("ipv4.address={base}.2.254/24");
    succeeded(&incus(["network", "set", &net, &range, &back]));
    world.declare(SEED);
    world.apply();
    world.is_settled();
    assert!(reaches_its_gateway(&world));
}

#[test]
fn a_network_whose_creation_was_cut_short_is_made_again() {
    let alone = "domains: {{a}: {subnet_id: 1}, {b}: {subnet_id: 2, machines: {}}}\n";
    let world = World::new(alone);
    world.apply();
    let pending = world.filled(
        "UPDATE networks_nodes SET state=0 WHERE network_id=(SELECT id FROM networks WHERE name='net-{b}')",
    );
    succeeded(&incus(["admin", "sql", "global", &pending]));
    let net = world.filled("net-{b}");
    let show = incus(["network", "list", "-f", "csv", "-c", "ns"]);
    let shown = String::from_utf8(show.stdout).unwrap();
    assert!(shown.contains(&format!("{net},PENDING")), "{shown}");
    let plan = world.plan();
    assert_eq!(
        plan,
        [
            world.filled("+ network net-{b} ({base}.2.0/24)"),
            world.filled("- bridge net-{b} on the host"),
            world.filled("- network net-{b}"),
        ]
    );
    world.apply();
    world.is_settled();
}

#[test]
fn an_end_of_a_channel_that_was_made_privileged_is_named_until_it_is_not() {
    let world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    let privileged =
        || succeeded(&world.incus(1, &["config", "set", &dev, "security.privileged=true"]));
    let restart = || succeeded(&world.incus(1, &["restart", "--force", &dev]));
    privileged();
    is_named_and_put_right(
        &world,
        "Incus differs from infra.yml: ~ machine {b}-dev security.privileged: true → false (after a restart)",
    );
    privileged();
    restart();
    let runs = world.filled("{b}-dev runs privileged, so its root is the root of this host");
    assert!(faults(&world)[0].ends_with(&runs), "{:#?}", faults(&world));
    world.apply();
    // Only a restart ends it, and that is for a person to decide.
    assert!(faults(&world)[0].ends_with(&runs), "{:#?}", faults(&world));
    let ran = world.run(&["apply"]);
    let note = format!(
        "note: `{dev}` runs with other user IDs than configured until it is restarted: `incus restart {dev} --project {}`\n",
        world.domains[1]
    );
    assert!(ran.stderr.contains(&note), "{}", ran.stderr);
    let command = note.split('`').nth(3).unwrap();
    // The tests' machines do not wait for a clean end.
    let words = command.split(' ').skip(1).chain(["--force"]);
    succeeded(&incus(words));
    assert_eq!(faults(&world), [""; 0]);
    world.is_settled();
}

#[test]
fn a_copy_stops_nothing_and_nobody_is_told_to_delete_its_original() {
    let world = World::new(&pair("ephemeral: true", "name: sign, tool: gpg_sign"));
    world.apply();
    let dev = world.machine(1, "dev");
    let project = world.domains[1].clone();
    let other = format!("--target-project={}", world.domains[0]);
    // A copy in the same project, and one of the same name in another project.
    succeeded(&world.incus(1, &["copy", &dev, "backup"]));
    succeeded(&world.incus(1, &["copy", &dev, &dev, &other]));
    world.apply();
    world.is_settled();
    let ran = world.run(&["apply"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    for note in [
        format!(
            "note: `backup` (project `{project}`) is a copy of `{project}/{dev}` and is left alone\n"
        ),
        format!(
            "note: `{dev}` (project `{}`) is a copy of `{project}/{dev}` and is left alone\n",
            world.domains[0]
        ),
    ] {
        assert!(ran.stderr.contains(&note), "{note}: {}", ran.stderr);
    }
    assert!(!ran.stderr.contains("destroy"), "{}", ran.stderr);
    // `destroy` deletes the original, which is anklume's, and never the copies.
    let ran = world.run(&["destroy", "--machine", "backup", "--yes"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    for (domain, name) in [(1, "backup"), (0, &*dev)] {
        let protected = ["config", "set", name, "security.protection.delete="];
        succeeded(&world.incus(domain, &protected));
        succeeded(&world.incus(domain, &["delete", name]));
    }
    world.is_settled();
}

#[test]
fn a_machine_that_was_renamed_by_hand_comes_back_by_the_commands_of_the_help() {
    let world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    assert!(world.exec(1, "dev", "echo precious >/root/file").0);
    succeeded(&world.incus(1, &["stop", "--force", &dev]));
    succeeded(&world.incus(1, &["rename", &dev, "renamed"]));
    succeeded(&world.incus(1, &["start", "renamed"]));
    let ran = world.run(&["apply"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    let help = ran
        .stderr
        .split("if it is the same machine: ")
        .nth(1)
        .unwrap();
    let mut commands = help.split('`').skip(1).step_by(2);
    for command in commands.by_ref().take(2) {
        let words = command.strip_prefix("incus ").unwrap().split(' ');
        // The tests' machines do not wait for a clean end.
        let force = command.contains(" stop ").then_some("--force");
        succeeded(&incus(words.chain(force)));
    }
    assert_eq!(commands.next(), Some("anklume apply"));
    world.apply();
    world.is_settled();
    assert_eq!(world.exec(1, "dev", "cat /root/file").1, "precious\n");
}

#[test]
fn a_machine_that_incus_is_about_to_start_is_not_called_stopped() {
    let world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    succeeded(&world.incus(1, &["stop", "--force", &dev]));
    // As after a restart of the host: Incus starts what was running, one machine after the other.
    let found = faults(&world);
    let starting = format!("{dev} is not running yet: Incus started ");
    assert!(found[0].contains(&starting), "{found:#?}");
    // A machine that was stopped on purpose stays so.
    let words = ["config", "set", &dev, "boot.autostart=false"];
    succeeded(&world.incus(1, &words));
    assert!(faults(&world)[0].ends_with(&format!("{dev} is stopped")));
    world.apply();
    world.is_settled();
}
