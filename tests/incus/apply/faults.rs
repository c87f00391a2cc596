//! Obstacles are reported before anything is changed, with a message that says what to do.

use crate::project::incus;
use crate::recorder::{Fate, Recorder};
use crate::world::World;

use super::plan::SEED;

/// Asserts that the run is refused with this first line and this help, without any write request.
#[track_caller]
fn is_refused(world: &World, args: &[&str], message: &str, help: &str) {
    let recorder = Recorder::new(|_, _| Fate::Pass);
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let ran = world
        .anklume(&[&["apply"], args].concat())
        .env("INCUS_SOCKET", socket)
        .run();
    let (message, help) = (world.filled(message), world.filled(help));
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
    assert!(ran.stderr.contains(&message), "{}\n{message}", ran.stderr);
    assert!(ran.stderr.contains(&help), "{}\n{help}", ran.stderr);
    assert_eq!(recorder.writes(), Vec::<String>::new());
}

#[test]
fn an_image_that_is_not_there() {
    let local = World::new(&SEED.replace("boot_autostart: true", "os_image: nowhere"));
    let message = "error[no-image]: the image `nowhere` of `{b}-dev` does not exist";
    is_refused(&local, &[], message, "help: available: bb");
    let remote = World::new(&SEED.replace("boot_autostart: true", "os_image: no-remote:x"));
    let message = "the image `no-remote:x` of `{b}-dev` cannot be found: the remote `no-remote` does not exist";
    is_refused(&remote, &[], message, "`incus remote list`");
}

#[test]
fn a_virtual_machine_as_an_end() {
    let world = World::new(&SEED.replace("boot_autostart: true", "type: vm"));
    let message = "`{b}-dev` is a virtual machine, so it cannot offer or call services";
    is_refused(&world, &[], message, "make it a container");
}

#[test]
fn a_name_that_is_taken_and_its_adoption() {
    let world = World::new(SEED);
    let features = ["features.images=false", "features.networks=false"];
    let mut create = vec!["project", "create", &world.domains[1]];
    for feature in features {
        create.extend(["-c", feature]);
    }
    assert!(incus(create).status.success());
    let dev = world.machine(1, "dev");
    let root = [
        "create",
        "-q",
        "bb",
        &dev,
        "-s",
        "default",
        "-c",
        "user.mine=1",
    ];
    assert!(world.incus(1, &root).status.success());
    let project = "the project `{b}` already exists in Incus and was not created by anklume";
    is_refused(
        &world,
        &[],
        project,
        "`anklume apply --adopt {b}` takes it over",
    );
    let machine = "the machine `{b}-dev` already exists in Incus and was not created by anklume";
    let domain = world.domains[1].clone();
    is_refused(
        &world,
        &["--adopt", &domain],
        machine,
        "`anklume apply --adopt {b}-dev` takes it over",
    );
    let unknown = "`nobody` is neither a machine nor a domain in this file";
    is_refused(&world, &["--adopt", "nobody"], unknown, "declare it first");
    let ran = world.run(&["apply", "--adopt", &domain, "--adopt", &dev]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(world.config(1, "dev", "user.mine"), "1");
    assert_eq!(world.config(1, "dev", "limits.memory"), "1GiB");
    world.is_settled();
}

#[test]
fn a_project_with_other_features() {
    let world = World::new(SEED);
    let create = [
        "project",
        "create",
        &world.domains[0],
        "-c",
        "features.images=true",
    ];
    assert!(incus(create).status.success());
    let message = "error[project-features]: the project `{a}` in Incus has `features.images=true`";
    is_refused(
        &world,
        &["--adopt", &world.domains[0]],
        message,
        "give the domain another name",
    );
    assert!(
        incus(["project", "delete", &world.domains[0]])
            .status
            .success()
    );
}

#[test]
fn another_infrastructure_of_the_same_names_or_another_machine_of_the_address() {
    let mut world = World::new(SEED);
    world.apply();
    let own = std::mem::replace(&mut world.name, "t-apply-second".to_owned());
    world.declare(SEED);
    let message = format!(
        "the domains of this file belong to the infrastructure `{own}` in Incus, but this file is `t-apply-second`"
    );
    is_refused(
        &world,
        &["--adopt", &world.domains[0]],
        &message,
        &format!("write `project_name: {own}` in it"),
    );
    world.name = own;
    world.declare(SEED);
    world.is_settled();
    world.declare(&SEED.replace("{b}-dev", "{b}-new"));
    let message = "the address {base}.2.10 of `{b}-new` belongs to the machine `{b}-dev` (project `{b}`) in Incus";
    is_refused(
        &world,
        &[],
        message,
        "`anklume destroy --domain {b} --machine {b}-dev`",
    );
}

/// Creates a bridge; retries, because Incus fails if another machine removes its interface at the same time.
#[track_caller]
fn network(name: &str, address: &str) {
    let create = ["network", "create", name, address, "ipv6.address=none"];
    let made = (0..5).any(|_| incus(create).status.success());
    assert!(made);
}

#[test]
fn a_bridge_and_a_subnet_that_are_taken() {
    let world = World::new(SEED);
    let subnet = world.filled("ipv4.address={base}.1.1/24");
    let net = format!("t-n{}", std::process::id());
    network(&net, &subnet);
    let message = format!(
        "the subnet of `{{a}}`, {{base}}.1.0/24, overlaps with that of the network `{net}`"
    );
    is_refused(&world, &[], &message, "choose another `subnet_id`");
    incus(["network", "delete", &net]);
    let net = world.filled("net-{a}");
    network(&net, "ipv4.address=none");
    let message = "the network `net-{a}` already exists in Incus and was not created by anklume";
    is_refused(
        &world,
        &[],
        message,
        "`anklume apply --adopt {a}` takes it over",
    );
}

#[test]
fn what_the_file_itself_says_wrong() {
    let world = World::new(&SEED.replace("{base}.2.10", "{base}.1.10"));
    is_refused(&world, &[], "`{base}.1.10`", "subnet");
    let two = SEED.replace("  {b}:\n", "      {a}-two: {ip: \"{base}.1.10\"}\n  {b}:\n");
    is_refused(
        &World::new(&two),
        &[],
        "error[duplicate-address]",
        "{base}.1.10",
    );
    let long = SEED.replace("  {b}:\n", "  much-too-long:\n    subnet_id: 9\n  {b}:\n");
    is_refused(&World::new(&long), &[], "much-too-long", "15");
}

#[test]
fn no_incus_no_permission_and_one_that_is_too_old() {
    let world = World::new(SEED);
    let apply = |socket: &str| world.anklume(&["apply"]).env("INCUS_SOCKET", socket).run();
    let none = apply("/nowhere/unix.socket");
    none.is(
        1,
        "",
        "error: Incus is not running on this computer (no socket at `/nowhere/unix.socket`)\n  = help: start Incus, or install it (Debian: `apt install incus`)\n",
    );
    let environment = r#"{"metadata":{"auth":"trusted","api_extensions":[],"environment":{"server_version":"5.21.3"}}}"#;
    let old = Recorder::new(|_, _| Fate::Answer(200, environment.to_owned()));
    let ran = apply(old.socket().to_str().unwrap());
    assert!(
        ran.stderr.starts_with("error: Incus 5.21.3 is too old"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("help: upgrade it"), "{}", ran.stderr);
    let untrusted = r#"{"metadata":{"auth":"untrusted"}}"#;
    let closed = Recorder::new(|_, _| Fate::Answer(200, untrusted.to_owned()));
    let ran = apply(closed.socket().to_str().unwrap());
    assert!(
        ran.stderr.starts_with("error: no permission to use Incus"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("incus-admin"), "{}", ran.stderr);
    assert_eq!(
        (old.writes().len(), closed.writes().len(), ran.status),
        (0, 0, 1)
    );
}
