//! `anklume mcp config`: the entry with which an MCP client starts `anklume mcp connect`, printed or added to the client's file.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde::Serialize as _;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};
use toml_edit::{Array, DocumentMut, Item, Table};

use crate::cli::{AgentClient, McpConfigArgs};
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::name::MachineName;
use crate::text::escaped;
use crate::transport::RouteContext;

/// The name of the entry.
const NAME: &str = "anklume";
/// Permissions of a new file.
const MODE: u32 = 0o644;
/// Permissions of a file that is being written.
const PRIVATE: u32 = 0o600;
/// Maximum size of a client's file, in bytes.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// The file in which a client keeps its servers, for one project.
struct ClientFile {
    file: &'static str,
    /// The key of the servers.
    servers: &'static str,
    is_toml: bool,
    /// The project's folder, as the client passes it to a server.
    folder: &'static str,
    /// True if an entry says what kind of server it is.
    has_type: bool,
}

const fn client_file(client: AgentClient) -> ClientFile {
    let (file, servers, folder) = match client {
        AgentClient::Claude => (".mcp.json", "mcpServers", "."),
        AgentClient::Codex => (".codex/config.toml", "mcp_servers", "."),
        AgentClient::Gemini => (".gemini/settings.json", "mcpServers", "."),
        AgentClient::Vscode => (".vscode/mcp.json", "servers", "${workspaceFolder}"),
        AgentClient::Cursor => (".cursor/mcp.json", "mcpServers", "${workspaceFolder}"),
    };
    ClientFile {
        file,
        servers,
        folder,
        is_toml: matches!(client, AgentClient::Codex),
        has_type: matches!(client, AgentClient::Vscode),
    }
}

/// Runs `anklume mcp config`.
pub(super) fn run(args: &McpConfigArgs, output: &Output) -> anyhow::Result<Exit> {
    let place = client_file(args.client);
    let arguments = arguments(args, &place)?;
    if args.provider.is_none() && !RouteContext::look().has_sockets() {
        output.say("note: without a provider, this entry works only inside a machine");
    }
    if !args.write {
        let text = if place.is_toml {
            with_table(String::new(), &place, &arguments)
        } else {
            with_member(Map::new(), &place, &arguments).map(|file| indented(&file, "  "))
        };
        let text = text.map_err(|fault| fault.failure(Path::new(place.file)))?;
        output.answer(text.as_bytes())?;
        let file = place.file;
        output.say(&format!(
            "add this to `{file}` in the project's folder, or use `--write`"
        ));
        return Ok(Exit::Done);
    }
    let path = args
        .config_file
        .clone()
        .unwrap_or_else(|| place.file.into());
    let shown = shown(&path);
    let failed = |doing: &str, why: &io::Error| {
        Failure::new(Exit::Failed, format!("cannot {doing} `{shown}`: {why}"))
    };
    let before = read(&path).map_err(|why| failed("read", &why))?;
    let after = merged(before.as_deref(), &place, &arguments);
    match after.map_err(|fault| fault.failure(&path))? {
        None => output.say(&format!("`{shown}` already has this entry")),
        Some(after) => {
            // Without a named file, a project's link must not lead to another file.
            let is_bound = args.config_file.is_none();
            let written = write(&path, before.as_deref(), after.as_bytes(), is_bound);
            written.map_err(|why| failed("write", &why))?;
            output.say(&format!("added `{NAME}` to `{shown}`"));
        }
    }
    Ok(Exit::Done)
}

fn arguments(args: &McpConfigArgs, place: &ClientFile) -> Result<Vec<String>, Failure> {
    let folder = match &args.files {
        None => place.folder,
        Some(folder) => folder.to_str().ok_or_else(|| {
            let message = format!("`{}` is not UTF-8", shown(folder));
            Failure::new(Exit::Usage, message).help("name another folder with `--files`")
        })?,
    };
    let provider = args.provider.as_ref().map(MachineName::as_str);
    let words = ["mcp", "connect"].into_iter().chain(provider);
    let words = words.chain(["--files", folder]);
    Ok(words.map(str::to_owned).collect())
}

fn shown(path: &Path) -> String {
    escaped(&path.to_string_lossy())
}

/// The reason why an entry cannot be added.
#[derive(Debug, PartialEq, Eq)]
enum ConfigFault {
    /// The file is not what the client reads, as the message says.
    Unreadable(String),
    /// A member of the file is not a table of servers.
    NoTable(&'static str),
    /// The file has another entry of that name.
    Differs,
}

impl ConfigFault {
    fn failure(&self, path: &Path) -> Failure {
        let shown = shown(path);
        let (message, help) = match self {
            Self::Unreadable(why) => (
                format!("`{shown}` cannot be changed: {why}"),
                "without `--write`, the entry is printed, to be added by hand",
            ),
            Self::NoTable(key) => (
                format!("`{key}` in `{shown}` is not a table of servers"),
                "correct it, or name another file with `--config-file`",
            ),
            Self::Differs => (
                format!("`{shown}` has a different entry `{NAME}`, which is not replaced"),
                "remove that entry, or change it by hand",
            ),
        };
        Failure::new(Exit::Failed, message).help(help)
    }
}

/// Returns the content with the entry; `None` if it is there already.
fn merged(
    before: Option<&str>,
    place: &ClientFile,
    arguments: &[String],
) -> Result<Option<String>, ConfigFault> {
    let before = before.unwrap_or_default();
    let after = if place.is_toml {
        with_table(before.to_owned(), place, arguments)?
    } else {
        let file = if before.trim().is_empty() {
            Map::new()
        } else {
            let invalid = |why: serde_json::Error| {
                let hint = if ["//", "/*"].iter().any(|mark| before.contains(mark)) {
                    " (comments are not understood)"
                } else {
                    ""
                };
                ConfigFault::Unreadable(format!("it is not a plain JSON object{hint}: {why}"))
            };
            let file: Map<String, Value> = serde_json::from_str(before).map_err(invalid)?;
            // Keys that occur twice, and some numbers, would be lost.
            let compact = serde_json::to_string(&file).unwrap_or_default();
            if compact != without_spaces(before) {
                let why = "it has values that would be written differently";
                return Err(ConfigFault::Unreadable(why.to_owned()));
            }
            file
        };
        let is_there = file
            .get(place.servers)
            .is_some_and(|servers| servers.get(NAME).is_some());
        let after = with_member(file, place, arguments)?;
        if is_there {
            return Ok(None);
        }
        let after = indented(&after, indentation(before));
        if before.contains("\r\n") {
            after.replace('\n', "\r\n")
        } else {
            after
        }
    };
    Ok(Some(after).filter(|after| after != before))
}

fn with_member(
    mut file: Map<String, Value>,
    place: &ClientFile,
    arguments: &[String],
) -> Result<Map<String, Value>, ConfigFault> {
    let servers = file
        .entry(place.servers)
        .or_insert_with(|| Map::new().into());
    let servers = servers
        .as_object_mut()
        .ok_or(ConfigFault::NoTable(place.servers))?;
    let entry = if place.has_type {
        json!({"type": "stdio", "command": NAME, "args": arguments})
    } else {
        json!({"command": NAME, "args": arguments})
    };
    let same = |there: &Value| {
        ["command", "args"]
            .iter()
            .all(|key| there.get(key) == entry.get(key))
    };
    match servers.get(NAME) {
        None => drop(servers.insert(NAME.to_owned(), entry)),
        // It may have settings of the client besides.
        Some(there) if same(there) => {}
        Some(_) => return Err(ConfigFault::Differs),
    }
    Ok(file)
}

fn with_table(
    before: String,
    place: &ClientFile,
    arguments: &[String],
) -> Result<String, ConfigFault> {
    let mut document: DocumentMut = before.parse().map_err(|why: toml_edit::TomlError| {
        ConfigFault::Unreadable(format!("it is not TOML: {}", why.message()))
    })?;
    let servers = document.entry(place.servers).or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    let servers = servers
        .as_table_like_mut()
        .ok_or(ConfigFault::NoTable(place.servers))?;
    if let Some(there) = servers.get(NAME) {
        let command = there.get("command").and_then(Item::as_str);
        let args = there.get("args").and_then(Item::as_array);
        let args = args.map(|args| {
            args.iter()
                .map(toml_edit::Value::as_str)
                .collect::<Vec<_>>()
        });
        let wanted = arguments.iter().map(|one| Some(one.as_str())).collect();
        if (command, args) != (Some(NAME), Some(wanted)) {
            return Err(ConfigFault::Differs);
        }
        return Ok(before);
    }
    let mut entry = Table::new();
    entry.insert("command", toml_edit::value(NAME));
    entry.insert(
        "args",
        toml_edit::value(arguments.iter().collect::<Array>()),
    );
    servers.insert(NAME, Item::Table(entry));
    Ok(document.to_string())
}

/// Returns JSON without the spaces between its tokens.
fn without_spaces(text: &str) -> String {
    let (mut in_string, mut is_escaped) = (false, false);
    let is_kept = |c: &char| {
        let kept = in_string || !c.is_ascii_whitespace();
        (in_string, is_escaped) = match c {
            '"' if !is_escaped => (!in_string, false),
            '\\' if in_string => (true, !is_escaped),
            _ => (in_string, false),
        };
        kept
    };
    text.chars().filter(is_kept).collect()
}

/// Returns the indentation that a file uses; two spaces if it shows none.
fn indentation(text: &str) -> &str {
    let indented = text.lines().map(|line| {
        let rest = line.trim_start_matches([' ', '\t']);
        line.get(..line.len() - rest.len()).unwrap_or_default()
    });
    let mut indented = indented.filter(|indent| !indent.is_empty());
    indented.next().unwrap_or("  ")
}

fn indented(file: &Map<String, Value>, indent: &str) -> String {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(indent.as_bytes());
    // Writing JSON to memory cannot fail.
    let _ = file.serialize(&mut Serializer::with_formatter(&mut text, formatter));
    text.push(b'\n');
    String::from_utf8(text).unwrap_or_default()
}

/// Reads a client's file; `None` if it does not exist.
fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::metadata(path) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why),
        Ok(metadata) if !metadata.is_file() => {
            return Err(io::Error::other("it is not a regular file"));
        }
        Ok(metadata) if metadata.len() > FILE_MAX => return Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => {}
    }
    let bytes = fs::read(path)?;
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    Ok(Some(text))
}

/// Writes a client's file as a whole or not at all; a link stays one, and a file keeps its permissions. `is_bound` refuses
/// a file outside of the current folder.
fn write(path: &Path, before: Option<&str>, bytes: &[u8], is_bound: bool) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let target = match path.canonicalize() {
        Err(why) if why.kind() == io::ErrorKind::NotFound => {
            if path.is_symlink() {
                return Err(io::Error::other(
                    "it is a link to a file that does not exist",
                ));
            }
            folder
                .canonicalize()?
                .join(path.file_name().unwrap_or_default())
        }
        target => target?,
    };
    if is_bound && !target.starts_with(Path::new(".").canonicalize()?) {
        let why = "a link leads out of this folder; name the file with `--config-file`";
        return Err(io::Error::other(why));
    }
    let metadata = fs::metadata(&target).ok();
    // The content may be private.
    let mode = metadata.as_ref().map_or(MODE, |_| PRIVATE);
    let folder = target.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new()
        .prefix(".anklume-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    new.write_all(bytes)?;
    let Some(metadata) = metadata else {
        new.persist_noclobber(&target)?;
        return Ok(());
    };
    if (metadata.uid(), metadata.gid()) != owner(new.as_file())? {
        std::os::unix::fs::fchown(new.as_file(), Some(metadata.uid()), Some(metadata.gid()))?;
    }
    new.as_file().set_permissions(metadata.permissions())?;
    if read(&target)?.as_deref() != before {
        return Err(io::Error::other("it has just been changed; try again"));
    }
    new.persist(&target)?;
    Ok(())
}

fn owner(file: &fs::File) -> io::Result<(u32, u32)> {
    let metadata = file.metadata()?;
    Ok((metadata.uid(), metadata.gid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words() -> Vec<String> {
        ["mcp", "connect", "--files", "."]
            .map(str::to_owned)
            .to_vec()
    }

    fn added(client: AgentClient, before: &str) -> Result<Option<String>, ConfigFault> {
        merged(Some(before), &client_file(client), &words())
    }

    #[test]
    fn the_rest_of_a_file_stays_as_it_is() {
        let before = "{\n\t\"b\": 1,\n\t\"mcpServers\": {\n\t\t\"other\": {\n\t\t\t\"url\": \"u\"\n\t\t}\n\t},\n\t\"a\": 2.0\n}\n";
        let after = added(AgentClient::Claude, before).unwrap().unwrap();
        assert_eq!(
            after,
            "{\n\t\"b\": 1,\n\t\"mcpServers\": {\n\t\t\"other\": {\n\t\t\t\"url\": \"u\"\n\t\t},\n\t\t\"anklume\": {\n\t\t\t\"command\": \
             \"anklume\",\n\t\t\t\"args\": [\n\t\t\t\t\"mcp\",\n\t\t\t\t\"connect\",\n\t\t\t\t\"--files\",\n\t\t\t\t\".\"\n\t\t\t]\n\t\t}\n\t},\n\t\"a\": \
             2.0\n}\n"
        );
        assert_eq!(added(AgentClient::Claude, &after), Ok(None));
        let before = "# mine\nmodel = \"x\" # best\n\n[mcp_servers.other]\nurl = \"u\"\n";
        let after = added(AgentClient::Codex, before).unwrap().unwrap();
        let entry = "\n[mcp_servers.anklume]\ncommand = \"anklume\"\nargs = [\"mcp\", \"connect\", \"--files\", \".\"]\n";
        assert_eq!(after, format!("{before}{entry}"));
        assert_eq!(added(AgentClient::Codex, &after), Ok(None));
        assert_eq!(
            added(AgentClient::Codex, "").unwrap().unwrap().trim_start(),
            entry.trim_start()
        );
        let windows = "{\r\n  \"a b\": \"c \\\" d\"\r\n}\r\n";
        let after = added(AgentClient::Gemini, windows).unwrap().unwrap();
        assert!(
            after.starts_with("{\r\n  \"a b\": \"c \\\" d\",\r\n"),
            "{after}"
        );
        let inline = "mcp_servers = { other = { url = \"u\" } }\n";
        let after = added(AgentClient::Codex, inline).unwrap().unwrap();
        assert_eq!(added(AgentClient::Codex, &after), Ok(None), "{after}");
    }

    #[test]
    fn nothing_is_replaced_and_what_is_not_understood_is_not_changed() {
        let other = r#"{"servers": {"anklume": {"command": "anklume"}}}"#;
        assert_eq!(added(AgentClient::Vscode, other), Err(ConfigFault::Differs));
        let other = "[mcp_servers.anklume]\ncommand = \"other\"\n";
        assert_eq!(added(AgentClient::Codex, other), Err(ConfigFault::Differs));
        for (client, text) in [
            (AgentClient::Claude, r#"{"a": 1, "a": 2}"#),
            (AgentClient::Claude, r#"{"f": 1.10}"#),
            (AgentClient::Vscode, "{\n// a comment\n}"),
            (AgentClient::Cursor, "[]"),
            (AgentClient::Codex, "= 1"),
        ] {
            assert!(
                matches!(added(client, text), Err(ConfigFault::Unreadable(_))),
                "{text}"
            );
        }
        for (client, text) in [
            (AgentClient::Gemini, r#"{"mcpServers": []}"#),
            (AgentClient::Codex, "mcp_servers = 1"),
        ] {
            assert!(
                matches!(added(client, text), Err(ConfigFault::NoTable(_))),
                "{text}"
            );
        }
    }
}
