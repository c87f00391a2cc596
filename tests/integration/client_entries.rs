//! `anklume mcp config`: what it prints, and what it adds to the files of MCP clients.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::harness::Anklume;

fn config(args: &[&str]) -> Anklume {
    // As in a machine.
    let run = Anklume::new().env("ANKLUME_SOCKET_DIR", "/nonexistent");
    run.args([&["mcp", "config"], args].concat())
}

#[test]
fn an_entry_is_printed_for_each_client() {
    let json = |root: &str, kind: &str, folder: &str| {
        format!(
            "{{\n  \"{root}\": {{\n    \"anklume\": {{\n{kind}      \"command\": \"anklume\",\n      \"args\": [\n        \"mcp\",\n        \
             \"connect\",\n        \"--files\",\n        \"{folder}\"\n      ]\n    }}\n  }}\n}}\n"
        )
    };
    let kind = "      \"type\": \"stdio\",\n";
    let toml = "[mcp_servers.anklume]\ncommand = \"anklume\"\nargs = [\"mcp\", \"connect\", \"--files\", \".\"]\n";
    for (client, file, printed) in [
        ("claude", ".mcp.json", json("mcpServers", "", ".")),
        ("codex", ".codex/config.toml", toml.to_owned()),
        (
            "gemini",
            ".gemini/settings.json",
            json("mcpServers", "", "."),
        ),
        (
            "vscode",
            ".vscode/mcp.json",
            json("servers", kind, "${workspaceFolder}"),
        ),
        (
            "cursor",
            ".cursor/mcp.json",
            json("mcpServers", "", "${workspaceFolder}"),
        ),
    ] {
        let note = format!("add this to `{file}` in the project's folder, or use `--write`\n");
        config(&[client]).run().is(0, &printed, &note);
        // The same is written.
        let ran = config(&[client, "--write"]).run();
        ran.is(0, "", &format!("added `anklume` to `{file}`\n"));
        assert_eq!(ran.read(file), printed);
        let again = Anklume::in_folder(ran.folder).env("ANKLUME_SOCKET_DIR", "/nonexistent");
        let again = again.args(["mcp", "config", client, "--write"]);
        again
            .run()
            .is(0, "", &format!("`{file}` already has this entry\n"));
    }
    let one = config(&["codex", "vault", "--files", "/work"]).run();
    assert!(
        one.stdout
            .contains("args = [\"mcp\", \"connect\", \"vault\", \"--files\", \"/work\"]"),
        "{}",
        one.stdout
    );
}

#[test]
fn a_file_keeps_its_other_content_its_permissions_and_its_link() {
    let run = config(&["claude", "--write", "--config-file", "link.json"])
        .file("real.json", "{\n    \"theme\": \"dark\"\n}\n");
    let real = run.path().join("real.json");
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o600)).unwrap();
    symlink("real.json", run.path().join("link.json")).unwrap();
    let ran = run.run();
    ran.is(0, "", "added `anklume` to `link.json`\n");
    let content = ran.read("real.json");
    assert!(
        content.starts_with(
            "{\n    \"theme\": \"dark\",\n    \"mcpServers\": {\n        \"anklume\": {"
        ),
        "{content}"
    );
    let real = ran.folder.path().join("real.json");
    let mode = std::fs::metadata(real).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let link = ran.folder.path().join("link.json");
    assert!(link.is_symlink());
}

#[test]
fn what_is_there_is_not_replaced() {
    let other = r#"{"mcpServers": {"anklume": {"command": "mine"}}}"#;
    let ran = config(&["claude", "--write"])
        .file(".mcp.json", other)
        .run();
    ran.is(
        1,
        "",
        "error: `.mcp.json` has a different entry `anklume`, which is not replaced\n  = help: remove that entry, or change it by hand\n",
    );
    assert_eq!(ran.read(".mcp.json"), other);
    let commented = "{\n  // mine\n}\n";
    let ran = config(&["vscode", "--write"])
        .file(".vscode/mcp.json", commented)
        .run();
    ran.is(
        1,
        "",
        "error: `.vscode/mcp.json` cannot be changed: it is not a plain JSON object (comments are not understood): key must be a string at line 2 column 3\n  \
         = help: without `--write`, the entry is printed, to be added by hand\n",
    );
    assert_eq!(ran.read(".vscode/mcp.json"), commented);
    let ran = config(&["gemini", "--write"])
        .file(".gemini/settings.json", r#"{"mcpServers": 5}"#)
        .run();
    ran.is(
        1,
        "",
        "error: `mcpServers` in `.gemini/settings.json` is not a table of servers\n  = help: correct it, or name another file with `--config-file`\n",
    );
    let ran = config(&["cursor", "--write"])
        .file(".cursor/mcp.json/file", "")
        .run();
    ran.is(
        1,
        "",
        "error: cannot read `.cursor/mcp.json`: it is not a regular file\n",
    );
}
