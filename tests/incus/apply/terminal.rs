//! On a terminal: the progress bar of `apply`, and the prompt of `destroy`.

use super::plan::SEED;
use crate::harness;
use crate::world::World;

/// Runs `anklume …` on a new terminal of 80 columns; types `answer` when the prompt is shown.
fn on_a_terminal(world: &World, args: &[&str], answer: Option<(&str, &str)>) -> (i32, String) {
    let run = world.anklume(args).env("TERM", "xterm");
    harness::on_a_terminal(run.command(), 80, answer)
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

#[test]
fn an_apply_is_a_picture() {
    const MACHINES: &str = "domains:
  {a}:
    subnet_id: 0
    machines:
      {a}-signer:
        services: [{name: file_sign, tool: gpg_sign, consumers: [{b}-dev]}]
  {b}:
    subnet_id: 1
    machines:
      {b}-dev: {}
";
    let world = World::new(MACHINES);
    let mut shown = String::new();
    for line in ["anklume apply", "anklume status", "anklume doctor"] {
        let args: Vec<&str> = line
            .split(' ')
            .skip(1)
            .chain(["--color", "always"])
            .collect();
        let ran = world.run(&args);
        shown.extend([
            format!("\u{1b}[31mroot@host\u{1b}[0m:\u{1b}[34m~/infra\u{1b}[0m# {line}\n"),
            ran.stdout,
        ]);
    }
    // Names that say something, as long as those of the test, so that the tables stay aligned.
    let domain = |name: &str| name.split('-').next().unwrap().to_owned();
    let keys = domain(&world.machine(0, "signer"));
    let work = domain(&world.machine(1, "dev"));
    let shown = shown.replace(&keys, "key").replace(&work, "job");
    assert!(
        shown.contains("open") && shown.contains("file_sign"),
        "{shown}"
    );
    harness::keep_for_picture("apply", &shown);
}
