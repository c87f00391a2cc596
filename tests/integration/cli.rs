//! Tests the command line as a whole: help, usage errors, completions, man page.

use crate::harness::{Anklume, have_program};

/// A domain with one machine.
const ONE: &str = "domains:\n  work:\n    subnet_id: 1\n    machines:\n      work-dev: {}\n";

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
    Anklume::new().args(["man", "nope"]).run().is(
        2,
        "",
        "error: there is no page `nope`\n  = help: the pages are: infra.yml, init, status, sync, apply, destroy, doctor, \
         policy, mcp, audit, sign, ssh-agent, file, clipboard, completions, man, gpg\n",
    );
}

#[test]
fn all_pages_are_written_and_man_reads_them_without_a_warning() {
    let ran = Anklume::new().args(["man", "--dir", "pages"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, "wrote 18 pages\n"));
    let pages = ["man1", "man5"].map(|section| ran.folder.path().join("pages").join(section));
    if !have_program("man") {
        return;
    }
    for page in pages
        .iter()
        .flat_map(|pages| std::fs::read_dir(pages).unwrap())
    {
        let page = page.unwrap().path();
        let mut man = std::process::Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-Tutf8", "-l"])
            .arg(&page);
        let output = man.env("MANWIDTH", "80").output().unwrap();
        let warnings = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && warnings.is_empty(),
            "{page:?}: {warnings}"
        );
        assert!(output.stdout.len() > 300, "{page:?}");
    }
}

#[test]
fn the_pages_hold_every_option_and_the_exit_codes() {
    let page = |name: &str| {
        Anklume::new()
            .args(["man", name])
            .run()
            .stdout
            .replace('\\', "")
    };
    for (name, parts) in [
        ("sync", &["fB--clean-orphansfR", ".SH FILES"][..]),
        ("policy", &[".SH \"anklume policy check\"", "fB--callerfR"]),
        (
            "mcp",
            &[
                ".SH \"anklume mcp call\"",
                "fB--timeoutfR",
                "fB/run/anklume/mcp/fR",
            ],
        ),
        (
            "audit",
            &[".SH \"anklume audit verify\"", "fBANKLUME_AUDIT_LOGfR"],
        ),
        (
            "infra.yml",
            &[".TH infra.yml 5", "fBsubnet_idfR", ".SH EXAMPLES"],
        ),
        ("gpg", &[".TH anklume-gpg 1", "ANKLUME_SIGN"]),
    ] {
        let page = page(name);
        for part in parts {
            assert!(page.contains(part), "{part}:\n{page}");
        }
        // Options common to all subcommands appear only on the program's page.
        assert_eq!(page.matches("Output format").count(), 0, "{page}");
    }
    let page = page("anklume");
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
fn what_only_anklume_calls_is_on_no_page() {
    for args in [["man"].as_slice(), &["man", "mcp"], &["man", "policy"]] {
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

#[test]
fn with_json_a_failure_is_json_on_stdout_too() {
    const FAULTY: &str = "domains: {a: {subnet_id: 0, machines: {m: {typ: vm, ip: 1}}}}\n";
    let cases: [(&str, &str, i32); 12] = [
        ("sync", FAULTY, 1),
        ("policy list", FAULTY, 1),
        ("policy check --caller m --service s", FAULTY, 1),
        ("apply --dry-run", FAULTY, 1),
        ("doctor", FAULTY, 1),
        ("destroy --yes", FAULTY, 1),
        ("sync --infra infra.yaml", FAULTY, 1),
        ("policy export --machine nobody", ONE, 1),
        ("sync --base-dir nowhere", ONE, 1),
        ("mcp call nothing", ONE, 1),
        ("mcp list --socket nowhere", ONE, 4),
        ("audit show --file nowhere", ONE, 1),
    ];
    for (line, infra, exit) in cases {
        let ran = Anklume::new()
            .infra(infra)
            .args(line.split(' '))
            .args(["--format", "json"])
            .run();
        let said: serde_json::Value = serde_json::from_str(&ran.stdout)
            .unwrap_or_else(|fault| panic!("{line}: {fault}: {ran:?}"));
        let errors = said["errors"].as_array().unwrap();
        assert_eq!(ran.status, exit, "{line}: {ran:?}");
        for error in errors {
            let message = error["message"].as_str().unwrap();
            assert!(ran.stderr.contains(message), "{line}: {message}: {ran:?}");
        }
        // A place that is known is in the answer.
        let known = errors.iter().any(|error| error["line"].is_u64());
        assert_eq!(
            known,
            infra == FAULTY && !line.contains("infra.yaml"),
            "{line}: {said}"
        );
    }
    // Even if the command line is wrong.
    let ran = Anklume::new()
        .args(["sync", "--nope", "--format=json"])
        .run();
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(ran.status, 2, "{ran:?}");
    assert_eq!(
        said["errors"][0]["message"],
        "unexpected argument '--nope' found"
    );
}

#[test]
fn colours_go_where_they_are_wanted_on_both_streams() {
    let coloured = |line: &str, color: &str| {
        let infra = ONE.replace("work-dev: {}", "work-dev: {services: [{name: s, tool: gpg_sign, consumers: [other]}]}\n      other: {}");
        let ran = Anklume::new()
            .infra(&infra)
            .args(line.split(' '))
            .args(["--color", color])
            .run();
        (ran.stdout.contains('\u{1b}'), ran.stderr.contains('\u{1b}'))
    };
    for (line, stdout, stderr) in [
        ("sync --dry-run", true, false),
        ("policy check --caller other --service s", true, false),
        ("policy explain --caller work-dev --service s", true, false),
        ("policy check --caller nobody --service s", false, true),
        ("policy check --nope", false, true),
    ] {
        assert_eq!(coloured(line, "always"), (stdout, stderr), "{line}");
        assert_eq!(coloured(line, "never"), (false, false), "{line}");
        assert_eq!(coloured(line, "auto"), (false, false), "{line}");
    }
}
