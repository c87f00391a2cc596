//! On a terminal: the progress bar of `apply`, and the prompt of `destroy`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::plan::SEED;
use crate::world::World;

/// Runs `anklume …` on a new terminal, and types `answer` when the prompt is shown; returns the exit code and everything
/// that was shown.
fn on_a_terminal(world: &World, args: &[&str], answer: Option<(&str, &str)>) -> (i32, String) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let theirs = || -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        open(&path, flags, Mode::empty()).unwrap()
    };
    let run = world.anklume(args).env("TERM", "xterm");
    let mut command = run.command();
    command.stdin(theirs()).stdout(theirs()).stderr(theirs());
    let mut child = command.spawn().unwrap();
    // Close our copies of the other end; the running child keeps its own.
    drop(command);
    let mut ours = File::from(ours);
    let mut answer = answer;
    let (mut shown, mut chunk) = (Vec::new(), [0; 4096]);
    // Reading fails once no process has the other end of the terminal open.
    while let Ok(count @ 1..) = ours.read(&mut chunk) {
        shown.extend_from_slice(chunk.get(..count).unwrap());
        if let Some((prompt, keys)) = answer
            && String::from_utf8_lossy(&shown).ends_with(prompt)
        {
            ours.write_all(keys.as_bytes()).unwrap();
            answer = None;
        }
    }
    let status = child.wait().unwrap().code().unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert_eq!(answer, None, "never asked: {shown}");
    (status, shown)
}

#[test]
fn a_bar_shows_how_far_apply_is_and_destroy_deletes_when_it_is_told_yes_and_only_then() {
    const QUESTION: &str = "delete all of this? type `yes`: ";
    let world = World::new(SEED);
    let (status, shown) = on_a_terminal(&world, &["apply"], None);
    assert_eq!(status, 0, "{shown}");
    assert!(shown.contains("░") && shown.contains(" 20/21 "), "{shown}");
    assert!(shown.ends_with("done: 24 changes\r\n"), "{shown}");
    // In a pipe, there is no bar.
    let ran = world.run(&["apply"]);
    assert_eq!(
        (ran.stderr.contains('░'), ran.stderr.contains('\u{1b}')),
        (false, false)
    );

    let dev = world.machine(1, "dev");
    let destroy = ["destroy", "--machine", &dev];
    for keys in ["no\n", "y\n", "YES\n", "\n", "\u{4}"] {
        let (status, shown) = on_a_terminal(&world, &destroy, Some((QUESTION, keys)));
        assert_eq!(status, 1, "{keys:?}: {shown}");
        assert!(
            shown.contains(&format!("- machine {dev}\u{1b}[0m\r\n")),
            "{keys:?}: {shown}"
        );
        assert!(shown.contains("nothing was deleted"), "{keys:?}: {shown}");
        assert!(world.exec(1, "dev", "true").0, "{keys:?}");
    }
    let (status, shown) = on_a_terminal(&world, &destroy, Some((QUESTION, "yes\n")));
    assert_eq!(status, 0, "{shown}");
    assert!(!world.incus(1, &["info", &dev]).status.success());
}
