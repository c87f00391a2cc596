//! Processes on this computer, including those in its machines.

use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Maximum time for a killed process to disappear.
const GONE: Timespec = Timespec {
    tv_sec: 30,
    tv_nsec: 0,
};

/// The processes whose command line matches, word by word.
pub(crate) fn processes(is: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number: &i32| {
            let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let words: Vec<String> = line.split('\0').map(str::to_owned).collect();
            is(&words)
        })
        .collect()
}

/// The only process whose command line matches.
#[track_caller]
pub(crate) fn process(is: impl Fn(&[String]) -> bool) -> i32 {
    let all = processes(is);
    assert_eq!(all.len(), 1, "{all:?}");
    all.first().copied().unwrap()
}

/// The process that carries a channel's bytes at the provider's or the consumer's end; `socket` is the host's socket.
#[track_caller]
pub(crate) fn proxy(provider: bool, socket: &str) -> i32 {
    let host = format!("unix:{socket}");
    process(|words| {
        // After `--` come process IDs and the two addresses: the listening one, then the connecting one.
        let mut rest = words.iter().skip_while(|word| *word != "--");
        let mut addresses = rest.by_ref().filter(|word| word.starts_with("unix:"));
        let (listens, connects) = (addresses.next(), addresses.next());
        let end = if provider { listens } else { connects };
        words.iter().any(|word| word == "forkproxy") && end == Some(&host)
    })
}

/// Sends a signal.
#[track_caller]
pub(crate) fn signal(process: i32, signal: Signal) {
    kill_process(Pid::from_raw(process).unwrap(), signal).unwrap();
}

/// Kills a process and waits until it is gone or a zombie.
#[track_caller]
pub(crate) fn kill(process: i32) {
    let number = Pid::from_raw(process).unwrap();
    let handle = pidfd_open(number, PidfdFlags::empty()).unwrap();
    signal(process, Signal::KILL);
    let mut ending = [PollFd::new(&handle, PollFlags::IN)];
    assert_eq!(
        poll(&mut ending, Some(&GONE)).unwrap(),
        1,
        "{process} stays"
    );
    assert!(!Path::new(&format!("/proc/{process}/exe")).exists());
}
