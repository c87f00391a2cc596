//! The commands that a channel starts, and how a user would type them.

use std::ffi::OsStr;
use std::path::PathBuf;

use crate::incus::MachineRef;
use crate::machine_state::PROGRAM;

/// Environment of the server.
pub(super) const SERVE: [&str; 2] = ["mcp", "serve"];

/// The environment that makes `incus` talk to the daemon that was asked for the machine, whatever remote the user's
/// configuration prefers; `--force-local` does not do that.
pub(crate) const LOCAL_REMOTE: (&str, &str) = ("INCUS_REMOTE", "local");

/// The arguments of `incus` that start the server in a machine.
///
/// `-T`: no terminal, whatever stdin is. `--force-local`: no greeting on stderr and no new configuration at first use.
pub(crate) fn incus_exec(machine: &MachineRef) -> Vec<String> {
    let mut words: Vec<String> = ["exec", &machine.name, "--project", &machine.project]
        .map(str::to_owned)
        .to_vec();
    words.extend(["-T", "--force-local", "--", PROGRAM].map(str::to_owned));
    words.extend(SERVE.map(str::to_owned));
    words
}

/// Path of this program, for a command that a user can type.
pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe()
        .ok()
        // A program that was replaced while it ran has a path that is no more.
        .filter(|path| path.exists())
        .unwrap_or_else(|| "anklume".into())
}

/// Words as one line that a shell reads back as the same words.
pub(crate) fn shell_line<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = words
        .into_iter()
        .map(|word| quoted(&word.as_ref().to_string_lossy()))
        .collect();
    quoted.join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_quoted_where_a_shell_would_see_something_else() {
        let words = ["a-b", "", "it's", "$x", "a b", "~"];
        assert_eq!(shell_line(words), r"a-b '' 'it'\''s' '$x' 'a b' '~'");
    }

    #[test]
    fn the_command_of_the_documentation_is_what_runs() {
        let machine = MachineRef {
            name: "vault-signer".to_owned(),
            project: "vault".to_owned(),
            status: String::new(),
        };
        assert_eq!(
            shell_line(incus_exec(&machine)),
            "exec vault-signer --project vault -T --force-local -- /opt/anklume/anklume mcp serve"
        );
    }
}
