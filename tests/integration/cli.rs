//! Tests the command line as a whole: help, usage errors, completions, man page.

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

#[test]
fn the_manual_page_holds_every_subcommand_its_options_and_the_exit_codes() {
    let page = Anklume::new().args(["man"]).run().stdout.replace('\\', "");
    for part in [
        ".SH \"anklume sync\"",
        "fB--clean-orphansfR",
        ".SH \"anklume policy check\"",
        "fB--callerfR",
        ".SH \"anklume mcp call\"",
        "fB--timeoutfR",
        ".SH \"anklume audit verify\"",
    ] {
        assert!(page.contains(part), "{part}:\n{page}");
    }
    // Options common to all subcommands appear only once.
    assert_eq!(page.matches("Output format").count(), 1, "{page}");
    let (_, exits) = page.split_once(".SH \"EXIT STATUS\"\n").unwrap();
    let commands = include_str!("../../docs/commands.md");
    let (_, table) = commands
        .split_once("| exit code | meaning |\n|---|---|\n")
        .unwrap();
    let mut codes = 0;
    for row in table.lines().take_while(|line| line.starts_with("| ")) {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let (code, meaning) = (cells.next().unwrap(), cells.next().unwrap());
        let shown = format!("fB{code}fR\n{}\n", meaning.replace('`', ""));
        assert!(exits.contains(&shown), "{shown}\n{exits}");
        codes += 1;
    }
    assert_eq!(codes, 8);
}

#[test]
fn what_only_anklume_calls_is_in_no_completion_and_on_no_page() {
    for args in [
        ["completions", "bash"].as_slice(),
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
    ] {
        let ran = Anklume::new().args(args.iter().copied()).run();
        for hidden in [
            "clipboard-holder",
            "foreign-reader",
            "gpg-agent-launcher",
            "mcp-helper",
            "mcp-worker",
        ] {
            assert!(!ran.stdout.contains(hidden), "{args:?}");
        }
        assert!(ran.stdout.contains("policy"), "{args:?}");
    }
}
