//! Faults inside the machines: in the program, the server, the services or the supervision.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{PAIR, Patient};
use crate::debian::{Init, debian};
use crate::processes::{kill, signal};

/// Maximum time for a server to notice that one of its sockets is gone, or that its callers have disconnected.
const BACK: Duration = Duration::from_secs(30);

impl Patient {
    /// Waits until the fault disappears by itself.
    #[track_caller]
    fn comes_back(&self, otherwise: &str) {
        let began = Instant::now();
        while self.examined().0 != 0 {
            assert!(began.elapsed() < BACK, "{otherwise}");
        }
    }
}

#[test]
fn the_server_and_its_services_are_looked_at() {
    let patient = Patient::new();
    a_server_that_does_not_answer_is_named_and_answers_again(&patient);
    services_that_are_not_the_declared_ones_are_named_and_put_right(&patient);
    a_consumer_that_holds_all_its_connections_is_told_from_a_server_that_is_silent(&patient);
    what_a_consumer_says_is_only_its_word_and_a_new_channel_is_asked_until_it_answers(&patient);
}

fn a_server_that_does_not_answer_is_named_and_answers_again(patient: &Patient) {
    let (_, answer) = patient.examined();
    let note = answer["edges"][0]["notes"][0].as_str().unwrap();
    let alone = format!(
        "{} has neither systemd nor OpenRC: only `anklume apply` restarts its server",
        patient.signer()
    );
    assert_eq!(note, alone);
    kill(patient.server());
    patient.recovers("server", "the server of {signer} does not answer");
    signal(patient.server(), Signal::STOP);
    patient.recovers("server", "the server of {signer} does not answer");
    // A removed socket comes back by itself.
    patient.exec(0, "signer", "rm /run/anklume/mcp/*.sock");
    patient.comes_back("the socket does not come back");
}

fn a_consumer_that_holds_all_its_connections_is_told_from_a_server_that_is_silent(
    patient: &Patient,
) {
    let server = patient.server();
    let entry = format!(
        "/proc/{}/root/srv/anklume/mcp/{}.sock",
        patient.world.first(1, "dev"),
        patient.signer()
    );
    let hold = |_| std::os::unix::net::UnixStream::connect(&entry).unwrap();
    let sockets: Vec<_> = (0..anklume::limits::CONNECTIONS).map(hold).collect();
    let restart = patient.ails("busy", "all the connections that {dev} may have are in use");
    let dev = patient.dev();
    let project = &patient.world.domains[1];
    assert_eq!(restart, format!("incus restart {dev} --project {project}"));
    let (status, answer) = patient.world.apply_json();
    assert_eq!((status, &answer["changed"]), (0, &0.into()), "{answer:#}");
    let note = format!("{dev} → {} could not be tested: ", patient.signer());
    assert!(answer["notes"].to_string().contains(&note), "{answer:#}");
    assert_eq!(patient.server(), server);
    drop(sockets);
    patient.comes_back("the connections are not given back");
}

fn services_that_are_not_the_declared_ones_are_named_and_put_right(patient: &Patient) {
    let file = "/etc/anklume/services.json";
    let changed = "the services file of {signer} differs from the declared one";
    // A different tool, a different consumer, an invalid file, and no file.
    patient.exec(
        0,
        "signer",
        &format!("sed -i s/gpg_sign/clipboard_get/ {file}"),
    );
    patient.recovers("policy", changed);
    let dev = patient.dev();
    patient.exec(0, "signer", &format!("sed -i s/{dev}/nobody/g {file}"));
    patient.recovers("policy", changed);
    patient.exec(0, "signer", &format!("echo broken > {file}"));
    patient.recovers("policy", changed);
    patient.exec(0, "signer", &format!("rm {file}"));
    patient.recovers("policy", "the services file is gone from {signer}");
}

#[test]
fn a_program_that_is_gone_or_another_one_is_named_and_put_right() {
    let patient = Patient::new();
    for (domain, name) in [(0, "signer"), (1, "dev")] {
        let machine = patient.world.machine(domain, name);
        let gone = format!("`/opt/anklume/anklume` is gone from {machine}");
        patient.exec(domain, name, "rm /opt/anklume/anklume");
        patient.recovers("program", &gone);
        patient.exec(domain, name, "rm -r /opt/anklume");
        patient.recovers("program", &gone);
        let other = "rm /opt/anklume/anklume; printf '#!/bin/sh\\nexit 0\\n' > /opt/anklume/anklume; chmod 755 /opt/anklume/anklume";
        patient.exec(domain, name, other);
        let another = format!("`/opt/anklume/anklume` in {machine} differs from this program");
        patient.recovers("program", &another);
        patient.exec(domain, name, "chmod 644 /opt/anklume/anklume");
        let rights =
            format!("`/opt/anklume/anklume` in {machine} is not owned by root with mode 0755");
        patient.recovers("program", &rights);
        patient.exec(domain, name, "rm /usr/local/bin/anklume");
        let link = format!(
            "the name of {machine} or the link to its program differs from what `apply` set"
        );
        patient.recovers("program", &link);
    }
}

#[test]
fn rights_that_keep_the_caller_out_are_named_and_put_right() {
    let patient = Patient::new();
    let own = "no longer has the owner and mode that `apply` set";
    patient.exec(1, "dev", "chmod 700 /srv");
    patient.recovers(
        "folder",
        "`/srv` in {dev} is not accessible to the user who may call from there",
    );
    // Nothing else that belongs to the machine changes.
    patient.exec(1, "dev", "test $(stat -c %a:%u /srv) = 711:0");
    let all = "chmod 700 /opt /opt/anklume /srv/anklume /srv; chown 7:7 /srv/anklume/mcp; chmod 600 /etc/anklume/machine";
    patient.exec(1, "dev", all);
    patient.recovers(
        "program",
        &format!("`/etc/anklume/machine` in {{dev}} {own}"),
    );
    patient.exec(0, "signer", "chmod 600 /etc/anklume/services.json");
    patient.recovers(
        "program",
        &format!("`/etc/anklume/services.json` in {{signer}} {own}"),
    );
    // If others may change a pushed file before it runs, nothing is pushed.
    patient.exec(1, "dev", "chown 1000 /opt/anklume");
    let fix = patient.ails("program", &format!("`/opt/anklume` in {{dev}} {own}"));
    let (status, answer) = patient.world.apply_json();
    assert_eq!(status, 1, "{answer:#}");
    let mut commands: Vec<&str> = fix.split("; ").collect();
    assert_eq!(commands.pop(), Some("anklume apply"));
    for command in commands {
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let ran = crate::project::incus(words);
        assert!(ran.status.success(), "{command}: {ran:?}");
    }
    patient.is_mended();
}

fn what_a_consumer_says_is_only_its_word_and_a_new_channel_is_asked_until_it_answers(
    patient: &Patient,
) {
    // All of anklume's files are in order, but the user who may call cannot reach them.
    patient.exec(1, "dev", "chmod 700 /");
    let (status, answer) = patient.examined();
    assert_eq!(status, 1, "{answer:#}");
    assert_eq!(answer["edges"][0]["broken"]["what"], "server", "{answer:#}");
    // A channel created now does not answer, and every later run remembers this.
    let dev = patient.dev();
    let removed = ["config", "device", "remove", &dev, &patient.device];
    patient.incus(1, &removed);
    let unanswered = || {
        let (status, answer) = patient.world.apply_json();
        let last = answer["actions"].as_array().unwrap().last();
        let last = last.map(|action| (action["verb"].as_str(), action["status"].as_str()));
        assert_eq!(
            (status, last),
            (1, Some((Some("prove"), Some("failed")))),
            "{answer:#}"
        );
        answer["writes"].as_u64().unwrap()
    };
    assert!(unanswered() > 0);
    let signer = patient.signer();
    let again = format!("~ channel {dev} → {signer}: no answer yet → tried again");
    assert_eq!(patient.world.plan(), [again]);
    // Testing the channel again sends Incus no write request.
    assert_eq!(unanswered(), 0);
    patient.exec(1, "dev", "chmod 755 /");
    patient.is_mended();
}

/// Tests a provider with a supervisor whose unit or script, at this path, is first removed and then changed.
fn is_supervised(init: Init, file: &str) {
    let image = debian(init);
    let machine = format!("{{a}}-signer:\n        os_image: {image}");
    let patient = Patient::of(&PAIR.replace("{a}-signer:", &machine), |world| {
        assert!(world.exec(0, "signer", init.up()).0);
    });
    let (_, answer) = patient.examined();
    assert_eq!(answer["edges"][0]["notes"], serde_json::json!([]));
    let named = "the unit or script that starts the server of {signer} is missing or changed";
    patient.exec(0, "signer", &format!("rm {file}"));
    patient.recovers("supervision", named);
    patient.exec(0, "signer", &format!("echo '# mine' >> {file}"));
    patient.recovers("supervision", named);
    // The supervisor restarts the server after a crash; if the server hangs, `apply` must.
    signal(patient.server(), Signal::STOP);
    patient.recovers("server", "the server of {signer} does not answer");
    let signer = patient.signer();
    patient.incus(0, &["stop", &signer, "--timeout=60"]);
    let start = format!(
        "incus start {signer} --project {}",
        patient.world.domains[0]
    );
    assert_eq!(patient.ails("machine", "{signer} is stopped"), start);
    patient.incus(0, &["start", &signer]);
    patient.exec(0, "signer", init.up());
    patient.is_mended();
}

#[test]
#[ignore = "long"]
fn a_unit_of_systemd_that_is_missing_or_changed_is_named_and_put_right() {
    is_supervised(Init::Systemd, "/etc/systemd/system/anklume-mcp.service");
}

#[test]
#[ignore = "long"]
fn a_script_of_openrc_that_is_missing_or_changed_is_named_and_put_right() {
    is_supervised(Init::OpenRc, "/etc/init.d/anklume-mcp");
}

#[test]
fn a_server_that_cannot_write_its_log_is_named_until_it_can() {
    let patient = Patient::new();
    let call = format!(
        "anklume mcp call -i {} push path=a data:='\"aGk=\"' 2>&1",
        patient.signer()
    );
    let full = "mount -t tmpfs -o size=4k none /var/log/anklume && echo x >/var/log/anklume/full";
    patient.exec(0, "signer", full);
    let (done, said) = patient.world.exec(1, "dev", &call);
    assert!(!done && said.contains("cannot write its log"), "{said}");
    let told = |what: &str| {
        let status = "/run/anklume/mcp/.status.json";
        patient.exec(
            0,
            "signer",
            &format!("until grep -q '\"unlogged\":{what}' {status}; do :; done"),
        );
    };
    told("\"");
    let fix = patient.ails(
        "audit",
        "the server of {signer} cannot write its audit log, so it refuses every call; it reports: ",
    );
    let looked = Command::new("sh").args(["-c", &fix]).output().unwrap();
    let looked = String::from_utf8_lossy(&looked.stdout).into_owned();
    assert!(looked.contains("100%"), "{looked}");
    patient.exec(0, "signer", "umount -l /var/log/anklume");
    let (done, said) = patient.world.exec(1, "dev", &call);
    assert!(done, "{said}");
    told("null");
    patient.is_well();
}

#[test]
fn a_log_of_calls_that_was_written_anew_is_named_until_it_is_accepted() {
    let patient = Patient::new();
    let log = "/var/log/anklume/audit.jsonl";
    // The log continues across a call and a server restart.
    let call = format!(
        "anklume mcp call -i {} push path=a data:='\"aGk=\"'",
        patient.signer()
    );
    patient.exec(1, "dev", &call);
    patient.is_well();
    kill(patient.server());
    patient.is_mended();
    for (harm, said) in [
        (
            format!("sed -i '$d' {log}"),
            "was truncated, rewritten, or restored from a snapshot",
        ),
        (
            format!("sed -i s/push/pull/ {log}"),
            "was altered; faults found: ",
        ),
        (format!("rm {log}"), "is gone: it had "),
        // More than is ever read from one file.
        (
            format!("truncate -s 40M {log}"),
            "no longer shows its last known line ",
        ),
    ] {
        patient.exec(0, "signer", &harm);
        let accept = patient.ails("audit", &format!("the audit log on {{signer}} {said}"));
        // `apply` reports it too, but does not fix it: the lines are lost.
        let (status, answer) = patient.world.apply_json();
        assert_eq!(status, 0, "{answer:#}");
        let notes = answer["notes"].to_string();
        assert!(notes.contains(said), "{notes}");
        patient.ails("audit", said);
        let (_, path) = accept.rsplit_once("rm ").unwrap();
        assert_eq!(
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let accepted = Command::new("sh").args(["-c", &accept]).status().unwrap();
        assert!(accepted.success(), "{accept}");
        if said.starts_with("no longer") {
            // This log is too large to read: the command only forgets the record, and the log itself stays.
            patient.exec(0, "signer", &format!("rm {log}"));
        }
        patient.exec(
            1,
            "dev",
            &call.replace("path=a", &format!("path={}", said.len())),
        );
        patient.is_well();
    }
    // Nothing is kept for a deleted machine.
    let kept = || {
        let files = std::fs::read_dir("/var/lib/anklume/audit").unwrap();
        let texts = files.filter_map(|file| std::fs::read(file.ok()?.path()).ok());
        texts
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .filter(|text| text.contains(&format!("\"{}\"", patient.signer())))
            .count()
    };
    assert_eq!(kept(), 1);
    let destroyed = patient.world.run(&["destroy", "--yes", "--force"]);
    assert_eq!((destroyed.status, kept()), (0, 0), "{destroyed:?}");
}
