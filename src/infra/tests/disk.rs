//! Tests files and folders on disk, both accepted and refused ones.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::super::open::default_path;
use super::{EXAMPLE, QUICK_START, in_short};
use crate::diagnostic::{Faults, draw};
use crate::infra::{FILE_MAX, ReadInfra, open};

/// Creates a folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

#[track_caller]
fn refused(path: &Path) -> String {
    let Err(Faults(faults)) = open(Some(path)) else {
        panic!("read")
    };
    let folder = path.parent().unwrap().to_str().unwrap();
    draw(&faults, false).replace(folder, "FOLDER")
}

#[track_caller]
fn good(path: &Path) -> ReadInfra {
    match open(Some(path)) {
        Ok(read) => read,
        Err(Faults(faults)) => panic!("{}", draw(&faults, false)),
    }
}

#[test]
fn a_file_is_read_and_its_folder_names_the_project() {
    let folder = folder(&[
        ("My Place_2/infra.yml", EXAMPLE),
        ("x/infra.yml", "domains: {}"),
    ]);
    let read = good(&folder.path().join("My Place_2/infra.yml"));
    assert_eq!(read.infra.project, "example");
    assert_eq!(read.folder, folder.path().join("My Place_2"));
    let read = good(&folder.path().join("x/infra.yml"));
    assert_eq!(read.infra.project, "x");
    let renamed = folder.path().join("My Place_2/other.yml");
    fs::write(&renamed, "domains: {}").unwrap();
    assert_eq!(good(&renamed).infra.project, "my-place-2");
    symlink(&renamed, folder.path().join("link.yml")).unwrap();
    let read = good(&folder.path().join("link.yml"));
    assert_eq!(read.folder, folder.path());
}

#[test]
fn without_a_path_there_is_one_thing_to_read() {
    let folder = folder(&[]);
    let code = |path: Result<_, crate::diagnostic::Diagnostic>| path.unwrap_err().code;
    assert_eq!(code(default_path(folder.path())), "not-found");
    let file = folder.path().join("infra.yml");
    fs::write(&file, "").unwrap();
    assert_eq!(default_path(folder.path()).unwrap(), file);
    let infra = folder.path().join("infra");
    fs::create_dir(&infra).unwrap();
    assert_eq!(code(default_path(folder.path())), "both-present");
    fs::remove_file(&file).unwrap();
    assert_eq!(default_path(folder.path()).unwrap(), infra);
}

#[test]
fn what_is_not_there_is_said() {
    let folder = folder(&[]);
    assert_eq!(
        refused(&folder.path().join("nope.yml")),
        "error[not-found]: `FOLDER/nope.yml` does not exist\n  = help: check the path"
    );
}

#[test]
fn nothing_but_a_regular_file_is_opened() {
    let folder = folder(&[]);
    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    assert_eq!(
        refused(&fifo),
        "error[not-a-file]: `FOLDER/fifo` is a FIFO\n  = help: this must be a regular file"
    );
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(refused(&socket).contains("`FOLDER/socket` is a socket"));
    assert!(refused(Path::new("/dev/zero")).contains("is a device"));
}

#[test]
fn a_file_beyond_the_limit_is_refused_unread() {
    let folder = folder(&[]);
    let path = folder.path().join("infra.yml");
    // A sparse file: reading it would yield NULs, which would be a different fault.
    fs::File::create(&path)
        .unwrap()
        .set_len(100 * 1024 * 1024)
        .unwrap();
    assert_eq!(
        refused(&path),
        "error[too-large]: `FOLDER/infra.yml` is larger than 16 MiB\n  \
         = help: 10,000 machines need about 4 MiB: is this the right file?"
    );
    fs::File::create(&path).unwrap().set_len(FILE_MAX).unwrap();
    assert!(refused(&path).contains("[yaml-syntax]"));
}

#[test]
fn a_byte_that_is_not_utf8_has_a_place() {
    let folder = folder(&[]);
    let path = folder.path().join("infra.yml");
    fs::write(&path, b"domains:\n  a\xc3\xa9: {\xff: 1}\n").unwrap();
    let expected = "\
error[not-utf8]: byte 0xff is not UTF-8
 --> FOLDER/infra.yml:2:8
  |
2 |   aé: {\u{fffd}: 1}
  |        ^
  = help: save the file as UTF-8";
    assert_eq!(refused(&path), expected);
}

#[test]
fn a_folder_reads_as_one_file() {
    let folder = folder(&[
        (
            "infra/base.yml",
            "project_name: p\nglobal: {default_os_image: images:alpine}\n",
        ),
        (
            "infra/domains/20-work.yml",
            "work: {subnet_id: 1, machines: {work-dev: {}}}\n",
        ),
        (
            "infra/domains/10-vault.yml",
            "vault:\n  subnet_id: 0\n  machines:\n    signer:\n      services:\n        \
             - {name: sign, tool: gpg_sign, consumers: [work-dev]}\nhome: {subnet_id: 2}\n",
        ),
        (
            "infra/policies.yml",
            "network_policies: [{from: work, to: vault, ports: all}]\n",
        ),
        ("infra/.hidden", "x"),
        ("infra/domains/10-vault.yml~", "x"),
    ]);
    let read = good(&folder.path().join("infra"));
    assert_eq!(read.warnings, []);
    assert_eq!(read.folder, folder.path());
    let infra = read.infra;
    assert_eq!(infra.project, "p");
    let names: Vec<_> = infra.domains.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["vault", "home", "work"]);
    assert_eq!(infra.network_policies.len(), 1);
    let (_, signer) = infra.machine("signer").unwrap();
    let path = folder.path().join("infra/domains/10-vault.yml");
    assert_eq!(signer.place.short(), format!("{}:4", path.display()));
    assert_eq!(signer.os_image, "images:alpine");
}

#[test]
fn faults_of_a_folder_name_their_file() {
    let folder = folder(&[
        ("infra/base.yml", "globl: {}\nnetwork_policies: []\n"),
        (
            "infra/domains/a.yml",
            "work: {subnet_id: 1}\nvault: {subnet_id: 1}\n",
        ),
        ("infra/domains/b.yml", "work: {subnet_id: 2}\n"),
        ("infra/domains/c.yml", "# nothing\n"),
        ("infra/domains/d.yml", "- a list\n"),
        (
            "infra/policies.yml",
            "network_policies: []\nshared_volumes: {}\n",
        ),
    ]);
    let Err(Faults(faults)) = open(Some(&folder.path().join("infra"))) else {
        panic!("read")
    };
    let found: Vec<_> = faults
        .iter()
        .map(|fault| {
            let path = Path::new(&fault.place.as_ref().unwrap().source.path);
            let name = path.file_name().unwrap().to_str().unwrap();
            format!("{name} {}", in_short(fault))
        })
        .collect();
    let expected = [
        "base.yml warning unknown-key 1:1 globl",
        "a.yml duplicate-subnet 2:20 1",
        "b.yml duplicate-domain 1:1 work",
        "c.yml warning empty-file 1:1 ",
        "d.yml wrong-type 1:1 -",
        "policies.yml duplicate-key 1:1 network_policies",
        "policies.yml warning unknown-key 2:1 shared_volumes",
    ];
    assert_eq!(found, expected);
}

#[test]
fn an_unknown_consumer_of_a_folder_is_none_of_these_files() {
    let folder = folder(&[
        ("infra/base.yml", QUICK_START),
        ("infra/domains/x.yml", "x: {subnet_id: 7}\n"),
    ]);
    let drawn = refused(&folder.path().join("infra"));
    assert!(
        drawn.starts_with("error[unknown-consumer]: `pro-dev` is not a machine in these files\n"),
        "{drawn}"
    );
}

#[test]
fn what_does_not_belong_into_the_folder_is_a_fault() {
    let outside = folder(&[("x.yml", "x: {subnet_id: 5}\n")]);
    let folder = folder(&[
        ("infra/domains/work.yaml", "work: {subnet_id: 1}\n"),
        ("infra/domains/notes.txt", ""),
        ("infra/domains/sub/deep.yml", ""),
        ("infra/readme.md", ""),
    ]);
    let infra = folder.path().join("infra");
    symlink(outside.path().join("x.yml"), infra.join("domains/x.yml")).unwrap();
    symlink(outside.path().join("x.yml"), infra.join("policies.yml")).unwrap();
    let fifo = infra.join("domains/fifo.yml");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    let expected = "\
error[not-a-file]: `FOLDER/infra/domains/fifo.yml` is a FIFO
  = help: this must be a regular file

error[symlink]: `FOLDER/infra/domains/x.yml` is a symbolic link
  = help: this must be a regular file

error[symlink]: `FOLDER/infra/policies.yml` is a symbolic link
  = help: this must be a regular file

error[missing-base]: `base.yml` is missing from `FOLDER/infra`
  = help: write one: it contains `project_name` and `global`, and may be empty

error[stray-file]: `FOLDER/infra/readme.md` is not read
  = help: this folder is only for base.yml, domains/ and policies.yml: move the file elsewhere

error[stray-file]: `FOLDER/infra/domains/notes.txt` is not read
  = help: this folder is only for *.yml: move the file elsewhere

error[stray-file]: `FOLDER/infra/domains/sub` is not read
  = help: this folder is only for *.yml: move the file elsewhere

error[stray-file]: `FOLDER/infra/domains/work.yaml` is not read
  = help: rename it to `work.yml`";
    assert_eq!(refused(&infra), expected);
    let linked = tempfile::tempdir().unwrap();
    let infra = linked.path().join("infra");
    fs::create_dir(&infra).unwrap();
    fs::write(infra.join("base.yml"), "").unwrap();
    symlink(folder.path().join("infra/domains"), infra.join("domains")).unwrap();
    assert_eq!(
        refused(&infra),
        "error[symlink]: `FOLDER/infra/domains` is a symbolic link\n  = help: this must be a folder"
    );
}

#[test]
fn an_unreadable_file_says_why() {
    // Root can read every file, but cannot follow a path through a file.
    let folder = folder(&[("file", "")]);
    let drawn = refused(&folder.path().join("file/infra.yml"));
    assert!(
        drawn.contains("[unreadable]") && drawn.contains("Not a directory"),
        "{drawn}"
    );
}
