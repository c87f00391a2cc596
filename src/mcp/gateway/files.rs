//! Lets a client name files instead of passing their content, which models cannot copy: the tools of providers get
//! arguments that are paths below one folder.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rmcp::model::Tool;
use rustix::fs::Mode;
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use crate::catalogue::{ONE_CALL_MAX, PIECE};
use crate::dir::{BENEATH, Dir, NotRead, SEARCH};
use crate::mcp::BASE64_KEY;
use crate::mcp::client::pieces::{self, Pieces};
use crate::mcp::shown;

/// The argument that names a file to send.
const FILE: &str = "file";
/// The argument that names a file to create.
const SAVE_AS: &str = "save_as";
/// Arguments for pieces, which a client with files does not need.
const PIECE_ARGUMENTS: [&str; 6] = ["offset", "final", "size", "sha256", "length", "resume"];
/// The argument that asks for a list of files instead of one.
const ENTRIES: &str = "entries";
/// Permissions of a new file.
const MODE: u32 = 0o644;

/// The folder that contains the client's files.
#[derive(Debug)]
pub(crate) struct FileFolder {
    dir: Dir,
    path: PathBuf,
    /// The path as it was given, in full: it may lead through symbolic links, and clients may use either.
    given: PathBuf,
    /// What the client was told of each tool, by provider and service: a call must mean the same.
    told: Mutex<HashMap<(String, String), FileUse>>,
}

/// How a tool transfers files.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FileUse {
    None,
    /// Its argument takes the content of a file.
    Sends {
        argument: String,
        pieces: Pieces,
    },
    /// Its result is the content of a file.
    Receives,
}

/// A call, with the file that it transfers.
#[derive(Debug)]
pub(super) enum FileCall {
    Plain,
    SendWhole { argument: String, bytes: Vec<u8> },
    SendPieces { pieces: Pieces, file: File },
    Receive(NewFile),
}

/// A file that is being received: it appears under its name when it is complete.
#[derive(Debug)]
pub(super) struct NewFile {
    parent: Dir,
    temporary: String,
    name: String,
    /// The path as the client named it.
    path: String,
    file: File,
    is_kept: bool,
}

impl FileUse {
    fn of(tool: &Tool) -> Self {
        let has = |name: &str| pieces::argument(tool, name).is_some();
        let encoded = pieces::arguments(tool).filter(|name| pieces::is_base64(tool, name));
        let encoded: Vec<&String> = encoded.collect();
        match (encoded.as_slice(), pieces::of(tool)) {
            ([argument], pieces) if !has(FILE) => Self::Sends {
                argument: (*argument).clone(),
                pieces,
            },
            ([], Pieces::Down) if !has(SAVE_AS) => Self::Receives,
            _ => Self::None,
        }
    }
}

impl FileFolder {
    /// Opens the folder.
    ///
    /// # Errors
    ///
    /// Fails if it is not a folder, or may not be searched.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: Dir::open(path, SEARCH, BENEATH)?,
            path: path.canonicalize()?,
            given: std::path::absolute(path)?,
            told: Mutex::default(),
        })
    }

    /// Changes a listed tool's schema: a path stands for content in base64.
    pub(super) fn describe(&self, provider: &str, listed: &mut Value) {
        let Ok(tool) = serde_json::from_value::<Tool>(listed.clone()) else {
            return;
        };
        let folder = self.path.display();
        let file_use = FileUse::of(&tool);
        self.told().insert(
            (provider.to_owned(), tool.name.to_string()),
            file_use.clone(),
        );
        let (name, text, replaced) = match file_use {
            FileUse::None => return,
            FileUse::Sends { argument, .. } => {
                let property = pieces::argument(&tool, &argument);
                // Of base64, which has four characters for three bytes.
                let max = property.and_then(|property| property.get("maxLength")?.as_u64());
                let max = max.map(|max| format!("; at most {} bytes", max / 4 * 3));
                let text = format!(
                    "Path of a file below `{folder}`, whose content is sent as `{argument}`{}",
                    max.unwrap_or_default()
                );
                (FILE, text, Some(argument))
            }
            FileUse::Receives => {
                let text = format!(
                    "Path of the new file below `{folder}` that gets the content; without it, the content is returned in base64"
                );
                // The result no longer has the content.
                listed
                    .as_object_mut()
                    .map(|tool| tool.remove("outputSchema"));
                (SAVE_AS, text, None)
            }
        };
        if let Some(meta) = listed.get_mut("_meta").and_then(Value::as_object_mut) {
            meta.remove(BASE64_KEY);
        }
        let Some(input) = listed.get_mut("inputSchema").and_then(Value::as_object_mut) else {
            return;
        };
        if let Some(properties) = input.get_mut("properties").and_then(Value::as_object_mut) {
            properties.retain(|one, _| {
                !PIECE_ARGUMENTS.contains(&one.as_str()) && replaced.as_ref() != Some(one)
            });
            let property = json!({"type": "string", "description": text});
            properties.insert(name.to_owned(), property);
        }
        if let Some(required) = input.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|one| !PIECE_ARGUMENTS.iter().any(|piece| one == piece));
            for one in required {
                if replaced.as_deref().is_some_and(|replaced| one == replaced) {
                    *one = name.into();
                }
            }
        }
    }

    /// Takes the file that a call names out of its arguments.
    pub(super) fn take(
        &self,
        provider: &str,
        tool: &Tool,
        arguments: &mut Map<String, Value>,
    ) -> Result<FileCall, String> {
        let file_use = FileUse::of(tool);
        let key = (provider.to_owned(), tool.name.to_string());
        if self.told().get(&key).is_some_and(|told| *told != file_use) {
            let text =
                "the tool takes files differently than when it was listed; list the tools again";
            return Err(text.to_owned());
        }
        let name = match file_use {
            FileUse::None => return Ok(FileCall::Plain),
            FileUse::Sends { .. } => FILE,
            FileUse::Receives => SAVE_AS,
        };
        let path = match arguments.shift_remove(name) {
            None | Some(Value::Null) => return Ok(FileCall::Plain),
            Some(Value::String(path)) => self.relative(&path)?,
            Some(_) => return Err(format!("`{name}` is not a string")),
        };
        arguments.retain(|_, value| !value.is_null());
        let own = PIECE_ARGUMENTS.iter().chain([&ENTRIES]);
        if let Some(other) = own
            .into_iter()
            .find(|other| arguments.contains_key(**other))
        {
            return Err(format!("send either `{name}` or `{other}`, not both"));
        }
        let FileUse::Sends { argument, pieces } = file_use else {
            return Ok(FileCall::Receive(self.new_file(&path)?));
        };
        if arguments.contains_key(&argument) {
            return Err(format!("send either `{FILE}` or `{argument}`, not both"));
        }
        let file = self.existing(&path)?;
        let size = file.metadata().map(|metadata| metadata.len());
        let size = size.map_err(|why| unreadable(&path, &why))?;
        let is_up = matches!(pieces, Pieces::Up { .. });
        if is_up && size > PIECE {
            return Ok(FileCall::SendPieces { pieces, file });
        }
        let mut bytes = Vec::new();
        let read = file.take(ONE_CALL_MAX + 1).read_to_end(&mut bytes);
        read.map_err(|why| unreadable(&path, &why))?;
        if bytes.len() as u64 > ONE_CALL_MAX {
            return Err(format!(
                "`{}` is larger than {} MiB, the maximum for `{argument}`",
                shown(&path),
                ONE_CALL_MAX / 1024 / 1024
            ));
        }
        Ok(FileCall::SendWhole { argument, bytes })
    }

    fn told(&self) -> MutexGuard<'_, HashMap<(String, String), FileUse>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a path as one below the folder; it may also be written in full.
    fn relative(&self, path: &str) -> Result<String, String> {
        let outside = || format!("`{}` is not below `{}`", shown(path), self.path.display());
        let mut below = Path::new(path);
        if below.is_absolute() {
            let mut folders = [&self.path, &self.given].into_iter();
            let found = folders.find_map(|folder| below.strip_prefix(folder).ok());
            below = found.ok_or_else(outside)?;
        }
        let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        let is_below = below.components().all(is_plain);
        let below = below.to_str().filter(|text| is_below && !text.is_empty());
        below.map(str::to_owned).ok_or_else(outside)
    }

    fn existing(&self, path: &str) -> Result<File, String> {
        let quoted = shown(path);
        match self.dir.regular(path) {
            Ok(Some(file)) => Ok(file.file),
            Ok(None) => Err(format!(
                "there is no file `{quoted}` below `{}`",
                self.path.display()
            )),
            Err(NotRead::Link) => Err(format!("`{quoted}` contains a symbolic link")),
            Err(NotRead::NotRegular) => Err(format!("`{quoted}` is not a regular file")),
            Err(NotRead::System(why)) => Err(unreadable(path, &why.into())),
        }
    }

    fn new_file(&self, path: &str) -> Result<NewFile, String> {
        let quoted = shown(path);
        let below = Path::new(path);
        let name = below.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| format!("`{quoted}` names no file"))?;
        let parent = below.parent().and_then(Path::to_str).unwrap_or_default();
        let parent = if parent.is_empty() { "." } else { parent };
        let parent = self.dir.dir(parent).map_err(|why| match why {
            Errno::NOENT | Errno::NOTDIR => format!("the folder of `{quoted}` does not exist"),
            Errno::LOOP => format!("`{quoted}` contains a symbolic link"),
            why => format!("the folder of `{quoted}` cannot be opened: {why}"),
        })?;
        match parent.stat(name) {
            Ok(None) => {}
            Ok(Some(_)) => {
                return Err(format!(
                    "`{quoted}` already exists, and files are not replaced"
                ));
            }
            Err(why) => return Err(format!("`{quoted}` cannot be looked up: {why}")),
        }
        let made = parent.create_unused(
            |number| format!(".anklume-{number}"),
            Mode::from_raw_mode(MODE),
        );
        let (temporary, file) =
            made.map_err(|why| format!("`{quoted}` cannot be written: {why}"))?;
        Ok(NewFile {
            parent,
            temporary,
            name: name.to_owned(),
            path: path.to_owned(),
            file,
            is_kept: false,
        })
    }
}

fn unreadable(path: &str, why: &io::Error) -> String {
    format!("`{}` cannot be read: {why}", shown(path))
}

impl NewFile {
    pub(super) const fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub(super) fn not_written(&self, why: &io::Error) -> String {
        format!("`{}` cannot be written: {why}", shown(&self.path))
    }

    /// Gives the file its name; returns its path and its size, in bytes.
    pub(super) fn keep(mut self) -> Result<(String, u64), String> {
        let size = self.file.metadata().map(|metadata| metadata.len());
        let size = size.map_err(|why| self.not_written(&why))?;
        match self.parent.rename_new(&self.temporary, &self.name) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                return Err(format!(
                    "`{}` was created in the meantime, and files are not replaced",
                    shown(&self.path)
                ));
            }
            Err(why) => return Err(self.not_written(&why.into())),
        }
        self.is_kept = true;
        Ok((self.path.clone(), size))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_kept {
            // Nothing else can be done.
            let _ = self.parent.remove(&self.temporary);
        }
    }
}
