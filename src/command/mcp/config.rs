//! `anklume mcp config`: the entry with which an MCP client starts `anklume mcp connect`, printed or added to the client's file.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize as _;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Map, Value, json};
use toml_edit::{Array, DocumentMut, Item, Table};

use crate::cli::{AgentClient, McpConfigArgs};
use crate::command::output::Output;
use crate::error::{Exit, Failure};
use crate::text::escaped;

/// The name of the entry.
const NAME: &str = "anklume";
/// Permissions of a new file.
const MODE: u32 = 0o644;
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
    let arguments = arguments(args, &place);
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
            "this belongs into `{file}` of a project; `--write` adds it there"
        ));
        return Ok(Exit::Done);
    }
    let path = args.file.clone().unwrap_or_else(|| place.file.into());
    let shown = shown(&path);
    let failed = |doing: &str, why: &io::Error| {
        Failure::new(Exit::Failed, format!("cannot {doing} `{shown}`: {why}"))
    };
    let before = read(&path).map_err(|why| failed("read", &why))?;
    let after = merged(before.as_deref(), &place, &arguments);
    match after.map_err(|fault| fault.failure(&path))? {
        None => output.say(&format!("`{shown}` has this entry already")),
        Some(after) => {
            write(&path, after.as_bytes()).map_err(|why| failed("write", &why))?;
            output.say(&format!("added `{NAME}` to `{shown}`"));
        }
    }
    Ok(Exit::Done)
}

fn arguments(args: &McpConfigArgs, place: &ClientFile) -> Vec<String> {
    let provider = args.provider.clone();
    let folder = args
        .files
        .as_ref()
        .map(|folder| folder.display().to_string());
    let folder = folder.unwrap_or_else(|| place.folder.to_owned());
    let words = ["mcp", "connect"].map(str::to_owned).into_iter();
    words
        .chain(provider)
        .chain(["--files".to_owned(), folder])
        .collect()
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
                "correct it, or name another file with `--file`",
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
                ConfigFault::Unreadable(format!("it is not a JSON object: {why}"))
            };
            serde_json::from_str(before).map_err(invalid)?
        };
        let is_there = file
            .get(place.servers)
            .is_some_and(|servers| servers.get(NAME).is_some());
        let after = with_member(file, place, arguments)?;
        if is_there {
            return Ok(None);
        }
        indented(&after, indentation(before))
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
    if servers.get(NAME).is_some_and(|there| *there != entry) {
        return Err(ConfigFault::Differs);
    }
    servers.insert(NAME.to_owned(), entry);
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

/// Writes a client's file as a whole or not at all; a link stays one, and a file keeps its permissions.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let target = match path.canonicalize() {
        Err(why) if why.kind() == io::ErrorKind::NotFound => path.to_owned(),
        target => target?,
    };
    let folder = target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("."), Path::to_owned);
    fs::create_dir_all(&folder)?;
    let mut new = tempfile::Builder::new()
        .prefix(".anklume-")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(&folder)?;
    new.write_all(bytes)?;
    match fs::metadata(&target) {
        Ok(before) => {
            new.as_file().set_permissions(before.permissions())?;
            if (before.uid(), before.gid()) != owner(new.as_file())? {
                std::os::unix::fs::fchown(new.as_file(), Some(before.uid()), Some(before.gid()))?;
            }
            new.persist(&target)?;
        }
        Err(_) => drop(new.persist_noclobber(&target)?),
    }
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
