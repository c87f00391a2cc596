use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;

/// Returns a view of a folder as the root of a machine whose user 0 is the host's user 1,000,000.
fn view(root: &std::path::Path) -> View {
    let map = "0 1000000 65536\n";
    View {
        root: Dir::open(root, SEARCH, ONE_MOUNT).unwrap(),
        process: pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap(),
        users: Ids::parse(map),
        groups: Ids::parse(map),
    }
}

#[test]
fn files_are_told_from_links_pipes_and_sockets_and_nothing_waits_for_a_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("etc")).unwrap();
    fs::write(path("etc/name"), "me").unwrap();
    symlink("/etc/passwd", path("etc/link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("etc/pipe"),
        FileType::Fifo,
        Mode::RUSR,
        0,
    )
    .unwrap();
    let _listener = UnixListener::bind(path("etc/socket")).unwrap();
    let view = view(folder.path());
    let kinds = ["etc", "etc/name", "etc/link", "etc/pipe", "etc/socket"].map(|name| {
        let entry = view.look(&format!("/{name}")).unwrap().unwrap();
        (entry.kind, entry.is_socket)
    });
    assert_eq!(
        kinds,
        [
            (EntryKind::Folder, Some(false)),
            (EntryKind::File, Some(false)),
            (EntryKind::Link, Some(false)),
            (EntryKind::File, Some(false)),
            (EntryKind::File, Some(true)),
        ]
    );
    assert_eq!(view.look("/etc/nothing"), Ok(None));
    assert_eq!(
        view.read("/etc/name", EntryKind::File, 2),
        Ok(Some(b"me".to_vec()))
    );
    assert_eq!(
        view.read("/etc/name", EntryKind::File, 1),
        Err(ViewFailure::TooLarge)
    );
    assert_eq!(
        view.read("/etc/link", EntryKind::Link, 100),
        Ok(Some(b"/etc/passwd".to_vec()))
    );
    for other in ["/etc/link", "/etc/pipe", "/etc/socket", "/etc"] {
        assert_eq!(view.read(other, EntryKind::File, 100), Ok(None), "{other}");
    }
}

#[test]
fn a_link_on_the_way_is_not_followed_whoever_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("name"), "host").unwrap();
    symlink(outside.path(), folder.path().join("etc")).unwrap();
    fs::create_dir(folder.path().join("inside")).unwrap();
    fs::write(folder.path().join("inside/name"), "machine").unwrap();
    symlink("inside", folder.path().join("beside")).unwrap();
    let view = view(folder.path());
    assert!(matches!(view.look("/inside/name"), Ok(Some(_))));
    for path in [
        "/etc/name",
        "/beside/name",
        "/../etc/passwd",
        "/etc/../name",
    ] {
        assert_eq!(view.look(path), Err(ViewFailure::Unclear), "{path}");
        assert_eq!(
            view.read(path, EntryKind::File, 100),
            Err(ViewFailure::Unclear),
            "{path}"
        );
        assert_eq!(
            view.is_same_file(path, "/proc/self/exe"),
            Err(ViewFailure::Unclear),
            "{path}"
        );
    }
}

#[test]
fn a_program_is_the_same_by_its_bytes_and_another_size_is_enough_to_differ() {
    let folder = tempfile::tempdir().unwrap();
    let own = tempfile::NamedTempFile::new().unwrap();
    let mut bytes: Vec<u8> = (0..CHUNK * 2 + 7)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    fs::write(own.path(), &bytes).unwrap();
    let program = folder.path().join("program");
    let view = view(folder.path());
    let same = || view.is_same_file("/program", own.path().to_str().unwrap());
    assert_eq!(same(), Ok(None));
    fs::write(&program, &bytes).unwrap();
    assert_eq!(same(), Ok(Some(true)));
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&program, &bytes).unwrap();
    assert_eq!(same(), Ok(Some(false)));
    // A different size is enough: 4 TiB could not be read in time.
    fs::File::create(&program)
        .unwrap()
        .set_len(1 << 42)
        .unwrap();
    assert_eq!(same(), Ok(Some(false)));
    fs::remove_file(&program).unwrap();
    fs::create_dir(&program).unwrap();
    assert_eq!(same(), Ok(None));
}

#[test]
fn the_first_process_of_a_namespace_is_told_by_the_number_that_it_has_in_there() {
    assert!(is_first("Name:\tinit\nNSpid:\t4242\t1\nNSpgid:\t0\n"));
    assert!(is_first("NSpid:\t4242\t77\t1\n"));
    for other in [
        "NSpid:\t1\n",
        "NSpid:\t4242\t1\t7\n",
        "NSpid:\t4242\n",
        "Pid:\t1\n",
    ] {
        assert!(!is_first(other), "{other}");
    }
}

#[test]
fn a_cgroup_is_the_machine_s_by_its_whole_name() {
    let v1 = "9:name=systemd:/lxc.payload.vault_signer/init.scope\n4:memory:/a/lxc.payload.vault_signer\n1:cpu:/\n";
    assert!(is_in(v1, "vault_signer"));
    assert!(is_in("0::/lxc.payload.signer\n", "signer"));
    for (cgroups, machine) in [
        (v1, "vault_sign"),
        (v1, "vault_signer-1"),
        ("0::/lxc.payload.signer-1\n", "signer"),
        ("0::/user.slice\n", "signer"),
        ("0::/lxc.monitor.signer\n", "signer"),
        (
            "1:cpu:/lxc.payload.signer\n0::/lxc.payload.other\n",
            "signer",
        ),
    ] {
        assert!(!is_in(cgroups, machine), "{cgroups}");
    }
}

#[test]
fn users_have_the_numbers_that_the_machine_gives_them() {
    let ids = Ids::parse(
        "         0    1000000      1000\n      1000       1000          1\n      1001    1001001     64535\n",
    );
    let cases = [
        (1_000_000, 0),
        (1_000_999, 999),
        (1000, 1000),
        (1_001_001, 1001),
        (0, NOBODY),
        (1_001_000, NOBODY),
        (u32::MAX, NOBODY),
    ];
    for (outside, inside) in cases {
        assert_eq!(ids.inside(outside), inside, "{outside}");
    }
    assert_eq!(Ids::parse("broken\n").inside(0), NOBODY);
    assert_eq!(Ids::parse("0 0 4294967295\n").inside(0), 0);
}

#[test]
fn open_refuses_a_process_that_is_not_in_the_machine() {
    assert!(View::open(std::process::id(), "").is_none());
    assert!(View::open(1, "vault_signer").is_none());
    assert!(View::open(0, "vault_signer").is_none());
    assert!(View::open(u32::MAX, "vault_signer").is_none());
}
