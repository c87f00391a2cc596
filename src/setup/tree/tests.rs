//! Tests files below a folder that stands in for the root: written whole, and never through or over a link.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn tree() -> (tempfile::TempDir, MachineTree) {
    let root = tempfile::tempdir().unwrap();
    let tree = MachineTree::at(root.path().to_str().unwrap()).unwrap();
    (root, tree)
}

fn altered<T: std::fmt::Debug>(result: Result<T, TreeError>) -> String {
    match result {
        Err(TreeError::Altered(path)) => path,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_written_once_and_whole() {
    let (root, tree) = tree();
    assert!(tree.file("/etc/a/machine", b"one", 0o644).unwrap());
    assert!(!tree.file("/etc/a/machine", b"one", 0o644).unwrap());
    assert!(tree.file("/etc/a/machine", b"two", 0o644).unwrap());
    let path = root.path().join("etc/a/machine");
    assert_eq!(std::fs::read(&path).unwrap(), b"two");
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
    let beside = std::fs::read_dir(root.path().join("etc/a"))
        .unwrap()
        .count();
    assert_eq!(beside, 1);
    assert_eq!(tree.read("/etc/a/machine").unwrap().unwrap(), b"two");
    assert!(tree.remove("/etc/a/machine").unwrap());
    assert!(!tree.remove("/etc/a/machine").unwrap());
    assert_eq!(tree.read("/etc/a/machine").unwrap(), None);
}

fn mode(path: &std::path::Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_or_folder_with_other_rights_gets_its_own_back() {
    let (root, tree) = tree();
    tree.file("/etc/a/machine", b"one", 0o644).unwrap();
    let (folder, file) = (root.path().join("etc/a"), root.path().join("etc/a/machine"));
    chmod(&file, 0o666);
    assert!(tree.file("/etc/a/machine", b"one", 0o644).unwrap());
    assert_eq!(mode(&file), 0o644);
    for other in [0o700, 0o777, 0o2755] {
        chmod(&folder, other);
        tree.own_again("/etc/a", 0o755).unwrap();
        assert_eq!(mode(&folder), 0o755);
    }
    tree.own_again("/etc/not-there", 0o755).unwrap();
    std::fs::remove_file(&file).unwrap();
    symlink("a", root.path().join("etc/link")).unwrap();
    assert_eq!(altered(tree.own_again("/etc/link", 0o755)), "/etc/link");
}

#[test]
fn a_folder_of_the_machine_s_is_changed_only_where_it_keeps_somebody_out() {
    let (root, tree) = tree();
    let folder = root.path().join("srv");
    std::fs::create_dir(&folder).unwrap();
    let nobody = CallerUser {
        uid: 65_534,
        gid: 65_534,
    };
    for (before, after) in [(0o700, 0o711), (0o1771, 0o1771), (0o750, 0o751)] {
        chmod(&folder, before);
        tree.lets_pass("/srv", nobody).unwrap();
        assert_eq!(mode(&folder), after);
        chmod(&folder, before);
        tree.lets_pass("/srv", CallerUser::default()).unwrap();
        assert_eq!(mode(&folder), before);
    }
}

#[test]
fn nothing_goes_through_a_link_or_over_one() {
    let (root, tree) = tree();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), root.path().join("etc")).unwrap();
    assert_eq!(altered(tree.file("/etc/a", b"x", 0o644)), "/etc");
    assert_eq!(altered(tree.folder("/etc/a/b", 0o755)), "/etc/a/b");
    altered(tree.remove("/etc/a"));
    std::fs::create_dir(root.path().join("opt")).unwrap();
    symlink(elsewhere.path().join("f"), root.path().join("opt/f")).unwrap();
    assert_eq!(altered(tree.file("/opt/f", b"x", 0o644)), "/opt/f");
    std::fs::write(root.path().join("opt/new"), "n").unwrap();
    assert_eq!(altered(tree.rename("/opt", "new", "/opt/f")), "/opt/f");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn a_mount_is_no_way() {
    // `/proc` is mounted on every system.
    let tree = MachineTree::open().unwrap();
    assert_eq!(altered(tree.read("/proc/version")), "/proc/version");
}

#[test]
fn a_folder_or_pipe_is_no_file() {
    let (root, tree) = tree();
    std::fs::create_dir(root.path().join("d")).unwrap();
    assert_eq!(altered(tree.file("/d", b"x", 0o644)), "/d");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.path().join("p"),
        FileType::Fifo,
        Mode::RWXU,
        0,
    )
    .unwrap();
    assert_eq!(altered(tree.file("/p", b"x", 0o644)), "/p");
}

#[test]
fn a_link_is_made_once_and_never_in_the_place_of_something_else() {
    let (root, tree) = tree();
    tree.link("/bin/anklume", "/opt/anklume").unwrap();
    tree.link("/bin/anklume", "/opt/anklume").unwrap();
    assert_eq!(altered(tree.link("/bin/anklume", "/else")), "/bin/anklume");
    std::fs::write(root.path().join("bin/own"), "mine").unwrap();
    assert_eq!(altered(tree.link("/bin/own", "/opt/anklume")), "/bin/own");
    assert_eq!(std::fs::read(root.path().join("bin/own")).unwrap(), b"mine");
}

#[test]
fn a_folder_that_others_can_write_to_is_not_ours() {
    let (root, tree) = tree();
    tree.is_roots("/nowhere").unwrap();
    std::fs::create_dir(root.path().join("open")).unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(root.path().join("open"), open).unwrap();
    assert_eq!(altered(tree.is_roots("/open")), "/open");
}

#[tokio::test]
async fn a_lock_is_root_s_own_file() {
    let (root, tree) = tree();
    let _held = tree.lock("/etc/a/.lock").await.unwrap();
    let mode = root
        .path()
        .join("etc/a/.lock")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_program_takes_its_place_and_what_others_left_is_found() {
    let (root, tree) = tree();
    let opt = root.path().join("opt");
    std::fs::create_dir(&opt).unwrap();
    for name in ["anklume", "anklume.new-1", "anklume.new-2", "other"] {
        std::fs::write(opt.join(name), name).unwrap();
    }
    tree.rename("/opt", "anklume.new-2", "/opt/anklume")
        .unwrap();
    let left = tree.names("/opt", "anklume.new-").unwrap();
    assert_eq!(left, ["anklume.new-1"]);
    assert_eq!(
        std::fs::read(opt.join("anklume")).unwrap(),
        b"anklume.new-2"
    );
    assert_eq!(std::fs::read_dir(&opt).unwrap().count(), 3);
}

#[test]
fn a_folder_is_given_away_with_every_name_in_it() {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    let (root, tree) = tree();
    let folder = root.path().join("srv");
    let odd = folder.join(std::ffi::OsStr::from_bytes(b"\xff"));
    std::fs::create_dir_all(&odd).unwrap();
    for file in [folder.join("plain"), odd.join("inner")] {
        std::fs::write(file, "").unwrap();
    }
    if !geteuid().is_root() {
        return;
    }
    let mut account = Account::find(None).unwrap();
    (account.uid, account.gid) = (12_345, 23_456);
    tree.hand_on("/srv", &account).unwrap();
    for path in [folder.join("plain"), odd.join("inner"), odd, folder] {
        let is = path.symlink_metadata().unwrap();
        assert_eq!((is.uid(), is.gid()), (12_345, 23_456), "{path:?}");
    }
}
