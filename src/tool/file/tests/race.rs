//! Tests a race that an earlier anklume lost: a folder in the portal alternates with a link while files are handed
//! over. 50,000 calls to each tool by default; `ANKLUME_TEST_LONG=1` makes ten times as many.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, open, renameat_with, unlinkat};

use crate::catalogue::PortalPath;
use crate::policy::Caller;
use crate::tool::BlockingStop;
use crate::tool::file::accept::{Upload, UploadOptions, UploadPiece};
use crate::tool::file::provide::FileSource;
use crate::tool::{Copies, Settings};

/// Returns the number of calls to each tool.
fn calls() -> u64 {
    if std::env::var_os("ANKLUME_TEST_LONG").is_some() {
        500_000
    } else {
        50_000
    }
}

/// A portal whose folder `d` is constantly swapped with a link that leads out of the portal.
struct Field {
    root: tempfile::TempDir,
    portal: PathBuf,
    settings: Settings,
    over: AtomicBool,
    exchanges: AtomicU64,
}

/// Ends the exchange when dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Field {
    fn new() -> Self {
        // In memory if possible: the race is about names, not the disk.
        let memory = Path::new("/dev/shm");
        let root = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let root = root.unwrap();
        let portal = root.path().join("portal");
        for folder in ["portal/d", "outside"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        symlink(root.path().join("outside"), portal.join("link")).unwrap();
        Self {
            settings: Settings::new(portal.clone(), root.path().join("run")),
            root,
            portal,
            over: AtomicBool::new(false),
            exchanges: AtomicU64::new(0),
        }
    }

    fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    /// Exchanges the folder and the link until `over` is set.
    fn exchange(&self) {
        while !self.over.load(Ordering::Relaxed) {
            let (folder, link) = (self.portal.join("d"), self.portal.join("link"));
            renameat_with(CWD, folder, CWD, link, RenameFlags::EXCHANGE).unwrap();
            self.exchanges.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Runs calls during the exchange; returns how many succeeded and how many were refused.
    fn run(&self, call: impl Fn(u64) -> bool) -> (u64, u64) {
        thread::scope(|scope| {
            scope.spawn(|| self.exchange());
            // Ends the exchange even if an assertion fails.
            let over = Over(&self.over);
            let done = (0..calls()).filter(|index| call(*index)).count();
            drop(over);
            let done = u64::try_from(done).unwrap();
            (done, calls() - done)
        })
    }

    /// Checks that the calls and the exchange raced: both outcomes occurred, with more than 1000 exchanges.
    fn was_raced(&self, (done, refused): (u64, u64)) {
        let exchanges = self.exchanges.load(Ordering::Relaxed);
        assert!(done > 0 && refused > 0, "done {done}, refused {refused}");
        assert!(exchanges > 1000, "exchanges {exchanges}");
    }
}

#[test]
fn file_provide_never_reads_outside_the_portal() {
    let field = Field::new();
    fs::write(field.portal.join("d/f"), "inside").unwrap();
    fs::write(field.outside().join("f"), "outside").unwrap();
    let path = PortalPath::new("d/f").unwrap();
    let raced = field.run(|_| {
        let read = FileSource::open(&field.settings, &path, &Caller::Operator)
            .and_then(|source| source.whole(Copies::Two));
        if let Ok(outcome) = &read {
            // "inside" in base64.
            assert_eq!(outcome.text, "aW5zaWRl", "read outside the portal");
        }
        read.is_ok()
    });
    field.was_raced(raced);
}

#[test]
fn file_accept_never_writes_outside_the_portal() {
    let field = Field::new();
    let stop = BlockingStop::default();
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let folder = open(field.portal.join("d"), flags, Mode::empty()).unwrap();
    let raced = field.run(|index| {
        let piece = UploadPiece {
            path: PortalPath::new(&format!("d/f{}", index % 100)).unwrap(),
            caller: Caller::Operator,
            data: b"x".to_vec(),
            options: UploadOptions::default(),
            last: true,
            resume: false,
        };
        let written = Upload::begin(&field.settings, &piece, &stop)
            .and_then(|upload| upload.take(&field.settings, &piece, &stop))
            .and_then(|upload| upload.finish(&field.settings, &stop));
        if index % 100 == 99 {
            empty(&folder);
        }
        written.is_ok()
    });
    assert_eq!(
        fs::read_dir(field.outside()).unwrap().count(),
        0,
        "written outside the portal"
    );
    field.was_raced(raced);
}

/// Frees the names for the next round in the folder itself, whichever path it currently has.
fn empty(folder: &OwnedFd) {
    for index in 0..100 {
        let _ = unlinkat(folder, format!("f{index}"), AtFlags::empty());
    }
}
