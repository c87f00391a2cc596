//! Runs the binary in a temporary folder, with a clean environment, and compares the whole output.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// The binary under test.
pub(crate) const ANKLUME: &str = env!("CARGO_BIN_EXE_anklume");

/// The tester's environment variables that a run keeps; all others are removed.
const KEPT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "CARGO_MANIFEST_DIR"];

/// One run of `anklume` in a temporary folder: its arguments, environment, input and memory limit.
#[must_use = "nothing runs before `run`"]
pub(crate) struct Anklume {
    folder: tempfile::TempDir,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    stdin: Vec<u8>,
    memory: Option<u32>,
}

/// The output of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The folder, so that tests can check its files afterwards.
    pub(crate) folder: tempfile::TempDir,
    /// All of stdout.
    pub(crate) stdout: String,
    /// All of stderr.
    pub(crate) stderr: String,
    /// The exit code; -1 if a signal ended the run.
    pub(crate) status: i32,
}

/// The program, with a limit in KiB on its data segment.
pub(crate) fn within(kib: u32) -> Command {
    let mut shell = Command::new("/bin/sh");
    let limited = format!("ulimit -d {kib}; exec \"$0\" \"$@\"");
    shell.args(["-c", &limited, ANKLUME]);
    shell
}

impl Anklume {
    /// A run in an empty folder.
    pub(crate) fn new() -> Self {
        Self::in_folder(tempfile::tempdir().unwrap())
    }

    /// A run in the folder of an earlier run.
    pub(crate) fn in_folder(folder: tempfile::TempDir) -> Self {
        Self {
            folder,
            args: Vec::new(),
            env: BTreeMap::new(),
            stdin: Vec::new(),
            memory: None,
        }
    }

    /// Writes a file below the folder.
    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// Writes `infra.yml`.
    pub(crate) fn infra(self, content: &str) -> Self {
        self.file("infra.yml", content)
    }

    /// Adds arguments.
    pub(crate) fn args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(name.to_owned(), value.into());
        self
    }

    /// Sets the input on stdin.
    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sets a limit in KiB on the run's data segment.
    pub(crate) fn memory(mut self, kib: u32) -> Self {
        self.memory = Some(kib);
        self
    }

    /// The run's folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    /// The folder itself, for use in another run.
    pub(crate) fn into_folder(self) -> tempfile::TempDir {
        self.folder
    }

    /// The command, ready to start, with a clean environment.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.memory {
            None => Command::new(ANKLUME),
            Some(kib) => within(kib),
        };
        command.args(&self.args).current_dir(self.folder.path());
        scrub(&mut command, self.folder.path());
        command.envs(&self.env);
        command
    }

    /// Runs the command until it exits.
    pub(crate) fn run(self) -> Ran {
        let mut child = self
            .command()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = self.stdin;
        // In a separate thread: a child that answers before it has read everything must not block the test.
        let writer = std::thread::spawn(move || {
            // A child that exits without reading does not make the test fail.
            let _ = stdin.write_all(&bytes);
        });
        let output = ended_in_time(child, &self.args);
        writer.join().unwrap();
        Ran {
            folder: self.folder,
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
            status: output.status.code().unwrap_or(-1),
        }
    }
}

impl Ran {
    /// Asserts the whole result: exit code, stdout, stderr.
    #[track_caller]
    pub(crate) fn is(&self, status: i32, stdout: &str, stderr: &str) {
        assert_eq!(
            (self.status, self.stdout.as_str(), self.stderr.as_str()),
            (status, stdout, stderr),
            "stdout:\n{}\nstderr:\n{}",
            self.stdout,
            self.stderr
        );
    }

    /// Asserts success, with this text on stdout and nothing on stderr.
    #[track_caller]
    pub(crate) fn answers(&self, stdout: &str) {
        self.is(0, stdout, "");
    }

    /// Reads a file below the folder.
    #[track_caller]
    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(path)).unwrap()
    }
}

/// Waits for a process to exit.
///
/// # Panics
/// Kills the process and panics with its arguments if it takes far longer than any run in these tests should.
#[track_caller]
pub(crate) fn ended_in_time(child: Child, args: &[String]) -> Output {
    /// Maximum time for a run; everything that a run waits for takes less.
    const LONGEST: Timespec = Timespec {
        tv_sec: 100,
        tv_nsec: 0,
    };
    let pid = Pid::from_child(&child);
    let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let reader = std::thread::spawn(move || child.wait_with_output().unwrap());
    let mut ending = [PollFd::new(&handle, PollFlags::IN)];
    let ended = poll(&mut ending, Some(&LONGEST)).unwrap() > 0;
    if !ended {
        pidfd_send_signal(&handle, Signal::KILL).unwrap();
    }
    let output = reader.join().unwrap();
    assert!(ended, "{args:?} does not end: {output:?}");
    output
}

/// Removes everything that depends on the tester from a command's environment; `home` replaces the user's home.
pub(crate) fn scrub(command: &mut Command, home: &Path) {
    command.env_clear();
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("HOME", home).env("LC_ALL", "C.UTF-8");
}

/// Writes a program that any user can run.
/// A separate process writes the file. If this process wrote it, a child started by another thread could inherit the
/// open descriptor, and the kernel refuses to run a file that is open for writing (`ETXTBSY`).
#[track_caller]
pub(crate) fn write_program(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut install = Command::new("install")
        .args(["-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = install.stdin.take().unwrap();
    stdin.write_all(content.as_ref()).unwrap();
    drop(stdin);
    assert!(install.wait().unwrap().success());
}

/// Copies the program under test so that any user can run it; see [`write_program`].
#[track_caller]
pub(crate) fn copy_of_anklume(path: &Path) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let status = Command::new("install")
        .args(["-m", "755", ANKLUME])
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success());
}

/// Returns whether this computer has what a test needs. Otherwise, fails in CI and reports a skip elsewhere.
#[track_caller]
pub(crate) fn have(part: &str, there: bool) -> bool {
    if !there {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "{part} is missing, and with CI=true no test may be skipped"
        );
        // No setup can change which user runs the tests.
        let how = if part == "root" {
            ": run the tests as root"
        } else {
            "; tests/setup.sh installs it"
        };
        let thread = std::thread::current();
        let test = thread.name().unwrap_or_default();
        let line = format!("skipped\t{test}\t{part} is missing{how}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        // The runner hides the output of passing tests; tests/run.sh shows and counts these lines.
        if let Some(log) = std::env::var_os("ANKLUME_TEST_SKIPPED") {
            let mut log = File::options().append(true).create(true).open(log).unwrap();
            log.write_all(line.as_bytes()).unwrap();
        }
    }
    there
}

/// Returns whether a program is on the PATH; see [`have`].
#[track_caller]
pub(crate) fn have_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    have(name, there)
}

/// Runs a command on a new terminal with that many columns, and types `answer` when the prompt is shown; returns the exit
/// code and everything that was shown.
pub(crate) fn on_a_terminal(
    command: Command,
    columns: u16,
    answer: Option<(&str, &str)>,
) -> (i32, String) {
    let (mut child, mut terminal) = at_a_terminal(command, columns);
    let mut answer = answer;
    let (mut shown, mut chunk) = (Vec::new(), [0; 4096]);
    // Reading fails once no process has the other end of the terminal open.
    while let Ok(count @ 1..) = terminal.read(&mut chunk) {
        shown.extend_from_slice(chunk.get(..count).unwrap());
        if let Some((prompt, keys)) = answer
            && String::from_utf8_lossy(&shown).ends_with(prompt)
        {
            terminal.write_all(keys.as_bytes()).unwrap();
            answer = None;
        }
    }
    let status = child.wait().unwrap().code().unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert_eq!(answer, None, "never asked: {shown}");
    (status, shown)
}

/// Runs a command on a new terminal: types the keys of each step, and waits until the terminal shows its text after that.
/// Ends the command after the last step.
pub(crate) fn typed(command: Command, steps: &[(String, String)]) {
    let (mut child, mut terminal) = at_a_terminal(command, 120);
    let mut chunk = [0; 4096];
    for (keys, expected) in steps {
        let mut shown = Vec::new();
        terminal.write_all(keys.as_bytes()).unwrap();
        while !String::from_utf8_lossy(&shown).contains(expected) {
            let count = terminal.read(&mut chunk).unwrap_or_default();
            let text = String::from_utf8_lossy(&shown);
            assert!(count > 0, "ended after {keys:?} with {text:?}");
            shown.extend_from_slice(chunk.get(..count).unwrap());
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Starts a command on a new terminal; returns the terminal's other end.
fn at_a_terminal(mut command: Command, columns: u16) -> (Child, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&ours, size).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let theirs = || -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        open(&path, flags, Mode::empty()).unwrap()
    };
    command.stdin(theirs()).stdout(theirs()).stderr(theirs());
    // Its copies of the other end are closed with it; the running child keeps its own.
    (command.spawn().unwrap(), File::from(ours))
}

/// Starts a program that writes one line to stdout when it is ready; returns that line too.
pub(crate) fn announced(mut command: Command) -> (Child, String) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}

/// Starts an X server on a free display; returns its name too.
pub(crate) fn x_server() -> (Child, String) {
    let mut xvfb = Command::new("Xvfb");
    // Xvfb finds a free number itself, and prints it on stdout.
    xvfb.args(["-displayfd", "1", "-screen", "0", "640x480x24", "-noreset"]);
    xvfb.args(["-nolisten", "tcp"]);
    let (xvfb, number) = announced(xvfb);
    (xvfb, format!(":{number}"))
}

/// Bytes that begin as a PNG does: nothing decodes them.
pub(crate) fn png(size: usize) -> Vec<u8> {
    let start = b"\x89PNG\r\n\x1a\n".iter().copied();
    let rest = (0_u32..).flat_map(u32::to_le_bytes);
    start.chain(rest).take(size).collect()
}

/// A program in the Python environment that `tests/setup.sh` creates; see [`have`].
#[track_caller]
pub(crate) fn python(program: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("target/python/bin")
        .join(program);
    have(&format!("target/python/bin/{program}"), path.is_file()).then_some(path)
}

/// Keeps what a terminal showed for a picture of the book, if pictures are drawn (`packaging/pictures.sh`).
pub(crate) fn keep_for_picture(name: &str, shown: &str) {
    if let Some(folder) = std::env::var_os("ANKLUME_PICTURES") {
        std::fs::write(Path::new(&folder).join(name), shown).unwrap();
    }
}
