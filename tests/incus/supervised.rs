//! A provider with a supervisor: its server comes back after a crash and a restart, and a newer version replaces it.

use std::time::{Duration, Instant};

use crate::apply::inside::{apply_by, newer_version};
use crate::debian::{Init, debian};
use crate::processes::{kill, proxy};
use crate::world::{World, pair};

/// Maximum time for a server to come back after a crash or a restart.
const BACK: Duration = Duration::from_secs(60);

/// A signer with its own user, and a busybox consumer.
fn declared(image: &str, run_as: &str) -> String {
    let signer = format!("os_image: {image}, mcp: {{run_as: {run_as}}}");
    pair(&signer, "name: sign, tool: gpg_sign")
}

/// A user, a key without a passphrase, and a gpg that is slow while a test asks for it.
const SIGNER: &str = r#"useradd -m signer
su -s /bin/sh signer -c "gpg --batch --pinentry-mode loopback --passphrase '' --quick-gen-key signer@example.org ed25519 sign never" 2>/dev/null
printf '#!/bin/sh\n[ -e ~/.gnupg/slow ] && sleep 4\nexec /usr/bin/gpg "$@"\n' >/usr/local/bin/gpg
chmod 755 /usr/local/bin/gpg"#;

/// Calls the service from the consumer; returns whether a signature came back.
fn signs(world: &World) -> bool {
    let call = format!(
        "anklume mcp call -i {} sign data:='\"aGk=\"'",
        world.machine(0, "signer")
    );
    let (done, answer) = world.exec(1, "dev", &call);
    done && answer.starts_with("-----BEGIN PGP SIGNATURE-----")
}

/// Waits until a call returns a signature, without any intervention.
#[track_caller]
fn signs_again(world: &World) {
    let began = Instant::now();
    while !signs(world) {
        assert!(began.elapsed() < BACK, "the server does not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The server's process ID in the machine, and the user that it runs as.
fn server(world: &World) -> (String, String) {
    let (_, status) = world.exec(0, "signer", "anklume mcp status --format json");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let pid = status.get("pid").unwrap().to_string();
    let (_, user) = world.exec(0, "signer", &format!("stat -c %U /proc/{pid}"));
    (pid, user)
}

/// The running agents in the signer: the control group, the privilege setting and the process ID of each.
fn agents(world: &World) -> String {
    let asked = r#"for process in /proc/[0-9]*; do
        [ "$(cat $process/comm 2>/dev/null)" = gpg-agent ] || continue
        grep -m1 'name=systemd\|^0::' $process/cgroup; grep NoNewPrivs $process/status; echo $process
    done"#;
    let (found, said) = world.exec(0, "signer", asked);
    assert!(found, "{said}");
    said
}

/// The only agent in the signer: its process ID, its control group, and its privilege setting.
#[track_caller]
fn agent(world: &World) -> [String; 3] {
    let said = agents(world);
    let lines: Vec<&str> = said.lines().collect();
    let [group, privileges, number] = lines.try_into().unwrap();
    [number, group, privileges].map(str::to_owned)
}

/// `doctor` names a key that can certify, and no longer does once a subkey signs, as its note says.
fn keys_are_named(world: &World) {
    let doctor = || world.run(&["doctor"]).stderr;
    let said = doctor();
    let machine = world.machine(0, "signer");
    let note = format!("note: `{machine}/sign` signs with the key ");
    assert!(said.contains(&note), "{said}");
    let (_, rest) = said.split_once(&note).unwrap();
    assert!(rest.contains(", which can also certify keys; "), "{said}");
    let command = rest.split('`').nth(1).unwrap();
    let command = command.replacen(
        "gpg ",
        "gpg --batch --pinentry-mode loopback --passphrase '' ",
        1,
    );
    let command = format!("su -s /bin/sh signer -c \"{command}\" 2>&1");
    let (done, words) = world.exec(0, "signer", &command);
    assert!(done, "{words}");
    assert!(!doctor().contains(&note));
    assert!(signs(world));
}

/// The agent is outside the server's control group and limits, outlives the server, and comes back after being killed.
fn agent_is_apart(world: &World, init: Init) {
    let ended = "su -s /bin/sh signer -c 'gpgconf --kill gpg-agent'";
    // Stop the agent that was started when the key was created.
    assert!(world.exec(0, "signer", ended).0);
    assert!(signs(world));
    let [number, group, privileges] = agent(world);
    assert_eq!(privileges, "NoNewPrivs:\t0");
    if init == Init::Systemd {
        assert!(group.ends_with("/anklume-gpg-agent.service"), "{group}");
        let (pid, _) = server(world);
        let (_, server) = world.exec(
            0,
            "signer",
            &format!("grep -m1 'name=systemd\\|^0::' /proc/{pid}/cgroup"),
        );
        assert!(server.ends_with("/anklume-mcp.service\n"), "{server}");
    }
    for unit in ["anklume-mcp", "anklume-gpg-agent"] {
        assert!(world.exec(0, "signer", &init.restart(unit)).0);
        signs_again(world);
        assert_eq!(agent(world).first(), Some(&number), "{unit}");
    }
    assert!(world.exec(0, "signer", ended).0);
    assert!(signs(world));
    let [newer, again, privileges] = agent(world);
    assert_ne!(newer, number);
    assert_eq!((again, privileges.as_str()), (group, "NoNewPrivs:\t0"));
    // Without the launcher, the server starts no agent of its own.
    assert!(
        world
            .exec(
                0,
                "signer",
                &format!("{}; {ended}", init.stop("anklume-gpg-agent"))
            )
            .0
    );
    assert!(!signs(world));
    assert_eq!(agents(world), "");
    assert!(
        world
            .exec(0, "signer", &init.restart("anklume-gpg-agent"))
            .0
    );
    signs_again(world);
}

/// Tests the whole life of a supervised server; `file` is the file with which its supervisor starts it.
fn lives(init: Init, file: &str) {
    let image = debian(init);
    let mut world = World::new(&declared(image, "signer"));
    let (status, answer) = world.apply_json();
    assert_eq!(status, 1, "{answer:#}");
    assert!(
        answer
            .to_string()
            .contains("the user `signer` does not exist"),
        "{answer:#}"
    );
    assert!(world.exec(0, "signer", init.up()).0);
    let (made, words) = world.exec(0, "signer", SIGNER);
    assert!(made, "{words}");
    world.apply();
    assert!(signs(&world));
    keys_are_named(&world);
    agent_is_apart(&world, init);
    let (first, user) = server(&world);
    assert_eq!(user, "signer\n");
    world.is_settled();

    // A crash.
    assert!(world.exec(0, "signer", &format!("kill -9 {first}")).0);
    signs_again(&world);
    assert_ne!(server(&world).0, first);
    // Restarts of either end, without `apply` in between.
    for (domain, name) in [(0, "signer"), (1, "dev")] {
        let machine = world.machine(domain, name);
        let restarted = world.incus(domain, &["restart", &machine, "--timeout=60"]);
        assert!(restarted.status.success(), "{restarted:?}");
        signs_again(&world);
    }
    world.is_settled();
    // Remove the socket on the host, and then kill each proxy.
    let device = world.edge_devices(0, &world.machine(0, "signer")).concat();
    let socket = format!(
        "/var/lib/anklume/mcp/{}.sock",
        device.strip_prefix("mcp_").unwrap()
    );
    std::fs::remove_file(&socket).unwrap();
    assert!(!signs(&world));
    world.apply();
    assert!(signs(&world));
    for provider in [true, false] {
        kill(proxy(provider, &socket));
        assert!(!signs(&world));
        world.apply();
        assert!(signs(&world));
    }
    world.is_settled();

    // Install a newer version while a call is running.
    let (before, _) = server(&world);
    let (_folder, newer) = newer_version();
    assert!(world.exec(0, "signer", "touch /home/signer/.gnupg/slow").0);
    let (signed, applied) = std::thread::scope(|scope| {
        let signed = scope.spawn(|| signs(&world));
        let began = "for i in $(seq 100); do cat /proc/[0-9]*/cmdline 2>/dev/null | grep -q [l]ocal/bin/gpg && exit 0; sleep 0.1; done; exit 1";
        assert!(world.exec(0, "signer", began).0);
        let applied = apply_by(&world, &newer);
        (signed.join().unwrap(), applied)
    });
    assert!(applied.status.success(), "{applied:?}");
    assert!(signed, "the running call was lost");
    assert_ne!(server(&world).0, before);
    world.apply();

    // The supervisor's file is restored, changes with the user, and is removed with the last service.
    assert!(
        world
            .exec(
                0,
                "signer",
                &format!("rm /home/signer/.gnupg/slow; rm {file}")
            )
            .0
    );
    let lost = world.plan();
    let line = format!(
        "+ supervision of the server on {}",
        world.machine(0, "signer")
    );
    assert_eq!(lost, [line]);
    world.apply();
    world.declare(&declared(image, "root"));
    world.apply();
    assert_eq!(server(&world).1, "root\n");
    world.is_settled();
    let sign = "services: [{name: sign, tool: gpg_sign, consumers: [{b}-dev]}]";
    let none = declared(image, "root").replace(sign, "description: signs no more");
    assert_ne!(none, declared(image, "root"));
    world.declare(&none);
    world.apply();
    let (_, left) = world.exec(
        0,
        "signer",
        &format!("ls {file} /etc/anklume/services.json 2>/dev/null; anklume mcp status 2>&1"),
    );
    assert!(left.starts_with("error: no server is running"), "{left}");
    world.is_settled();
}

/// A provider with a program that prints its user and its control group, or waits.
fn with_program(image: &str) -> String {
    let tool = "who: {description: Who, command: [/bin/sh, -c, \"id -un; cat /proc/self/cgroup; sleep $1\", who, \"{wait}\"], \
        arguments: {wait: {type: integer}}, env_file: /etc/who.env}";
    let signer = format!("os_image: {image}, mcp: {{run_as: signer, tools: {{{tool}}}}}");
    pair(&signer, "name: who, tool: who")
}

/// Calls that program from the consumer.
fn who(world: &World, wait: u32) -> (bool, String) {
    let call = format!(
        "anklume mcp call -i {} who wait={wait} 2>&1",
        world.machine(0, "signer")
    );
    world.exec(1, "dev", &call)
}

/// A shell command that prints the processes in the machine whose command line matches this.
fn processes(words: &str) -> String {
    format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '{words}' && echo ${{p#/proc/}}; done"
    )
}

/// Runs the program for long, and this command in the machine once it runs; returns whether the call succeeded, and the
/// processes of the program that are left.
fn interrupted(world: &World, command: &str) -> (bool, String) {
    let sleeping = processes("^sleep 1234");
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| who(world, 1234).0);
        let began = Instant::now();
        while world.exec(0, "signer", &sleeping).1.is_empty() {
            assert!(began.elapsed() < BACK, "the program does not start");
        }
        assert!(world.exec(0, "signer", command).0);
        let answer = answer.join().unwrap();
        while !world.exec(0, "signer", &sleeping).1.is_empty() && began.elapsed() < BACK {}
        (answer, world.exec(0, "signer", &sleeping).1)
    })
}

/// Waits until the program runs again, without any intervention.
#[track_caller]
fn runs_again(world: &World) {
    let began = Instant::now();
    while !who(world, 0).0 {
        assert!(began.elapsed() < BACK, "the launcher does not come back");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Tests the life of a supervised launcher; `file` is the file with which its supervisor starts it.
fn programs_run(init: Init, file: &str) {
    let image = debian(init);
    let mut world = World::new(&with_program(image));
    assert_eq!(world.apply_json().0, 1);
    assert!(world.exec(0, "signer", init.up()).0);
    let user = "useradd -m signer && umask 077 && echo A=1 >/etc/who.env";
    assert!(world.exec(0, "signer", user).0);
    world.apply();
    let (done, said) = who(&world, 0);
    assert!(done && said.starts_with("signer\n"), "{said}");
    if init == Init::Systemd {
        assert!(said.contains("/anklume-run.service"), "{said}");
    }
    world.is_settled();
    let launcher = processes("^[^ ]*anklume program-launcher");
    let (_, first) = world.exec(0, "signer", &launcher);
    // A crash and a restart in the middle of a call end the program.
    let kill = format!("kill -9 {}", first.trim());
    assert_eq!(interrupted(&world, &kill), (false, String::new()));
    runs_again(&world);
    assert_ne!(world.exec(0, "signer", &launcher).1, first);
    let restart = init.restart("anklume-run");
    assert_eq!(interrupted(&world, &restart), (false, String::new()));
    runs_again(&world);
    let machine = world.machine(0, "signer");
    let restarted = world.incus(0, &["restart", &machine, "--timeout=60"]);
    assert!(restarted.status.success(), "{restarted:?}");
    runs_again(&world);
    world.is_settled();
    // The launcher's file is restored, and goes with the last service that uses a program.
    assert!(world.exec(0, "signer", &format!("rm {file}")).0);
    let line = format!("+ supervision of the server on {machine}");
    assert_eq!(world.plan(), [line]);
    world.apply();
    runs_again(&world);
    world.declare(&declared(image, "signer"));
    world.apply();
    let (_, left) = world.exec(0, "signer", &format!("ls {file} 2>/dev/null; {launcher}"));
    assert_eq!(left, "");
    world.is_settled();
}

#[test]
#[ignore = "long"]
fn systemd_runs_a_machine_s_programs() {
    programs_run(Init::Systemd, "/etc/systemd/system/anklume-run.service");
}

#[test]
#[ignore = "long"]
fn openrc_runs_a_machine_s_programs() {
    programs_run(Init::OpenRc, "/etc/init.d/anklume-run");
}

#[test]
#[ignore = "long"]
fn systemd_keeps_the_server_running() {
    lives(Init::Systemd, "/etc/systemd/system/anklume-mcp.service");
}

#[test]
#[ignore = "long"]
fn openrc_keeps_the_server_running() {
    lives(Init::OpenRc, "/etc/init.d/anklume-mcp");
}
