//! Output without a channel, without Incus, without permission and without a file; nothing is changed.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use super::{PAIR, Patient};
use crate::harness::{Anklume, copy_of_anklume};
use crate::recorder::{Fate, Recorder};
use crate::world::World;

#[test]
fn what_there_is_to_say_without_a_channel_is_said() {
    let mut world = World::new(PAIR);
    let ran = world.run(&["doctor"]);
    assert_eq!(ran.status, 1, "{ran:?}");
    let expected = format!(
        "pending {dev} → {signer}  not applied yet: {dev} is not in Incus (project {project})\n\
         not applied yet; `anklume apply` makes these changes:\n  + {dev} may call {signer}/push\n  \
         + {dev} may call {signer}/sign\n0 ok, 1 not applied yet\n",
        dev = world.machine(1, "dev"),
        signer = world.machine(0, "signer"),
        project = world.domains[1]
    );
    assert_eq!(ran.stdout, expected);
    let ran = world.run(&["doctor", "ghost"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(
        ran.stderr.contains("`ghost` is not a machine in this file"),
        "{}",
        ran.stderr
    );
    let nearly = world.machine(1, "def");
    let ran = world.run(&["doctor", &nearly]);
    assert!(ran.stderr.contains("did you mean"), "{}", ran.stderr);

    world.declare(&PAIR.replace("consumers: [{b}-dev]", "consumers: []"));
    let ran = world.run(&["doctor"]);
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (
            0,
            "no channels: no machine in this file offers a service to another\n"
        )
    );
    let ran = world.run(&["doctor", "--format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        answer,
        serde_json::json!({"ok": true, "edges": [], "others": [], "not_applied": [], "not_applied_lines": [], "notes": []})
    );
    let dev = world.machine(1, "dev");
    let ran = world.run(&["doctor", &dev]);
    assert_eq!(ran.stdout, format!("no channels for {dev}\n"));
}

#[test]
fn what_was_edited_and_not_applied_yet_is_not_called_broken() {
    let mut patient = Patient::new();
    let (dev, signer) = (patient.dev(), patient.signer());
    let doctor = |patient: &Patient| {
        let ran = patient.world.run(&["doctor"]);
        // The time differs from run to run.
        let lines = ran.stdout.lines().filter(|line| !line.contains("note: "));
        let lines = lines.map(|line| {
            let timed = line
                .strip_prefix("ok ")
                .map(|_| line.rsplitn(3, ' ').last().unwrap());
            timed.unwrap_or(line).trim_end().to_owned()
        });
        (ran.status, lines.collect::<Vec<_>>())
    };
    let works = format!("ok      {dev} → {signer}");
    let pending = "not applied yet; `anklume apply` makes these changes:".to_owned();
    assert_eq!(
        doctor(&patient),
        (0, vec![works.clone(), "1 ok".to_owned()])
    );
    // A channel that somebody made by hand is a fault: the file that was applied does not declare it.
    let device = "mcp_0123456789abcdef";
    let (listen, connect) = (
        "listen=unix:/srv/anklume/mcp/other.sock",
        "connect=unix:/var/lib/anklume/mcp/0123456789abcdef.sock",
    );
    let add = ["config", "device", "add", &dev, device, "proxy"];
    patient.incus(1, &[&add[..], &["bind=instance", listen, connect]].concat());
    let (status, lines) = doctor(&patient);
    let fault = format!("broken  Incus differs from infra.yml: - {dev} may no longer call other");
    assert_eq!((status, lines[1].as_str()), (1, fault.as_str()));
    patient.world.apply();
    // A service is granted to another machine, and the limits of a third service change: the old channel works.
    let more = PAIR
        .replace(
            "      {b}-dev: {ip",
            "      {b}-web: {}\n      {b}-dev: {ip",
        )
        .replace(
            "file_accept, consumers: [",
            "file_accept, consumers: [{b}-web, ",
        );
    patient.world.declare(&more);
    let web = patient.world.machine(1, "web");
    let project = &patient.world.domains[1];
    assert_eq!(
        doctor(&patient),
        (
            1,
            vec![
                works.clone(),
                format!(
                    "pending {web} → {signer}  not applied yet: {web} is not in Incus (project {project})"
                ),
                pending.clone(),
                format!("  + {web} may call {signer}/push"),
                "1 ok, 1 not applied yet".to_owned(),
            ]
        )
    );
    // A revocation that was not applied is named, although nothing is broken.
    patient
        .world
        .declare(&PAIR.replace("gpg_sign, consumers: [{b}-dev]", "gpg_sign"));
    let (status, lines) = doctor(&patient);
    assert_eq!(status, 1, "{lines:#?}");
    let revoked = format!("  - {dev} may no longer call {signer}/sign");
    assert!(
        lines[0].starts_with("pending ") && lines.contains(&revoked),
        "{lines:#?}"
    );
    patient.world.declare(&PAIR.replace("[{b}-dev]", "[]"));
    let (status, lines) = doctor(&patient);
    let expected = [
        pending,
        format!("  - {dev} may no longer call {signer}/push"),
        revoked,
        "no channels: no machine in this file offers a service to another".to_owned(),
    ];
    assert_eq!((status, lines.as_slice()), (0, &expected[..]));
    patient.world.apply();
    assert_eq!(doctor(&patient).1, expected[3..]);
    // What was applied and differs afterwards is broken.
    patient.world.declare(PAIR);
    patient.world.apply();
    let signing = "sed -i s/sign/sigh/ /etc/anklume/services.json";
    patient.exec(0, "signer", signing);
    let (status, lines) = doctor(&patient);
    assert_eq!(status, 1);
    assert!(lines[0].starts_with("broken  "), "{lines:#?}");
    patient.is_mended();
    // What was deleted on request awaits another run; the rest of the file does not count as altered by somebody.
    let destroyed = patient.world.run(&["destroy", "--machine", &dev, "--yes"]);
    assert_eq!(destroyed.status, 0, "{destroyed:?}");
    let (status, lines) = doctor(&patient);
    assert!(lines[0].starts_with("pending "), "{lines:#?}");
    assert!(
        !lines.iter().any(|line| line.starts_with("broken")),
        "{lines:#?}"
    );
    assert_eq!(status, 1);
}

#[test]
fn without_incus_rights_or_a_file_that_is_said() {
    let world = World::new(PAIR);
    let none = world
        .anklume(&["doctor"])
        .env("INCUS_SOCKET", "/nowhere/unix.socket");
    none.run().is(
        1,
        "",
        "error: Incus is not running on this computer (no socket at `/nowhere/unix.socket`)\n  = help: start Incus, or install it (Debian: `apt install incus`)\n",
    );
    let wrong = Anklume::new()
        .args(["doctor", "--infra", "nowhere.yml"])
        .run();
    assert_eq!((wrong.status, wrong.stdout.as_str()), (1, ""), "{wrong:?}");
    assert!(wrong.stderr.contains("nowhere.yml"), "{}", wrong.stderr);

    // A user who is neither root nor in Incus's group; the program must be in a folder where that user can run it.
    let folder = world.run(&["doctor"]).folder;
    let program = folder.path().join("program");
    copy_of_anklume(&program);
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    for command in ["apply", "doctor", "rotate-logs"] {
        let output = std::process::Command::new(&program)
            .arg(command)
            .current_dir(folder.path())
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        let (message, who) = match command {
            "rotate-logs" => ("only root may rotate Incus's logs", "root"),
            _ => (
                "no permission to talk to Incus (socket `/var/lib/incus/unix.socket`)",
                "a member of the group `incus-admin`",
            ),
        };
        assert!(
            stderr.starts_with(&format!("error: {message}\n")),
            "{stderr}"
        );
        assert!(stderr.contains(who), "{stderr}");
    }
}

#[test]
fn the_text_is_a_line_for_each_channel_and_nothing_is_changed() {
    let patient = Patient::new();
    let (dev, signer) = (patient.dev(), patient.signer());
    let ran = patient.world.run(&["doctor", &dev]);
    assert_eq!(ran.status, 0, "{ran:?}");
    let (first, notes) = ran.stdout.split_once('\n').unwrap();
    let took = first.strip_prefix(&format!("ok      {dev} → {signer}  "));
    let took = took.and_then(|took| took.strip_suffix(" ms"));
    assert!(took.unwrap().parse::<f64>().unwrap() > 0.0, "{first}");
    let note = format!(
        "        note: {signer} has neither systemd nor OpenRC: only `anklume apply --infra infra.yml` restarts its server\n"
    );
    let notes_of = |text: &str| text.strip_suffix("1 ok\n").unwrap().to_owned();
    assert_eq!(notes_of(notes), note.replace(" --infra infra.yml", ""));
    let ran = patient.world.run(&["doctor", "--infra", "infra.yml"]);
    assert!(notes_of(&ran.stdout).ends_with(&note), "{}", ran.stdout);
    // Without a fault, there is no error to print.
    let quiet = patient.world.run(&["doctor", "--quiet"]);
    quiet.is(0, "", "");

    patient.incus(0, &["stop", "--force", &signer]);
    let recorder = Recorder::new(|_, _| Fate::Pass);
    let socket = recorder.socket().to_str().unwrap().to_owned();
    let ran = patient
        .world
        .anklume(&["doctor"])
        .env("INCUS_SOCKET", socket)
        .run();
    assert_eq!(ran.status, 1, "{ran:?}");
    let broken =
        format!("broken  {dev} → {signer}  {signer} is stopped\n        fix: anklume apply\n");
    assert!(ran.stdout.starts_with(&broken), "{}", ran.stdout);
    assert_eq!(recorder.writes(), Vec::<String>::new());
}
