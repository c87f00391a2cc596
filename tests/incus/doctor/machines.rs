//! Machines that are stopped or missing, or have lost their contents.

use super::Patient;

#[test]
fn machines_are_looked_at_first() {
    let patient = Patient::new();
    a_machine_that_does_not_run_is_named_first(&patient);
    a_consumer_without_its_folder_gets_it_back_running_or_not(&patient);
}

fn a_machine_that_does_not_run_is_named_first(patient: &Patient) {
    let (signer, dev) = (patient.signer(), patient.dev());
    patient.incus(0, &["pause", &signer]);
    let resume = format!(
        "incus resume {signer} --project {}",
        patient.world.domains[0]
    );
    assert_eq!(patient.ails("machine", "{signer} is frozen"), resume);
    // If neither machine is running, the consumer is reported first.
    patient.incus(1, &["stop", "--force", &dev]);
    let start = format!("incus start {dev} --project {}", patient.world.domains[1]);
    assert_eq!(patient.ails("machine", "{dev} is stopped"), start);
    patient.incus(1, &["start", &dev]);
    patient.incus(0, &["resume", &signer]);
    patient.is_well();

    patient.incus(0, &["stop", "--force", &signer]);
    // Nothing in the machine would start the server, so the suggested fix is `apply`.
    patient.recovers("machine", "{signer} is stopped");
    patient.incus(1, &["pause", &dev]);
    assert!(
        patient
            .ails("machine", "{dev} is frozen")
            .starts_with("incus resume ")
    );
    patient.is_mended();
    patient.incus(1, &["delete", "--force", &dev]);
    patient.recovers("machine", "{dev} is not in Incus");
}

fn a_consumer_without_its_folder_gets_it_back_running_or_not(patient: &Patient) {
    patient.exec(1, "dev", "rm -rf /srv/anklume");
    patient.recovers("folder", "`/srv/anklume/mcp` is gone from {dev}");

    patient.exec(1, "dev", "rm -rf /srv/anklume");
    let dev = patient.dev();
    let restarted = patient.world.incus(1, &["restart", "--force", &dev]);
    assert!(!restarted.status.success(), "it started without its folder");
    assert_eq!(patient.ails("machine", "{dev} is stopped"), "anklume apply");
    patient.is_mended();

    patient.exec(1, "dev", "rm -rf /srv/anklume; ln -s /tmp /srv/anklume");
    let fix = patient.ails(
        "folder",
        "machine altered: `/srv/anklume` in {dev} is not a folder",
    );
    let (removed, rest) = fix.split_once("; ").unwrap();
    assert_eq!(rest, "anklume apply");
    // Run the command exactly as shown.
    let words: Vec<&str> = removed.split(' ').skip(1).collect();
    assert!(crate::project::incus(words).status.success(), "{removed}");
    patient.is_mended();
}

#[test]
fn a_rebuilt_machine_gets_everything_back() {
    let patient = Patient::new();
    for (domain, name) in [(0, "signer"), (1, "dev")] {
        let machine = patient.world.machine(domain, name);
        // Incus restarts a machine that was running, but fails if its socket folder is gone with the rest.
        let rebuild = ["rebuild", "bb", &machine, "--force"];
        assert_eq!(
            patient.world.incus(domain, &rebuild).status.success(),
            name == "signer"
        );
        let status = patient
            .world
            .incus(domain, &["list", &machine, "-c", "s", "-f", "csv"]);
        let status = String::from_utf8_lossy(&status.stdout)
            .trim()
            .to_lowercase();
        if status == "running" {
            patient.ails(
                "program",
                &format!("`/opt/anklume/anklume` is gone from {machine}"),
            );
        } else {
            patient.ails("machine", &format!("{machine} is {status}"));
        }
        let applied = patient.world.apply();
        // The log is lost, as expected: `apply` says so, and the host keeps its record of it.
        let (_, aside) = applied
            .stderr
            .split_once(
                " was rebuilt, and its audit log was lost with it: its checkpoint, up to line ",
            )
            .unwrap_or_default();
        let aside = aside.split('`').nth(1).map(std::path::Path::new);
        assert_eq!(aside.is_some_and(std::path::Path::exists), name == "signer");
        patient.is_well();
        patient.world.is_settled();
    }
    // The new log is checked like the previous one.
    patient.exec(0, "signer", "rm /var/log/anklume/audit.jsonl");
    patient.ails("audit", "the audit log on {signer} is gone: it had ");
    let aside = |path: &std::fs::DirEntry| {
        let text = std::fs::read(path.path()).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(&format!("\"{}\"", patient.signer()))
    };
    let kept = || {
        let files = std::fs::read_dir("/var/lib/anklume/audit").unwrap();
        files.filter_map(Result::ok).filter(aside).count()
    };
    assert_eq!(kept(), 2);
    patient.world.run(&["destroy", "--yes", "--force"]);
    assert_eq!(kept(), 0);
}
