//! Reads a log that a server is writing: the lines that are there, and then each new one, over its rotations.

use std::fs::File;
use std::io::{self, BufReader, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::{stdin, stdout};

use crate::audit;
use crate::audit::verify::{LINE_MAX, next_line};

/// Pause between two looks at the log.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};
/// How often the host is told that this process is still there: more often than it waits for a line.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// What a follower does with the log.
pub(super) trait LogReader {
    /// Takes a line.
    fn line(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Is called when all lines have been taken, and then from time to time as long as there are no new ones.
    fn caught_up(&mut self) -> io::Result<()>;
    /// Is called when the log is no longer the one that was read: only its server rotates it, and nobody shortens it.
    fn replaced(&mut self);
}

/// A file of the log, read up to its present end.
struct LogFile {
    reader: BufReader<File>,
    /// Device and inode: a rotation gives the file another name.
    id: (u64, u64),
    /// The beginning of a line that is being written.
    begun: Vec<u8>,
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        Ok(Self {
            reader: BufReader::new(file),
            id: (metadata.dev(), metadata.ino()),
            begun: Vec::new(),
        })
    }

    /// Passes on the new lines; with `to_the_end`, an unfinished one too.
    fn read(&mut self, reader: &mut impl LogReader, to_the_end: bool) -> io::Result<()> {
        let length = self.reader.get_ref().metadata()?.len();
        if length < self.reader.stream_position()? {
            reader.replaced();
            self.reader.seek(SeekFrom::Start(0))?;
            self.begun.clear();
        }
        while let Some((bytes, is_whole)) = next_line(&mut self.reader)? {
            // A longer line is not intact, whatever follows.
            if self.begun.len() <= LINE_MAX {
                self.begun.extend(bytes);
            }
            if is_whole {
                reader.line(&std::mem::take(&mut self.begun))?;
            }
        }
        if to_the_end && !self.begun.is_empty() {
            reader.line(&std::mem::take(&mut self.begun))?;
        }
        Ok(())
    }
}

/// Follows the log until stdout is closed, and, with `with_stdin`, until stdin is.
pub(super) fn follow(path: &Path, with_stdin: bool, reader: &mut impl LogReader) -> io::Result<()> {
    let mut files = audit::files(path)?;
    let mut current: Option<LogFile> = None;
    let mut told: Option<Instant> = None;
    loop {
        for file in &files {
            if let Some(mut before) = current.replace(LogFile::open(file)?) {
                before.read(reader, true)?;
            }
            if let Some(opened) = &mut current {
                opened.read(reader, false)?;
            }
        }
        if let (true, Some(opened)) = (files.is_empty(), &mut current) {
            opened.read(reader, false)?;
        }
        if told.is_none_or(|told| told.elapsed() >= SIGN_OF_LIFE) {
            reader.caught_up()?;
            told = Some(Instant::now());
        }
        if is_over(with_stdin)? {
            return Ok(());
        }
        files = newer(path, current.as_ref(), reader)?;
    }
}

/// Returns the files of the log that were created after the current one.
fn newer(
    path: &Path,
    current: Option<&LogFile>,
    reader: &mut impl LogReader,
) -> io::Result<Vec<PathBuf>> {
    let mut files = audit::files(path)?;
    let is_current = |file: &PathBuf| {
        let id = file.metadata().map(|file| (file.dev(), file.ino()));
        id.is_ok_and(|id| current.is_some_and(|current| current.id == id))
    };
    let at = files.iter().position(is_current);
    if let Some(at) = at {
        files.drain(..=at);
    } else if current.is_some() {
        // The older files were read before.
        files.retain(|file| file == path);
        if !files.is_empty() {
            reader.replaced();
        }
    }
    Ok(files)
}

/// Waits for the next look; returns whether nobody reads stdout any more, or stdin has ended.
fn is_over(with_stdin: bool) -> io::Result<bool> {
    let (output, input) = (stdout(), stdin());
    let mut watched = vec![PollFd::new(&output, PollFlags::empty())];
    if with_stdin {
        watched.push(PollFd::new(&input, PollFlags::IN));
    }
    poll(&mut watched, Some(&LOOK))?;
    let mut events = watched.iter().map(PollFd::revents);
    let is_closed = events
        .next()
        .is_some_and(|output| output.intersects(PollFlags::ERR | PollFlags::HUP));
    if events.next().is_some_and(|input| !input.is_empty()) {
        let mut ignored = [0; 64];
        return Ok(is_closed || rustix::io::read(input, &mut ignored)? == 0);
    }
    Ok(is_closed)
}
