//! The command line as a whole: help, usage errors, completions, man page.

use crate::harness::Anklume;

#[test]
fn without_arguments_help_is_printed_and_it_is_a_usage_error() {
    let ran = Anklume::new().run();
    assert_eq!(ran.status, 2);
    assert!(ran.stderr.contains("Usage: anklume"), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
}

#[test]
fn every_shell_gets_a_completion_script_and_man_a_page() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = Anklume::new().args(["completions", shell]).run();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout.contains("anklume"), "{shell}");
    }
    let ran = Anklume::new().args(["man"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.contains(".TH anklume 1"), "{}", ran.stdout);
}
