//! Files are pushed into the machines once, never through their links or mounts, and an upgrade loses no calls.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::plan::SEED;
use crate::harness::{ANKLUME, copy_of_anklume, scrub, write_program};
use crate::world::World;

#[test]
fn a_machine_that_turned_a_path_into_a_link_or_a_mount_is_refused() {
    let world = World::new(SEED);
    world.apply();
    // A command with which a machine alters itself, one that undoes it, and the path that `apply` must report. Deleting
    // the program makes `apply` push it.
    let link = |path: &str| {
        (
            format!("mv {path} {path}.away; mkdir -p /tmp/trap; ln -s /tmp/trap {path}"),
            format!("rm {path}; mv {path}.away {path}"),
        )
    };
    let mount = |path: &str| {
        (
            format!("mkdir -p /tmp/trap; mount -o bind /tmp/trap {path}"),
            format!("umount {path}"),
        )
    };
    let file = |path: &str, target: &str| {
        (
            format!("mkdir -p /tmp/trap; rm -f {path}; ln -s {target} {path}"),
            format!("rm -f {path}"),
        )
    };
    let cases = [
        (link("/opt"), "/opt"),
        (link("/opt/anklume"), "/opt/anklume"),
        (mount("/opt"), "/opt"),
        (mount("/opt/anklume"), "/opt/anklume"),
        (link("/etc/anklume"), "/etc/anklume"),
        (mount("/etc/anklume"), "/etc/anklume"),
        (mount("/etc"), "/etc"),
        (link("/srv/anklume"), "/srv/anklume"),
        (mount("/srv/anklume"), "/srv/anklume"),
        (
            file("/opt/anklume/anklume", "/tmp/trap/program"),
            "/opt/anklume/anklume",
        ),
        (
            file("/etc/anklume/machine", "/tmp/trap/machine"),
            "/etc/anklume/machine",
        ),
        (
            file("/etc/anklume/services.json", "/tmp/trap/s"),
            "/etc/anklume/services.json",
        ),
        (
            file("/usr/local/bin/anklume", "/tmp/trap/link"),
            "/usr/local/bin/anklume",
        ),
    ];
    assert!(world.exec(0, "signer", "rm /opt/anklume/anklume").0);
    for ((alter, undo), path) in cases {
        assert!(world.exec(0, "signer", &alter).0, "{alter}");
        let (status, answer) = world.apply_json();
        let text = answer.to_string();
        assert_eq!(status, 1, "{alter}: {answer:#}");
        assert!(text.contains("machine altered: `"), "{alter}: {answer:#}");
        assert!(text.contains(&format!("`{path}")), "{alter}: {answer:#}");
        let (_, trapped) = world.exec(0, "signer", "ls -A /tmp/trap");
        assert_eq!(trapped, "", "{alter}: something went through");
        assert!(world.exec(0, "signer", &undo).0, "{undo}");
    }
    world.apply();
    world.is_settled();
}

/// Calls a service from the consumer; returns the exit code and the output.
fn call(world: &World, service: &str) -> (i32, String) {
    let dev = world.machine(1, "dev");
    let signer = world.machine(0, "signer");
    let output = world.incus(
        1,
        &[
            "exec",
            &dev,
            "-T",
            "--",
            "anklume",
            "mcp",
            "call",
            "-i",
            &signer,
            service,
            "data:=\"aGk=\"",
        ],
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

/// The status of the provider's server, as the provider sees it.
fn server(world: &World) -> serde_json::Value {
    let (_, status) = world.exec(0, "signer", "anklume mcp status --format json");
    serde_json::from_str(&status).unwrap()
}

/// A program that differs as a file but behaves the same, in its own folder.
pub(crate) fn newer_version() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let newer = folder.path().join("anklume");
    let own = std::fs::read(ANKLUME).unwrap();
    write_program(&newer, [own.as_slice(), b"newer"].concat());
    (folder, newer)
}

/// Runs `anklume apply --format json` with another program.
pub(crate) fn apply_by(world: &World, program: &Path) -> std::process::Output {
    run_by(world, program, &["apply", "--format", "json"])
}

/// Runs another program as `anklume …`.
fn run_by(world: &World, program: &Path, args: &[&str]) -> std::process::Output {
    let run = world.anklume(args);
    let mut command = Command::new(program);
    command
        .args(run.command().get_args())
        .current_dir(run.path());
    scrub(&mut command, &run.path());
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_newer_version_takes_over_and_no_running_call_is_lost() {
    let world = World::new(SEED);
    world.apply();
    let before = server(&world);
    // Make the call slow enough to be seen in progress: the signing program is slow, and then fails.
    let slow = "mkdir -p /root/.gnupg; printf '#!/bin/sh\\necho OK\\n' > /bin/gpg-connect-agent
        printf '#!/bin/sh\\nsleep 4\\nexit 2\\n' > /bin/gpg; chmod 755 /bin/gpg /bin/gpg-connect-agent";
    assert!(world.exec(0, "signer", slow).0);
    let (_folder, newer) = newer_version();
    let looked = run_by(&world, &newer, &["doctor", "--quiet"]);
    let (dev, signer) = (world.machine(1, "dev"), world.machine(0, "signer"));
    let said = format!(
        "pending {dev} → {signer}  not applied yet: `/opt/anklume/anklume` in {signer} differs from this program, which was replaced after the last `apply`\n\
        \u{20}       fix: anklume apply\n"
    );
    assert_eq!(String::from_utf8(looked.stdout).unwrap(), said);
    let (running, applied) = std::thread::scope(|scope| {
        let running = scope.spawn(|| call(&world, "sign"));
        let began = "for i in $(seq 100); do cat /proc/[0-9]*/cmdline 2>/dev/null | grep -q /[b]in/gpg && exit 0; sleep 0.1; done; exit 1";
        assert!(world.exec(0, "signer", began).0);
        let applied = apply_by(&world, &newer);
        (running.join().unwrap(), applied)
    });
    assert!(applied.status.success(), "{applied:?}");
    // This is the tool's own answer, not a lost connection.
    assert_eq!(running.0, 1, "{running:?}");
    assert!(running.1.contains("gpg"), "{running:?}");
    assert_ne!(server(&world)["pid"], before["pid"]);
    let again = apply_by(&world, &newer);
    let again = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(again.contains("\"writes\": 0"), "{again}");
    let (_, left) = world.exec(0, "signer", "ls -A /opt/anklume");
    assert_eq!(left, "anklume\n");
}

#[test]
fn an_order_that_comes_late_is_refused() {
    let world = World::new(SEED);
    world.apply();
    let signer = world.machine(0, "signer");
    let sent = |age: &str| {
        let order = format!(r#"{{"program":"0","machine":"{signer}"}}"#);
        let setup = format!(
            r#"echo "{{\"at\":$(($(date +%s) - {age})),\"order\":{}}}" | anklume machine-setup"#,
            order.replace('"', "\\\"")
        );
        world.exec(0, "signer", &setup).1
    };
    let late = sent("31");
    assert!(late.contains("the setup request came too late"), "{late}");
    let timely = sent("0");
    assert!(
        timely.contains("the program that arrived is not the one that was sent"),
        "{timely}"
    );
    world.is_settled();
}

/// The owner of a file in the signer.
fn owner(world: &World, path: &str) -> String {
    world.exec(0, "signer", &format!("stat -c %U:%G {path}")).1
}

#[test]
fn who_serves_is_the_declared_user_also_for_the_operator() {
    let declared = |run_as: &str| {
        SEED.replace(
            "        services:\n",
            &format!("        mcp: {{run_as: {run_as}}}\n        services:\n          - {{name: drop, tool: file_accept, consumers: [{{b}}-dev]}}\n"),
        )
    };
    let mut world = World::new(&declared("user"));
    world.apply();
    let dev = world.machine(1, "dev");
    let signer = world.machine(0, "signer");
    let give = format!("anklume mcp call -i {signer} drop path=a.txt data:='\"aGk=\"'");
    assert!(world.exec(1, "dev", &give).0);
    assert_eq!(
        owner(&world, &format!("/srv/anklume/portal/incoming/{dev}/a.txt")),
        "user:user\n"
    );
    assert_eq!(owner(&world, "/run/anklume/mcp"), "user:user\n");
    assert_eq!(owner(&world, "/var/log/anklume/audit.jsonl"), "user:user\n");
    let operator = [
        "mcp",
        "call",
        "-i",
        &signer,
        "file_accept",
        "path=b.txt",
        "data:=\"aGk=\"",
    ];
    let ran = world.run(&operator);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert_eq!(owner(&world, "/srv/anklume/portal/b.txt"), "user:user\n");
    // Another user takes over the existing files.
    world.declare(&declared("root"));
    world.apply();
    assert!(world.exec(1, "dev", &give.replace("a.txt", "c.txt")).0);
    for name in ["", "/a.txt", "/c.txt"] {
        let path = format!("/srv/anklume/portal/incoming/{dev}{name}");
        assert_eq!(owner(&world, &path), "root:root\n");
    }
    world.is_settled();
    world.declare(&declared("ghost"));
    let (status, answer) = world.apply_json();
    assert_eq!(status, 1, "{answer:#}");
    assert!(
        answer.to_string().contains(
            "the user `ghost` does not exist in this machine: create it (`useradd -m ghost`)"
        ),
        "{answer:#}"
    );
    // Meanwhile, nothing is served as another user.
    let ran = world.run(&operator);
    assert_ne!(ran.status, 0, "{ran:?}");
}

#[test]
fn a_new_service_changes_the_policy_and_nothing_else() {
    let mut world = World::new(SEED);
    world.apply();
    let before = server(&world);
    world.declare(&SEED.replace(
        "services:\n",
        "services:\n          - {name: paste, tool: clipboard_get, consumers: [{b}-dev]}\n",
    ));
    let plan = world.plan();
    let (signer, dev) = (world.machine(0, "signer"), world.machine(1, "dev"));
    let expected = [
        format!("+ {dev} may call {signer}/paste"),
        format!("~ services file on {signer}"),
    ];
    assert_eq!(plan, expected);
    world.apply();
    let after = server(&world);
    assert_eq!(before["pid"], after["pid"]);
    assert_ne!(before["digest"], after["digest"]);
    world.is_settled();
    // Once no machine offers a service, there are no servers, files or channels.
    let served = "\n          - {name: sign, tool: gpg_sign, consumers: [{b}-dev]}";
    let none = SEED.replace(served, " []");
    assert_ne!(none, SEED);
    world.declare(&none);
    world.apply();
    world.is_settled();
    let (_, found) = world.exec(
        0,
        "signer",
        "anklume mcp status 2>&1; ls /etc/anklume; ls -A /run/anklume/mcp | grep sock; ps | grep '[m]cp serve'",
    );
    assert!(
        found.starts_with("error: no server is running in `/run/anklume/mcp`"),
        "{found}"
    );
    assert!(found.ends_with("machine\n"), "{found}");
}

#[test]
fn a_renamed_machine_leaves_nothing_behind() {
    let mut world = World::new(SEED);
    world.apply();
    let old = world.edge_devices(0, &world.machine(0, "signer"));
    world.declare(
        &SEED
            .replace("{b}-dev", "{b}-new")
            .replace("{base}.2.10", "{base}.2.11"),
    );
    world.apply();
    let new = world.edge_devices(0, &world.machine(0, "signer"));
    assert_eq!((old.len(), new.len()), (1, 1));
    assert_ne!(old, new);
    assert_eq!(world.edge_devices(1, &world.machine(1, "dev")), [""; 0]);
    let host = |device: &str| {
        format!(
            "/var/lib/anklume/mcp/{}.sock",
            device.strip_prefix("mcp_").unwrap()
        )
    };
    assert!(!std::path::Path::new(&host(&old[0])).exists());
    let (_, sockets) = world.exec(0, "signer", "ls /run/anklume/mcp");
    assert_eq!(sockets, format!("{}.sock\n", world.machine(1, "new")));
    let (_, inside) = world.exec(1, "dev", "ls /srv/anklume/mcp");
    assert_eq!(inside, "");
    world.is_settled();
}

#[test]
fn a_proxy_of_a_consumer_has_no_rights_and_nobody_else_can_use_it() {
    let world = World::new(&SEED.replace(
        "        config:",
        "        mcp: {uid: 1000, gid: 1000}\n        config:",
    ));
    world.apply();
    let signer = world.machine(0, "signer");
    let hash = world.edge_devices(0, &signer).concat();
    let host = format!(
        "/var/lib/anklume/mcp/{}.sock",
        hash.strip_prefix("mcp_").unwrap()
    );
    let consumer = format!("unix:/srv/anklume/mcp/{signer}.sock");
    let mut found = 0;
    for process in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        if !(words.contains("forkproxy")
            && words.contains(&format!("{consumer}\0"))
            && words.contains(&host))
        {
            continue;
        }
        found += 1;
        let status = std::fs::read_to_string(process.path().join("status")).unwrap();
        let line = |key: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap()
                .trim()
                .to_owned()
        };
        let uids: Vec<u32> = line("Uid:")
            .split_whitespace()
            .map(|uid| uid.parse().unwrap())
            .collect();
        assert!(
            uids.iter()
                .all(|uid| (2_000_000_000..2_100_000_000).contains(uid)),
            "{status}"
        );
        assert_eq!(line("Groups:"), "", "{status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(line(set), "0000000000000000", "{status}");
        }
    }
    assert_eq!(found, 1);
    // In the consumer, the declared user may connect, but another may not.
    let as_user = |uid: &str| {
        let dev = world.machine(1, "dev");
        let list = [
            "exec", &dev, "-T", "--user", uid, "--group", uid, "--cwd", "/", "--", "anklume",
            "mcp", "list", "-i", &signer,
        ];
        let output = world.incus(1, &list);
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(as_user("1000").0, 0);
    let (code, words) = as_user("1001");
    assert_eq!(code, 4, "{words}");
    assert!(words.contains("ermission"), "{words}");
    // On the host, another user may not connect either, even if that user knows the path.
    let mut nobody = std::process::Command::new("setpriv");
    scrub(&mut nobody, std::path::Path::new("/"));
    let binary = tempfile::tempdir().unwrap();
    let program = binary.path().join("anklume");
    copy_of_anklume(&program);
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(binary.path(), open).unwrap();
    let output = nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["mcp", "list", "--socket", &host])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("ermission"),
        "{output:?}"
    );
}
