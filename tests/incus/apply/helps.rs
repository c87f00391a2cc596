//! Each command in a help or note of `apply` is run as written and does what the text says.

use super::plan::SEED;
use crate::harness::Ran;
use crate::project::{incus, succeeded};
use crate::world::{World, pair};

/// The commands between backticks in a text.
fn commands(text: &str) -> Vec<String> {
    let parts = text.split('`').skip(1).step_by(2);
    let is_command = |part: &&str| part.contains(' ');
    parts.filter(is_command).map(str::to_owned).collect()
}

/// Runs commands as a user would, except that `destroy` does not ask.
#[track_caller]
fn follow(world: &World, commands: &[String]) {
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        match *words.first().unwrap() {
            "incus" => {
                // The tests' machines do not wait for a clean end.
                let force = (words[1] == "stop").then_some("--force");
                succeeded(&incus(words[1..].iter().copied().chain(force)));
            }
            "anklume" => {
                let yes = (words[1] == "destroy").then_some("--yes");
                let words: Vec<&str> = words[1..].iter().copied().chain(yes).collect();
                let ran = world.run(&words);
                assert_eq!(ran.status, 0, "{command}: {ran:?}");
            }
            "chmod" | "mkdir" | "mv" | "ip" => {
                let ran = std::process::Command::new(words[0])
                    .args(&words[1..])
                    .output();
                succeeded(&ran.unwrap());
            }
            other => assert_eq!(other, "", "a command that this test does not know"),
        }
    }
}

/// Runs `apply`, which must be refused with this code, and returns its help.
#[track_caller]
fn help(world: &World, code: &str) -> String {
    let ran = world.run(&["apply"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(
        ran.stderr.contains(&format!("error[{code}]: ")),
        "{}",
        ran.stderr
    );
    let help = ran.stderr.split("= help: ").nth(1).unwrap();
    help.lines().next().unwrap().to_owned()
}

/// The note of a run that contains this text.
#[track_caller]
fn note(ran: &Ran, text: &str) -> String {
    let mut notes = ran.stderr.lines().filter(|line| line.starts_with("note: "));
    let note = notes.find(|note| note.contains(text)).unwrap_or_default();
    assert_ne!(note, "", "{text}: {}", ran.stderr);
    note.to_owned()
}

#[test]
fn the_help_for_each_obstacle_removes_it() {
    let mut world = World::new(SEED);
    // A project of the same name with other features.
    succeeded(&incus([
        "project",
        "create",
        &world.domains[0],
        "-c",
        "features.images=true",
    ]));
    follow(&world, &commands(&help(&world, "project-features")));
    // A machine that anklume did not create, and its domain.
    world.apply();
    let dev = world.machine(1, "dev");
    let unset = ["config", "unset", &dev, "user.anklume.project"];
    succeeded(&world.incus(1, &unset));
    // The command names the file that was named.
    let refused = world.run(&["apply", "--infra", "./infra.yml"]);
    let adopt = commands(&refused.stderr);
    let adopt = adopt.iter().filter(|one| one.contains("--adopt"));
    let adopt: Vec<String> = adopt.cloned().collect();
    assert_eq!(
        adopt,
        [format!("anklume apply --adopt {dev} --infra ./infra.yml")]
    );
    follow(&world, &adopt);
    world.is_settled();
    succeeded(&world.incus(1, &unset));
    follow(&world, &commands(&help(&world, "not-ours")));
    world.is_settled();
    // A machine that is no longer declared has the address of another one: it is that machine, or it goes.
    world.declare(&SEED.replace("{b}-dev", "{b}-new"));
    let text = help(&world, "address-in-use");
    let (delete, rename) = text.split_once("; or, ").unwrap();
    follow(&world, &commands(rename));
    world.is_settled();
    world.declare(SEED);
    let text = help(&world, "address-in-use");
    assert!(commands(delete)[0].contains("--machine"));
    let (delete, _) = text.split_once("; or, ").unwrap();
    follow(&world, &commands(delete));
    world.apply();
    world.is_settled();
    // Both machines that the file does not know are gone, and nothing else.
    assert!(
        !world
            .incus(1, &["info", &world.machine(1, "new")])
            .status
            .success()
    );
    // A copy that has the address of a machine that is gone gives it up.
    let dev = world.machine(1, "dev");
    succeeded(&world.incus(1, &["copy", &dev, "copy"]));
    succeeded(&world.incus(1, &["delete", "--force", &dev]));
    let text = help(&world, "address-in-use");
    let (_, copy) = text.split_once("if it is a copy: ").unwrap();
    follow(&world, &commands(copy));
    world.apply();
    world.is_settled();
    succeeded(&world.incus(1, &["delete", "copy"]));
    // A profile with a device in anklume's folder.
    let connect = "connect=unix:/var/lib/anklume/mcp/x.sock";
    let device = ["proxy", "bind=instance", "listen=unix:/x", connect];
    let add = ["profile", "device", "add", "default", "p"];
    succeeded(&world.incus(1, &[&add[..], &device].concat()));
    follow(&world, &commands(&help(&world, "proxy-into-channels")));
    world.is_settled();
}

#[test]
fn folders_of_the_host_are_made_and_closed_by_the_commands_of_the_help() {
    let mut world = World::new("");
    let with = |device: &str| {
        "domains: {{a}: {subnet_id: 1, ephemeral: true, machines: {{a}-one: {devices: {d: {type: disk, path: /d, DEVICE}}}}}}\n"
            .replace("DEVICE", device)
    };
    world.declare(&with("source: {folder}/in/deep, readonly: true"));
    follow(&world, &commands(&help(&world, "no-source"))[..1]);
    world.apply();
    world.is_settled();
    // Every user could reach what the machine writes there as root.
    let parent = world.filled("{folder}/in");
    for folder in [
        &parent,
        &world.filled("{folder}/in/deep"),
        &world.filled("{folder}"),
    ] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder, open).unwrap();
    }
    // A folder above that every user may replace.
    let deep = with("source: {folder}/in/deep, shift: \"true\"");
    let replaceable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&parent, replaceable).unwrap();
    world.declare(&deep);
    let shuts = commands(&help(&world, "open-share"));
    assert_eq!(shuts[0], format!("chmod go-w {parent}"));
    follow(&world, &shuts[..1]);
    let closes = commands(&help(&world, "open-share"));
    assert_eq!(closes[0], format!("chmod 0700 {parent}"));
    follow(&world, &closes[..1]);
    world.apply();
    world.is_settled();
    // Nothing may be closed above a folder at the top: it moves.
    let top = format!("/anklume-test-{}", std::process::id());
    std::fs::create_dir_all(format!("{top}/data")).unwrap();
    let text = |source: &str| with(&format!("source: {source}, shift: \"true\""));
    world.declare(&text(&format!("{top}/data")));
    let moves = commands(&help(&world, "open-share"));
    follow(&world, &moves);
    world.declare(&text(&format!("{top}/shared/data")));
    world.apply();
    world.is_settled();
    assert_eq!(world.run(&["destroy", "--yes"]).status, 0);
    std::fs::remove_dir_all(&top).unwrap();
}

#[test]
fn a_bridge_of_another_kind_is_shown_by_the_command_of_the_help() {
    let world = World::new(SEED);
    let net = world.filled("net-{a}");
    let add = ["link", "add", &net, "type", "veth"];
    let made = std::process::Command::new("ip").args(add).status();
    assert!(made.unwrap().success());
    follow(&world, &commands(&help(&world, "bridge-name")));
    let delete = ["link", "delete", &net];
    let gone = std::process::Command::new("ip").args(delete).status();
    assert!(gone.unwrap().success());
    world.apply();
}

#[test]
fn the_commands_of_notes_delete_what_they_name_and_nothing_else() {
    let mut world = World::new(SEED);
    world.apply();
    // Another image: the command of the note empties this machine, and says so.
    let images = incus(["image", "list", "bb", "-c", "f", "-f", "csv"]);
    let image = String::from_utf8(images.stdout).unwrap();
    succeeded(&incus(["image", "alias", "create", "other", image.trim()]));
    world.declare(&SEED.replace(
        "ip: \"{base}.2.10\"",
        "ip: \"{base}.2.10\"\n        os_image: other",
    ));
    let rebuild = note(&world.run(&["apply"]), "`, `incus rebuild ");
    assert!(rebuild.contains("to lose everything in it"), "{rebuild}");
    assert!(
        world.exec(0, "signer", "touch /root/kept").0 && world.exec(1, "dev", "touch /root/lost").0
    );
    follow(&world, &commands(&rebuild)[..]);
    assert!(world.exec(0, "signer", "test -e /root/kept").0);
    assert!(world.exec(1, "dev", "test ! -e /root/lost").0);
    // A machine and a domain that are no longer declared.
    let (signer, dev) = (world.machine(0, "signer"), world.machine(1, "dev"));
    let alone = pair("ephemeral: true", "name: sign, tool: gpg_sign");
    let text = alone.split("  {b}:").next().unwrap();
    world.declare(&text.replace("consumers: [{b}-dev]", "consumers: []"));
    let ran = world.run(&["apply"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let machine = note(&ran, &format!("the machine `{dev}`"));
    follow(&world, &commands(&machine));
    assert!(!world.incus(1, &["info", &dev]).status.success());
    assert!(world.is_there(1) && world.exec(0, "signer", "test -e /root/kept").0);
    let domain = note(
        &world.run(&["apply"]),
        &format!("the domain `{}`", world.domains[1]),
    );
    follow(&world, &commands(&domain));
    assert!(!world.is_there(1));
    assert!(world.incus(0, &["info", &signer]).status.success());
    // A machine that is protected is deleted by the command too.
    world.declare(SEED);
    world.apply();
    world.declare(
        &SEED
            .replace("{a}-signer", "{a}-other")
            .replace(".1.10", ".1.11"),
    );
    let ran = world.run(&["apply"]);
    let protected = note(&ran, &format!("the machine `{signer}`"));
    follow(&world, &commands(&protected));
    assert!(!world.incus(0, &["info", &signer]).status.success());
}

#[test]
fn a_machine_that_is_paused_or_stopped_runs_by_the_command_of_doctor() {
    let world = World::new(SEED);
    world.apply();
    let dev = world.machine(1, "dev");
    for way in [&["pause"][..], &["stop", "--force"]] {
        let words: Vec<&str> = way[..1]
            .iter()
            .copied()
            .chain([&*dev])
            .chain(way[1..].iter().copied())
            .collect();
        succeeded(&world.incus(1, &words));
        succeeded(&world.incus(1, &["config", "set", &dev, "boot.autostart=false"]));
        let ran = world.run(&["doctor"]);
        let fix = ran
            .stdout
            .lines()
            .find_map(|line| line.trim().strip_prefix("fix: "));
        follow(&world, &[fix.unwrap().to_owned()]);
        assert!(world.exec(1, "dev", "true").0);
        world.apply();
    }
    world.is_settled();
}
