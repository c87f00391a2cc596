//! Obstacles to writing: links, folders, permissions, full disks. No link is followed, and no work is left half done.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use super::{FILES_OF_ONE, ONE, QUICK_START, again, machines, tree};
use crate::harness::{ANKLUME, Anklume, copy_of_anklume, have, scrub};

#[test]
fn a_missing_file_or_folder_is_named_with_what_to_do() {
    let ran = Anklume::new().args(["sync"]).run();
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    assert!(ran.stderr.contains("infra.yml"), "{}", ran.stderr);
    assert!(ran.stderr.contains("help: "), "{}", ran.stderr);
    let ran = Anklume::new()
        .infra(ONE)
        .args(["sync", "--base-dir", "no/where"])
        .run();
    ran.is(
        1,
        "",
        "error: the folder `no/where` does not exist\n  = help: create it, or name another with `--base-dir`\n",
    );
    let ran = Anklume::new()
        .infra(ONE)
        .args(["sync", "--base-dir", "infra.yml"])
        .run();
    ran.is(
        1,
        "",
        "error: `infra.yml` is not a folder\n  = help: name a folder with `--base-dir`\n",
    );
}

#[test]
fn a_link_is_not_followed_wherever_it_stands() {
    for link in [
        "host_vars",
        "host_vars/work-dev.yml",
        "group_vars/all.yml",
        "inventory",
    ] {
        let run = Anklume::new()
            .infra(ONE)
            .file("elsewhere/all.yml", "precious: 1\n")
            .args(["sync"]);
        let path = run.path().join(link);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let target = if link.contains('/') {
            "elsewhere/all.yml"
        } else {
            "elsewhere"
        };
        symlink(run.path().join(target), &path).unwrap();
        let ran = run.run();
        assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{link}");
        assert!(ran.stderr.starts_with("error: `"), "{}", ran.stderr);
        assert!(
            ran.stderr.contains(&format!(
                "{link}` is a symbolic link, which sync does not follow"
            )),
            "{}",
            ran.stderr
        );
        assert!(path.is_symlink());
        assert_eq!(ran.read("elsewhere/all.yml"), "precious: 1\n");
        assert!(!ran.folder.path().join("group_vars/work.yml").exists());
    }
}

#[test]
fn what_is_no_file_is_left_and_nothing_is_written() {
    let run = Anklume::new()
        .infra(ONE)
        .file("host_vars/work-dev.yml/x", "")
        .args(["sync"]);
    let ran = run.run();
    ran.is(
        1,
        "",
        "error: `host_vars/work-dev.yml` is not a regular file\n  = help: move it out of the way\n",
    );
    assert_eq!(tree(ran.folder.path()).len(), 1);
    let ran = Anklume::new()
        .infra(ONE)
        .file("host_vars", "x")
        .args(["sync"])
        .run();
    assert_eq!(ran.status, 1);
    assert!(
        ran.stderr.contains("host_vars` is not a folder"),
        "{}",
        ran.stderr
    );
    // A FIFO does not block the run.
    let run = Anklume::new()
        .infra(ONE)
        .file("host_vars/keep", "")
        .args(["sync"]);
    let fifo = run.path().join("host_vars/work-dev.yml");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let ran = run.run();
    assert_eq!(ran.status, 1);
    assert!(
        ran.stderr.contains("is not a regular file"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_folder_that_may_not_be_written_is_named_and_left() {
    let run = Anklume::new().infra(ONE).args(["sync"]);
    let folder = run.path();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o555)).unwrap();
    // The other user might not have access to the build folder.
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    copy_of_anklume(&place.path().join("anklume"));
    let mut command = Command::new(place.path().join("anklume"));
    command.args(["sync"]).current_dir(&folder);
    scrub(&mut command, &folder);
    if folder.metadata().unwrap().uid() == 0 {
        // Root can write anywhere.
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: cannot create the folder `./group_vars`: Permission denied (os error 13)\n"
    );
    assert!(tree(&folder).is_empty());
}

#[test]
fn a_full_disk_leaves_the_old_files() {
    let script = r#"
        mount -t tmpfs -o size=256k,mode=0755 none "$1" || exit 125
        cp infra.yml "$1" && cd "$1" || exit 125
        "$2" sync --quiet || exit 124
        cat */*.yml > ../before
        sed -i 's/10\.100\./10.200./' infra.yml
        sed -i 's/^project_name/global: {base_subnet: "10.200"}\nproject_name/' infra.yml
        head -c 1000000 /dev/zero > filler 2>/dev/null
        "$2" sync; code=$?
        rm filler
        cat */*.yml > ../after
        find . -name '.anklume*' >> ../after
        "$2" sync --quiet && cat */*.yml > ../last
        exit $code
    "#;
    let run = Anklume::new().infra(QUICK_START).file("small/keep", "");
    let folder = run.path();
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh", "small", ANKLUME])
        .current_dir(&folder)
        .output();
    let Ok(output) = output else {
        have("unshare", false);
        return;
    };
    let stderr = String::from_utf8(output.stderr).unwrap();
    if !have(
        "the right to mount a file system",
        output.status.code() != Some(125) && !stderr.contains("unshare failed"),
    ) {
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("No space left on device"), "{stderr}");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(read("before"), read("after"));
    assert!(read("last").contains("10.200.0.10"));
}

#[test]
fn modes_of_files_are_kept_and_new_ones_obey_the_umask() {
    let script = r#"umask 027; "$1" sync --quiet"#;
    let run = Anklume::new().infra(ONE);
    let shell = |run: &Anklume| {
        let status = Command::new("sh")
            .args(["-c", script, "sh", ANKLUME])
            .current_dir(run.path())
            .status();
        assert!(status.unwrap().success());
    };
    shell(&run);
    let mode = |file: &str| run.path().join(file).metadata().unwrap().mode() & 0o777;
    assert_eq!(
        (mode("host_vars"), mode("host_vars/work-dev.yml")),
        (0o750, 0o640)
    );
    let file = run.path().join("host_vars/work-dev.yml");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o606)).unwrap();
    let run = run.infra(&ONE.replace("{}", "{description: new}"));
    let mode = |file: &str| run.path().join(file).metadata().unwrap().mode() & 0o777;
    shell(&run);
    assert!(std::fs::read_to_string(&file).unwrap().contains("new"));
    assert_eq!(mode("host_vars/work-dev.yml"), 0o606);
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let machines = machines(300);
    let run = Anklume::new()
        .infra(&ONE.replace("      work-dev: {}\n", &machines))
        .args(["sync", "--dry-run"]);
    let mut child = run
        .command()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn a_privileged_end_is_a_fault_and_nothing_is_written() {
    let infra = QUICK_START.replacen(
        "type: lxc\n        ip: \"10.100.1.10\"",
        "config: {security.privileged: true}",
        1,
    );
    assert_ne!(infra, QUICK_START);
    let ran = Anklume::new().infra(&infra).args(["sync"]).run();
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""));
    assert!(
        ran.stderr.starts_with("error[privileged-end]: `work-dev` "),
        "{}",
        ran.stderr
    );
    let infra = QUICK_START.replacen("type: lxc\n        ip: \"10.100.1.10\"", "type: vm", 1);
    let ran = Anklume::new().infra(&infra).args(["sync"]).run();
    ran.is(
        1,
        "",
        "\
error[virtual-machine-end]: `work-dev` is a virtual machine, so it cannot offer or call services
  --> infra.yml:19:7
   |
19 |       work-dev:
   |       ^^^^^^^^
   = help: Incus does not support Unix-socket proxies on virtual machines: make it a container (`type: lxc`), or remove it from the services
",
    );
    assert!(tree(ran.folder.path()).is_empty());
    let ran = again(ran, []).infra(ONE).run();
    assert_eq!(tree(ran.folder.path()).len(), FILES_OF_ONE.len());
}
