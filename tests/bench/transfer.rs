//! Files sent and fetched over a channel, against the same bytes through a bare socket.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::listening::{self, Server};

const INFRA: &str = "
domains:
  d:
    subnet_id: 0
    machines:
      vault:
        services:
          - {name: inbox, tool: file_accept, consumers: [quiet, loud]}
          - {name: outbox, tool: file_provide, consumers: [quiet, loud]}
      quiet: {}
      loud: {}
";

/// Size of the file, in bytes.
pub(crate) const SIZE: u32 = 512 * 1024 * 1024;
const PIECE: usize = 1024 * 1024;
const ROUNDS: usize = 3;

/// Medians of one transfer.
pub(crate) struct Times {
    pub(crate) push: Duration,
    pub(crate) pull: Duration,
    /// The bytes through a socket into a file that is synced.
    pub(crate) floor: Duration,
}

/// Measures transfers of a file that is in the page cache, in turns with the floor.
pub(crate) fn times(anklume: impl Fn() -> Command, folder: &Path) -> Times {
    let folder = folder.join("transfer");
    std::fs::create_dir(&folder).unwrap();
    let services = listening::services(&anklume, &folder, INFRA);
    let portal = folder.join("portal");
    let mut serve = anklume();
    serve.env("ANKLUME_MCP_PORTAL", &portal);
    let server = Server::start(serve, &folder, "sockets", &services);
    let sockets = folder.join("quiet");
    std::fs::create_dir(&sockets).unwrap();
    symlink(server.socket("quiet"), sockets.join("vault.sock")).unwrap();
    let run = |arguments: &[&str]| {
        let mut client = anklume();
        client
            .current_dir(&folder)
            .env("ANKLUME_SOCKET_DIR", &sockets);
        crate::run(client.args(arguments));
    };
    let file = folder.join("file");
    let bytes = (0_u32..)
        .flat_map(u32::to_le_bytes)
        .take(usize::try_from(SIZE).unwrap());
    let bytes: Vec<u8> = bytes.collect();
    std::fs::write(&file, bytes).unwrap();
    let outgoing = portal.join("outgoing/all");
    std::fs::create_dir_all(&outgoing).unwrap();
    let (mut push, mut pull, mut floor) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        push.push(crate::timed(|| run(&["file", "push", "file"])));
        std::fs::rename(portal.join("incoming/quiet/file"), outgoing.join("fetched")).unwrap();
        pull.push(crate::timed(|| run(&["file", "pull", "fetched"])));
        let copy = folder.join("copy");
        floor.push(crate::timed(|| through_socket(&file, &copy)));
        for used in [folder.join("fetched"), outgoing.join("fetched"), copy] {
            std::fs::remove_file(used).unwrap();
        }
    }
    Times {
        push: crate::median(push),
        pull: crate::median(pull),
        floor: crate::median(floor),
    }
}

/// Sends a file through a Unix socket to a thread that writes and syncs it.
fn through_socket(from: &Path, to: &Path) {
    let (mut sender, mut receiver) = UnixStream::pair().unwrap();
    let mut to = File::create(to).unwrap();
    let receiving = thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        loop {
            match receiver.read(&mut piece)? {
                0 => return to.sync_all(),
                read => to.write_all(piece.get(..read).unwrap_or_default())?,
            }
        }
    });
    let mut from = File::open(from).unwrap();
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).unwrap() {
            0 => break,
            read => sender
                .write_all(piece.get(..read).unwrap_or_default())
                .unwrap(),
        }
    }
    drop(sender);
    let kept: io::Result<()> = receiving.join().unwrap();
    kept.unwrap();
}
