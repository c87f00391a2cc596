//! Transfers of files over connections that break, and under attack.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};

use super::files::{alice, incoming};
use super::world::{Listening, World, ended, until, wait};
use crate::harness::have;

const MIB: usize = 1024 * 1024;

/// Content that differs from piece to piece.
fn large(size: usize) -> Vec<u8> {
    let bytes = (0_u32..).flat_map(u32::to_le_bytes);
    bytes.take(size).collect()
}

/// The bytes that one connection passed on, to the server and from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Passed {
    up: usize,
    down: usize,
}

/// Stands between alice and the server's socket: the first connection is cut once it has passed on `cut` bytes.
fn cut_once(world: &World, server: &Listening, cut: Passed) -> JoinHandle<[Passed; 2]> {
    let own = world.path("alice/vault.sock");
    fs::remove_file(&own).unwrap();
    let listener = UnixListener::bind(&own).unwrap();
    let server = server.socket("alice");
    let unlimited = Passed {
        up: usize::MAX,
        down: usize::MAX,
    };
    thread::spawn(move || {
        [cut, unlimited].map(|max| {
            let client = listener.accept().unwrap().0;
            let server = UnixStream::connect(&server).unwrap();
            pass_on(&client, &server, max)
        })
    })
}

/// Passes bytes on in both directions until one side ends or a limit is reached, then closes both.
fn pass_on(client: &UnixStream, server: &UnixStream, max: Passed) -> Passed {
    let copy = |from: &UnixStream, to: &UnixStream, max: usize| {
        let (mut from, mut to) = (from.take(max as u64), to);
        let copied = std::io::copy(&mut from, &mut to).unwrap_or_default();
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
        usize::try_from(copied).unwrap()
    };
    thread::scope(|scope| {
        let down = scope.spawn(|| copy(server, client, max.down));
        let up = copy(client, server, max.up);
        let down = down.join().unwrap();
        Passed { up, down }
    })
}

#[test]
fn a_file_whose_connection_breaks_goes_on_where_it_stopped() {
    let (world, server) = alice();
    let content = large(7 * MIB + 1);
    fs::write(world.path("film"), &content).unwrap();
    // Its owner may not write it, but must be able to go on.
    let read_only = fs::Permissions::from_mode(0o444);
    fs::set_permissions(world.path("film"), read_only.clone()).unwrap();
    let cut = Passed {
        up: 5 * MIB,
        down: usize::MAX,
    };
    let between = cut_once(&world, &server, cut);
    world.run(&["file", "push", "-i", "vault", "film"]).is(
        0,
        "",
        "Cannot reach MCP server: the connection was closed before the answer arrived; trying again in 0.5 s\n\
         sent film as incoming/alice/film\n",
    );
    assert!(fs::read(world.path(&incoming("film"))).unwrap() == content);
    let landed = fs::metadata(world.path(&incoming("film"))).unwrap();
    assert_eq!(
        landed.permissions().mode() & 0o7777,
        read_only.mode() & 0o7777
    );
    // In base64, more than 9 MiB; three pieces of 1 MiB had arrived before the cut.
    let [_, second] = between.join().unwrap();
    assert!(second.up < 7 * MIB, "{second:?}");
    assert_eq!(entries(&world.path("portal/incoming/alice")), ["film"]);
    server.end();
}

#[test]
fn a_fetch_whose_connection_breaks_goes_on_where_it_stopped() {
    let (world, server) = alice();
    let content = large(12 * MIB + 1);
    fs::create_dir_all(world.path("portal/outgoing/all/films")).unwrap();
    fs::create_dir(world.path("here")).unwrap();
    fs::write(world.path("portal/outgoing/all/films/one"), &content).unwrap();
    fs::write(world.path("portal/outgoing/all/films/two"), "two").unwrap();
    for (name, target, said) in [
        ("films/one", "here/one", "created here/one\n"),
        (
            "films",
            "here/films/one",
            "created here/films with 2 files\n",
        ),
    ] {
        // The first piece has 8 MiB, the second one 1 MiB; in base64, 12 MiB together.
        let cut = Passed {
            up: usize::MAX,
            down: 13 * MIB,
        };
        let between = cut_once(&world, &server, cut);
        let ran = world.run(&["file", "pull", "-i", "vault", name, "-o", "here"]);
        ran.is(
            0,
            "",
            &format!("Cannot reach MCP server: the connection was closed before the answer arrived; trying again in 0.5 s\n{said}"),
        );
        assert!(fs::read(world.path(target)).unwrap() == content);
        let [_, second] = between.join().unwrap();
        assert!(second.down < 6 * MIB, "{second:?}");
    }
    assert_eq!(entries(&world.path("here")), ["films", "one"]);
    server.end();
}

/// Stands between alice and the server's socket, for one connection: each answer names another digest than the server's.
fn lie(world: &World, server: &Listening) -> JoinHandle<()> {
    let own = world.path("alice/vault.sock");
    fs::remove_file(&own).unwrap();
    let listener = UnixListener::bind(&own).unwrap();
    let server = server.socket("alice");
    thread::spawn(move || {
        let client = listener.accept().unwrap().0;
        let server = UnixStream::connect(&server).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = std::io::copy(&mut &client, &mut &server);
                let _ = server.shutdown(Shutdown::Both);
            });
            let name = "\"sha256\":\"";
            for line in BufReader::new(&server).lines() {
                let line = line.unwrap().replace(name, &format!("{name}0"));
                if writeln!(&client, "{line}").is_err() {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
        });
    })
}

#[test]
fn an_answer_that_contradicts_itself_is_not_fetched_again() {
    let (world, server) = alice();
    fs::create_dir_all(world.path("portal/outgoing/all")).unwrap();
    fs::create_dir(world.path("here")).unwrap();
    fs::write(world.path("portal/outgoing/all/large"), large(9 * MIB)).unwrap();
    fs::write(world.path("portal/outgoing/all/small"), "small").unwrap();
    for (name, why) in [
        ("small", "the content does not have its declared digest"),
        (
            "large",
            "the digest of the pieces does not match that of the whole",
        ),
    ] {
        let between = lie(&world, &server);
        let ran = world.run(&["file", "pull", "-i", "vault", name, "-o", "here"]);
        let why = format!(
            "error: Cannot reach MCP server: the server's answer to `tools/call` is unusable: {why}\n"
        );
        ran.is(4, "", &why);
        between.join().unwrap();
        assert_eq!(entries(&world.path("here")), [""; 0]);
    }
    server.end();
}

#[test]
fn a_run_that_was_killed_is_taken_up_by_the_next_unless_the_file_changed() {
    let (world, server) = alice();
    let content = large(7 * MIB);
    fs::write(world.path("film"), &content).unwrap();
    let half = |name: &str| {
        let cut = Passed {
            up: 5 * MIB,
            down: usize::MAX,
        };
        let between = cut_once(&world, &server, cut);
        let mut killed = world.command(&["file", "push", "-i", "vault", name]);
        let mut killed = killed.stderr(Stdio::null()).spawn().unwrap();
        until("a file is kept", || {
            entries(&world.path("portal/incoming/alice"))
                .iter()
                .any(|name| name.starts_with(".anklume-"))
        });
        // It may be waiting to try again.
        until("it is cut", || {
            killed.kill().unwrap();
            wait(&mut killed);
            true
        });
        between
    };
    fs::create_dir_all(world.path("portal/incoming/alice")).unwrap();
    let between = half("film");
    world.run(&["file", "push", "-i", "vault", "film"]).is(
        0,
        "",
        "sent film as incoming/alice/film\n",
    );
    let _ = between.join().unwrap();
    assert!(fs::read(world.path(&incoming("film"))).unwrap() == content);
    // Another content of the same size and time: what was received is discarded, and all of it is sent.
    fs::remove_file(world.path(&incoming("film"))).unwrap();
    let between = half("film");
    let time = fs::metadata(world.path("film"))
        .unwrap()
        .modified()
        .unwrap();
    let changed: Vec<u8> = content.iter().map(|byte| !byte).collect();
    fs::write(world.path("film"), &changed).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(world.path("film"))
        .unwrap();
    file.set_modified(time).unwrap();
    world.run(&["file", "push", "-i", "vault", "film"]).is(
        0,
        "",
        "sent film as incoming/alice/film\n",
    );
    let _ = between.join().unwrap();
    assert!(fs::read(world.path(&incoming("film"))).unwrap() == changed);
    assert_eq!(entries(&world.path("portal/incoming/alice")), ["film"]);
    server.end();
}

/// The number of calls in the log.
fn calls(world: &World) -> usize {
    if world.path("log/audit.jsonl").exists() {
        world.logged("call").len()
    } else {
        0
    }
}

/// A run of `file push - --name NAME` whose stdin is still open, of which the provider has at least one piece.
fn half_piped(world: &World, name: &str) -> Child {
    let before = calls(world);
    let mut push = world
        .command(&["file", "push", "-i", "vault", "-", "--name", name])
        .stdin(Stdio::piped())
        .stderr(fs::File::create(world.path("stderr")).unwrap())
        .spawn()
        .unwrap();
    push.stdin
        .as_mut()
        .unwrap()
        .write_all(&large(3 * MIB))
        .unwrap();
    until("a piece arrived", || calls(world) > before);
    push
}

/// Ends its stdin, and returns what it said.
fn rest(world: &World, mut push: Child) -> (i32, String) {
    drop(push.stdin.take());
    let status = wait(&mut push);
    (status, fs::read_to_string(world.path("stderr")).unwrap())
}

#[test]
fn a_folder_that_becomes_a_link_or_leaves_the_portal_leads_nowhere() {
    for moved in [false, true] {
        let (world, server) = alice();
        fs::create_dir_all(world.path(&incoming("d"))).unwrap();
        fs::create_dir(world.path("outside")).unwrap();
        let push = half_piped(&world, "d/f");
        fs::rename(world.path(&incoming("d")), world.path("outside/d")).unwrap();
        if !moved {
            symlink(world.path("outside"), world.path(&incoming("d"))).unwrap();
        }
        let (status, said) = rest(&world, push);
        let why = if moved {
            "leads out of the portal"
        } else {
            "leads through a symbolic link, which is not followed"
        };
        let why =
            format!("error: `-` was not sent: the provider reports: `incoming/alice/d/f` {why}\n");
        assert_eq!((status, said), (1, why));
        assert_eq!(entries(&world.path("outside")), ["d"]);
        assert!(entries(&world.path("outside/d")).is_empty());
        // The positive control.
        fs::create_dir_all(world.path(&incoming("e"))).unwrap();
        assert_eq!(rest(&world, half_piped(&world, "e/f")).0, 0);
        assert!(fs::read(world.path(&incoming("e/f"))).unwrap() == large(3 * MIB));
        server.end();
    }
}

#[test]
fn a_folder_that_becomes_a_link_after_it_was_listed_is_not_read_through() {
    let (world, server) = alice();
    for folder in ["tree/a", "secret"] {
        fs::create_dir_all(world.path(folder)).unwrap();
        world.write(&format!("{folder}/f"), folder);
    }
    // The folder is listed before the connection is opened, which waits here.
    let own = world.path("alice/vault.sock");
    fs::remove_file(&own).unwrap();
    let listener = UnixListener::bind(&own).unwrap();
    let socket = server.socket("alice");
    let push = world.command(&["file", "push", "-i", "vault", "tree"]);
    let running = thread::spawn(move || ended(push));
    let client = listener.accept().unwrap().0;
    fs::rename(world.path("tree/a"), world.path("tree/b")).unwrap();
    symlink(world.path("secret"), world.path("tree/a")).unwrap();
    let unlimited = Passed {
        up: usize::MAX,
        down: usize::MAX,
    };
    pass_on(&client, &UnixStream::connect(socket).unwrap(), unlimited);
    running.join().unwrap().is(
        1,
        "",
        "error: `tree/a/f` is neither a file nor a folder\n  = help: links, devices and pipes are not sent\n",
    );
    assert!(!world.path("portal/incoming").exists());
    server.end();
}

#[test]
fn a_quota_that_is_met_in_the_middle_leaves_nothing() {
    let (world, server) = alice();
    fs::create_dir_all(world.path("portal/incoming/alice")).unwrap();
    // All but 4 MiB of the limit, without using any disk.
    let filler = fs::File::create(world.path(&incoming("filler"))).unwrap();
    filler.set_len((1024 - 4) * MIB as u64).unwrap();
    let whole = large(6 * MIB);
    let piped = world.run_with(&["file", "push", "-", "--name", "piped"], &whole);
    piped.is(
        1,
        "",
        "error: `-` was not sent: the provider reports: `incoming/alice` holds 1020.0 MiB, and 5.0 MiB more would exceed its limit of 1.0 GiB; remove files from it on the provider\n",
    );
    // With its size announced, it is refused before a byte is sent.
    fs::write(world.path("known"), &whole).unwrap();
    let known = world.run(&["file", "push", "known"]);
    known.is(
        1,
        "",
        "error: `known` was not sent: the provider reports: `incoming/alice` holds 1020.0 MiB, and 6.0 MiB more would exceed its limit of 1.0 GiB; remove files from it on the provider\n",
    );
    assert_eq!(entries(&world.path("portal/incoming/alice")), ["filler"]);
    // The positive control.
    fs::write(world.path("fits"), large(3 * MIB)).unwrap();
    world
        .run(&["file", "push", "fits"])
        .is(0, "", "sent fits as incoming/alice/fits\n");
    server.end();
}

/// A small file system; dropping it unmounts it.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn on(folder: &Path) -> Self {
        let options = ["-t", "tmpfs", "-o", "size=5m,mode=700", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(folder).status();
        assert!(mounted.unwrap().success());
        Self(folder.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_disk_that_is_full_in_the_middle_keeps_nothing() {
    if !have("root", rustix::process::geteuid().is_root()) {
        return;
    }
    let (world, server) = alice();
    let disk = SmallDisk::on(&world.path("portal"));
    let piped = world.run_with(&["file", "push", "-", "--name", "piped"], &large(8 * MIB));
    piped.is(
        1,
        "",
        "error: `-` was not sent: the provider reports: cannot write `incoming/alice/piped`: No space left on device (os error 28)\n",
    );
    fs::write(world.path("known"), large(8 * MIB)).unwrap();
    let known = world.run(&["file", "push", "known"]);
    assert_eq!((known.status, known.stdout.as_str()), (1, ""));
    let begin = "error: `known` was not sent: the provider reports: 8388608 bytes do not fit: the portal's disk has ";
    assert!(known.stderr.starts_with(begin), "{}", known.stderr);
    fs::write(world.path("fits"), large(3 * MIB)).unwrap();
    world
        .run(&["file", "push", "fits"])
        .is(0, "", "sent fits as incoming/alice/fits\n");
    assert_eq!(entries(&world.path("portal/incoming/alice")), ["fits"]);
    server.end();
    drop(disk);
}

#[test]
fn of_two_that_send_one_name_one_wins_and_nothing_is_mixed() {
    let (world, server) = alice();
    let contents = [large(3 * MIB), vec![7; 3 * MIB]];
    let both = Arc::new(Barrier::new(2));
    let runs = [0, 1].map(|index| {
        let folder = format!("from{index}");
        fs::create_dir(world.path(&folder)).unwrap();
        fs::write(world.path(&folder).join("f"), &contents[index]).unwrap();
        let file = format!("{folder}/f");
        let push = world.command(&["file", "push", "-i", "vault", &file]);
        let both = Arc::clone(&both);
        thread::spawn(move || {
            both.wait();
            ended(push)
        })
    });
    let ran = runs.map(|run| run.join().unwrap());
    let winners: Vec<usize> = (0..2).filter(|index| ran[*index].status == 0).collect();
    let &[winner] = winners.as_slice() else {
        panic!("{ran:?}");
    };
    let loser = &ran[1 - winner];
    let exists = format!(
        "error: `from{}/f` was not sent: the provider reports: `incoming/alice/f` already exists, and nothing is overwritten; choose another name\n  = help: its content differs; send this one with `--name NAME`\n",
        1 - winner
    );
    assert_eq!((loser.status, loser.stderr.as_str()), (1, exists.as_str()));
    assert!(fs::read(world.path(&incoming("f"))).unwrap() == contents[winner]);
    assert_eq!(entries(&world.path("portal/incoming/alice")), ["f"]);
    server.end();
}

/// The names in a folder, in order.
fn entries(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}
