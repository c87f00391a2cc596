//! Each command that a message tells the user to run is run by a test, or has a reason why not.
//!
//! Reads the source, as docs/security.md's test reads its table: a new command without a row here fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The first words of a command in a message.
const PROGRAMS: [&str; 17] = [
    "anklume",
    "apt",
    "chmod",
    "chown",
    "git",
    "gpg",
    "gpg-connect-agent",
    "incus",
    "ip",
    "journalctl",
    "make",
    "mkdir",
    "mv",
    "rm",
    "sudo",
    "systemctl",
    "usermod",
];

/// The subcommands that a literal without backticks may begin with.
const SUBCOMMANDS: [&str; 11] = [
    "apply",
    "audit",
    "clipboard",
    "destroy",
    "doctor",
    "file",
    "init",
    "mcp",
    "policy",
    "sign",
    "sync",
];

/// Who runs the command.
enum By {
    /// This test runs it as written, and checks its effect.
    Test(&'static str),
    /// It is mentioned, not proposed, or it shows what this computer does not have.
    Mention,
    /// It needs what the tests do not have: another release, a host with systemd (tests/host), or a remote.
    Host,
}

use By::{Host, Mention, Test};

/// The commands as in the source, where `{…}` stands for a value.
const COMMANDS: &[(&str, By)] = &[
    (
        "anklume file list",
        Test("the_provider_may_be_the_first_word"),
    ),
    (
        "anklume --help",
        Test("without_arguments_help_is_printed_and_it_is_a_usage_error"),
    ),
    (
        "anklume apply",
        Test("the_server_and_its_services_are_looked_at"),
    ),
    (
        "anklume apply --adopt {adopt}{flag}",
        Test("the_help_for_each_obstacle_removes_it"),
    ),
    (
        "anklume apply{flag}",
        Test("the_commands_of_notes_delete_what_they_name_and_nothing_else"),
    ),
    (
        "anklume apply{}",
        Test("the_server_and_its_services_are_looked_at"),
    ),
    (
        "anklume audit show -i PROVIDER",
        Test("the_host_knows_services_by_name_and_shows_a_providers_log"),
    ),
    (
        "anklume audit verify",
        Test("every_single_changed_byte_is_found"),
    ),
    (
        "git config anklume.sign PROVIDER/SERVICE",
        Test("a_service_that_signs_is_found_or_named"),
    ),
    (
        "chmod 600",
        Test("keys_sign_from_files_as_far_as_openssh_would_use_them"),
    ),
    (
        "anklume clipboard offer --to {consumer}",
        Test("an_offer_is_taken_once_between_two_machines"),
    ),
    (
        "anklume destroy --domain {domain} --machine {name}{force}{flag}",
        Test("the_commands_of_notes_delete_what_they_name_and_nothing_else"),
    ),
    (
        "anklume destroy --domain {domain}{force}{flag}",
        Test("the_commands_of_notes_delete_what_they_name_and_nothing_else"),
    ),
    ("anklume doctor{}", Host),
    (
        "anklume init",
        Test("the_consoles_of_the_readme_show_what_happens"),
    ),
    (
        "anklume mcp call -i PROVIDER NAME",
        Test("two_machines_serve_each_other_and_survive_restarts"),
    ),
    (
        "anklume mcp call TOOL",
        Test("a_machine_is_found_listed_and_called"),
    ),
    (
        "anklume mcp connect --socket PATH",
        Test("its_entries_for_clients_start_the_right_command"),
    ),
    (
        "anklume mcp connect PROVIDER",
        Test("its_entries_for_clients_start_the_right_command"),
    ),
    (
        "anklume mcp list",
        Test("a_machine_is_found_listed_and_called"),
    ),
    (
        "anklume mcp list -i MACHINE",
        Test("a_user_in_a_machine_is_told_what_there_is"),
    ),
    (
        "anklume mcp list -i PROVIDER",
        Test("a_user_in_a_machine_is_told_what_there_is"),
    ),
    (
        "anklume mcp list -i {provider}",
        Test("a_user_in_a_machine_is_told_what_there_is"),
    ),
    (
        "anklume mcp list -i {}",
        Test("a_user_in_a_machine_is_told_what_there_is"),
    ),
    (
        "anklume mcp serve --list-tools --format json",
        Test("list_tools_prints_what_the_operator_may_call"),
    ),
    ("anklume mcp serve", Mention),
    ("anklume mcp serve --listen", Mention),
    (
        "anklume mcp status",
        Test("systemd_keeps_the_server_running"),
    ),
    (
        "anklume policy explain --caller {caller} --service {service}{provider}",
        Test("a_name_is_a_socket_and_every_end_has_its_exit_code"),
    ),
    (
        "anklume policy export --machine NAME",
        Test("the_services_file_of_a_machine_that_offers_none_is_one_too"),
    ),
    (
        "anklume policy list",
        Test("a_warning_refuses_nothing_and_quiet_hides_it"),
    ),
    (
        "anklume sync",
        Test("check_writes_nothing_and_exits_6_where_something_differs"),
    ),
    (
        "anklume sync --check",
        Test("check_writes_nothing_and_exits_6_where_something_differs"),
    ),
    (
        "anklume sync --clean-orphans",
        Test("git_applies_a_dry_run_to_what_sync_writes"),
    ),
    ("apt install -t bookworm-backports incus", Host),
    ("apt install gnupg", Host),
    ("apt install incus", Host),
    ("apt install incus-client", Host),
    (
        "anklume mcp pin",
        Test("a_definition_is_accepted_on_the_host_before_a_consumer_may_call_the_tool"),
    ),
    (
        "anklume mcp pin --yes",
        Test("a_definition_is_accepted_on_the_host_before_a_consumer_may_call_the_tool"),
    ),
    (
        "chmod 0600 {path}",
        Test("a_program_has_an_environment_of_its_own_and_secrets_from_a_file"),
    ),
    (
        "chown root:root {path}",
        Test("a_program_has_an_environment_of_its_own_and_secrets_from_a_file"),
    ),
    (
        "chmod 0700 {}",
        Test("folders_of_the_host_are_made_and_closed_by_the_commands_of_the_help"),
    ),
    (
        "chmod go-w {}",
        Test("folders_of_the_host_are_made_and_closed_by_the_commands_of_the_help"),
    ),
    (
        "git config user.signingkey {}",
        Test("the_key_that_git_names_must_be_the_one_that_signs"),
    ),
    ("gpg --detach-sign", Mention),
    (
        "gpg --edit-key {key} enable save",
        Test("what_is_wrong_with_a_key_is_said"),
    ),
    ("gpg --list-secret-keys", Mention),
    (
        "gpg --quick-add-key {key} ed25519 sign",
        Test("what_is_wrong_with_a_key_is_said"),
    ),
    (
        "gpg --quick-set-expire {key} 1y",
        Test("an_expired_key_signs_again_after_what_the_error_advises"),
    ),
    (
        "gpg --quick-set-expire {key} 1y '*'",
        Test("an_expired_key_signs_again_after_what_the_error_advises"),
    ),
    ("gpg --verify", Mention),
    ("gpg-connect-agent /bye", Mention),
    ("incus admin init", Host),
    (
        "incus config device unset {name} {NIC} {ADDRESS} --project {project}",
        Test("the_help_for_each_obstacle_removes_it"),
    ),
    ("incus image list images:", Host),
    (
        "incus info",
        Test("without_incus_rights_or_a_file_that_is_said"),
    ),
    ("incus list --all-projects", Mention),
    ("incus monitor", Mention),
    (
        "incus profile device remove {} {} --project {}",
        Test("the_help_for_each_obstacle_removes_it"),
    ),
    (
        "incus project delete {}",
        Test("the_help_for_each_obstacle_removes_it"),
    ),
    (
        "incus rebuild {3} {1} --project {2}",
        Test("the_commands_of_notes_delete_what_they_name_and_nothing_else"),
    ),
    ("incus remote list", Mention),
    (
        "incus rename {name} {} --project {project}",
        Test("the_help_for_each_obstacle_removes_it"),
    ),
    (
        "incus restart {name} --project {project}",
        Test("an_end_of_a_channel_that_was_made_privileged_is_named_until_it_is_not"),
    ),
    (
        "incus stop {1} --project {2}",
        Test("the_commands_of_notes_delete_what_they_name_and_nothing_else"),
    ),
    (
        "incus stop {name} --project {project}",
        Test("the_help_for_each_obstacle_removes_it"),
    ),
    ("incus storage create default dir", Host),
    (
        "ip link show {name}",
        Test("a_bridge_of_another_kind_is_shown_by_the_command_of_the_help"),
    ),
    ("ip {args}", Mention),
    ("make build", Host),
    ("make sync", Mention),
    (
        "mkdir -m 0700 {inner}",
        Test("folders_of_the_host_are_made_and_closed_by_the_commands_of_the_help"),
    ),
    (
        "mkdir -p {source}",
        Test("folders_of_the_host_are_made_and_closed_by_the_commands_of_the_help"),
    ),
    (
        "mv {} {inner}/",
        Test("folders_of_the_host_are_made_and_closed_by_the_commands_of_the_help"),
    ),
    (
        "sudo anklume apply{flag}",
        Test("a_member_of_the_group_sees_the_plan_and_only_root_carries_it_out"),
    ),
    (
        "sudo anklume rotate-logs",
        Test("a_log_that_a_consumer_floods_is_named_rotated_and_bounded"),
    ),
    ("systemctl restart incus.service", Host),
    ("systemctl start incus.service", Host),
];

/// Returns the string literals of the source outside of tests and comments.
fn literals(folder: &Path, all: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|one| one.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if !path.ends_with("tests") {
                literals(&path, all);
            }
            continue;
        }
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = code.lines().filter(|line| {
            !line.trim_start().starts_with("//") && !line.contains("override_usage")
        });
        let code = lines.collect::<Vec<_>>().join("\n");
        // A literal may contain escaped quotes; only text between backticks matters, which has none.
        all.extend(code.split('"').map(str::to_owned));
    }
}

/// Returns the commands between backticks.
fn commands() -> BTreeSet<String> {
    let mut all = Vec::new();
    literals(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let mut found = BTreeSet::new();
    for literal in all {
        let parts = literal.split('`').skip(1).step_by(2);
        // A literal without backticks may be a whole command, which another one embeds.
        let is_whole = SUBCOMMANDS.iter().any(|name| {
            let rest = literal.strip_prefix("anklume ");
            rest.and_then(|rest| rest.strip_prefix(name))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '{']))
        });
        let whole = is_whole.then_some(literal.as_str());
        for part in parts.chain(whole) {
            let mut words = part.split(' ');
            let is_program = words.next().is_some_and(|first| PROGRAMS.contains(&first));
            if is_program && words.next().is_some() {
                found.insert(part.to_owned());
            }
        }
    }
    found
}

#[test]
fn every_command_in_a_message_is_run_by_a_test() {
    let found = commands();
    let known: BTreeSet<String> = COMMANDS
        .iter()
        .map(|(command, _)| (*command).to_owned())
        .collect();
    let without: Vec<_> = found.difference(&known).collect();
    let gone: Vec<_> = known.difference(&found).collect();
    assert_eq!((without, gone), (Vec::new(), Vec::new()));
    let mut tests = String::new();
    for folder in ["tests", "src"] {
        collect(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
            &mut tests,
        );
    }
    for (command, by) in COMMANDS {
        if let Test(name) = by {
            assert!(
                tests.contains(&format!("fn {name}()")),
                "`{command}`: no test {name}"
            );
        }
    }
}

/// Appends the text of every Rust file.
fn collect(folder: &Path, text: &mut String) {
    for path in fs::read_dir(folder).unwrap().map(|one| one.unwrap().path()) {
        if path.is_dir() {
            collect(&path, text);
        } else if path.extension().is_some_and(|end| end == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
