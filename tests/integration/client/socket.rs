//! A well-behaved server behind a socket: checks the output, its format and the exit code.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Server, against};
use crate::harness::{ANKLUME, Anklume, have_program};

#[test]
fn text_comes_out_byte_for_byte_and_json_whole() {
    if let Some(ran) = against("bytes_as_they_are", &["mcp", "call", "x"]) {
        ran.answers("a\r\n\u{1b}[2J\u{9b}\u{202e}é\n\nno newline");
    }
    if let Some(ran) = against("other_content", &["mcp", "call", "x"]) {
        ran.answers("text\n[image image/png, 4 bytes in base64]\n[resource file:///x]");
    }
    if let Some(ran) = against("structured_only", &["mcp", "call", "x"]) {
        ran.answers(r#"{"a":1}"#);
    }
    let json = ["mcp", "call", "x", "--format", "json"];
    if let Some(ran) = against("structured_only", &json) {
        ran.answers("{\n  \"content\": [],\n  \"structuredContent\": {\n    \"a\": 1\n  }\n}\n");
    }
    if let Some(ran) = against("other_content", &json) {
        let more = "  \"more\": {\n    \"kept\": [\n      1\n    ]\n  }\n}\n";
        assert!(ran.stdout.ends_with(more), "{}", ran.stdout);
    }
}

#[test]
fn on_a_terminal_text_is_escaped_and_ends_its_line() {
    if !have_program("python3") {
        return;
    }
    let server = Server::start("bytes_as_they_are");
    let spawn = "import pty, sys; pty.spawn(sys.argv[1:])";
    let ran = std::process::Command::new("python3")
        .args(["-c", spawn, ANKLUME, "mcp", "call", "x", "--socket"])
        .arg(server.socket())
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    // The terminal itself writes each newline as `\r\n`.
    let shown = "a\\r\r\n\\u{1b}[2J\\u{9b}\\u{202e}é\r\n\r\nno newline\r\n";
    assert_eq!(String::from_utf8(ran.stdout).unwrap(), shown);
}

#[test]
fn a_listing_is_a_table_or_the_whole_result() {
    if let Some(ran) = against("echo", &["mcp", "list"]) {
        ran.answers("echo  Gives back its arguments.\n");
    }
    if let Some(ran) = against("pages", &["mcp", "list"]) {
        ran.answers("a\nb  é\n");
    }
    if let Some(ran) = against("pages", &["mcp", "list", "--format", "json"]) {
        let whole: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        let expected = r#"{"tools":[{"name":"a","inputSchema":{}},{"name":"b","description":"é","inputSchema":{}}],"kept":1}"#;
        assert_eq!(whole.to_string(), expected);
    }
}

#[test]
fn arguments_are_typed_by_the_schema() {
    let cases: [(&[&str], &str); 5] = [
        (
            &["text=1", "count=2", "sure=true"],
            r#"{"text": "1", "count": 2, "sure": true}"#,
        ),
        (&[r#"{"any": [1.5, null]}"#], r#"{"any": [1.5, null]}"#),
        (&["text:=\"@a\""], r#"{"text": "@a"}"#),
        (&["text==a=b"], r#"{"text": "=a=b"}"#),
        (&[], "{}"),
    ];
    for (arguments, expected) in cases {
        let args = [&["mcp", "call", "echo"], arguments].concat();
        if let Some(ran) = against("echo", &args) {
            ran.answers(expected);
        }
    }
    let all = "its arguments: text, count, sure, data";
    let wrong = [
        (
            "cuont=1",
            format!("`echo` has no argument `cuont`\n  = help: did you mean `count`? {all}"),
        ),
        (
            "zzz=1",
            format!("`echo` has no argument `zzz`\n  = help: {all}"),
        ),
        (
            "count=many",
            "argument `count` must be a whole number, not `many`".to_owned(),
        ),
        (
            "sure=1",
            "argument `sure` must be `true` or `false`, not `1`".to_owned(),
        ),
    ];
    for (argument, message) in wrong {
        if let Some(ran) = against("echo", &["mcp", "call", "echo", argument]) {
            ran.is(2, "", &format!("error: {message}\n"));
        }
    }
}

#[test]
fn stdin_and_files_are_arguments_of_any_size() {
    if !have_program("python3") {
        return;
    }
    let server = Server::start("echo");
    let run = |argument: &str, stdin: &[u8]| {
        Anklume::new()
            .file("f", stdin)
            .args(["mcp", "call", "echo", argument, "--socket"])
            .args([server.socket()])
            .stdin(stdin)
            .run()
    };
    // Twice the kernel's limit for one command-line argument.
    let text = "é".repeat(128 * 1024);
    let bytes = [text.as_bytes(), &[0, 0xff]].concat();
    let encoded = STANDARD.encode(&bytes);
    for argument in ["data=@f", "data=-", "data=@-"] {
        run(argument, &bytes).answers(&format!(r#"{{"data": "{encoded}"}}"#));
    }
    let escaped = "\\u00e9".repeat(128 * 1024);
    for argument in ["text=@f", "text=-"] {
        run(argument, text.as_bytes()).answers(&format!(r#"{{"text": "{escaped}"}}"#));
    }
    let object = format!(r#"{{"text": "{text}"}}"#);
    run("-", object.as_bytes()).answers(&format!(r#"{{"text": "{escaped}"}}"#));
    let at = 256 * 1024 + 1;
    let message = format!(
        "error: stdin is not UTF-8 at byte {at}, but `text` is a string
"
    );
    run("text=-", &bytes).is(1, "", &message);
    let message = "error: `nowhere` cannot be read: No such file or directory (os error 2)\n  = help: `@` before a name means a file; for text that begins with it: text:='\"@…\"'\n";
    run("text=@nowhere", &[]).is(1, "", message);
    run("-", b"[1]").is(
        2,
        "",
        "error: the arguments are not a JSON object: the text is another kind of JSON value\n",
    );
}

#[test]
fn a_payload_that_comes_in_pieces_is_one_answer() {
    let whole: Vec<u8> = (0..=255).cycle().take(256 * 10 * 4096).collect();
    let encoded = STANDARD.encode(whole);
    let call = ["mcp", "call", "fetch", "path=x"];
    if let Some(ran) = against("pieces", &call) {
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        assert!(ran.stdout == encoded, "{} bytes", ran.stdout.len());
    }
    if let Some(ran) = against("pieces", &[&call[..], &["--format", "json"]].concat()) {
        let result: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert!(result["content"][0]["text"] == encoded.as_str());
        assert_eq!(result["structuredContent"]["size"], 256 * 10 * 4096);
    }
}

#[test]
fn a_refused_tool_names_those_there_are_and_whom_to_ask() {
    let help = "available tools: echo; the operator can see why on the host: `anklume policy explain --caller MACHINE --service clipboard`";
    for arguments in [&["x=1"][..], &[]] {
        let args = [&["mcp", "call", "clipboard"], arguments].concat();
        if let Some(ran) = against("refuses", &args) {
            let message = format!("error: Unknown tool: clipboard\n  = help: {help}\n");
            ran.is(3, "", &message);
        }
    }
}

#[test]
fn progress_gives_a_call_its_time_anew() {
    let args = ["mcp", "call", "x", "--timeout", "2"];
    if let Some(ran) = against("slow_with_progress", &args) {
        ran.answers("done");
    }
}

#[test]
fn a_time_out_is_a_sensible_number() {
    for seconds in ["0", "-1", "NaN", "inf", "1e-30", "100000"] {
        let option = format!("--timeout={seconds}");
        let ran = Anklume::new().args(["mcp", "list", &option]).run();
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{seconds}");
        let begin = "error: `--timeout` must be more than 0 and at most 86400 seconds, not ";
        assert!(ran.stderr.starts_with(begin), "{}", ran.stderr);
    }
}

#[test]
fn inside_a_machine_a_name_is_a_socket_and_nothing_else() {
    if !have_program("python3") {
        return;
    }
    let server = Server::start("echo");
    let run = |args: &[&str]| {
        Anklume::new()
            .args(["mcp", "list"])
            .args(args.iter().copied().map(str::to_owned))
            .env("ANKLUME_SOCKET_DIR", server.folder().to_str().unwrap())
            .run()
    };
    run(&["-i", "far"]).answers("echo  Gives back its arguments.\n");
    run(&["--machine", "far"]).answers("echo  Gives back its arguments.\n");
    let message = format!(
        "error: Cannot reach MCP server: no socket exists at `{}/fat.sock`\n  = help: did you mean `far`? available: far\n",
        server.folder().display()
    );
    run(&["-i", "fat"]).is(4, "", &message);
    run(&["-i", "../far"]).is(2, "", "error: `../far` is not a machine name: a machine name must consist of lower-case letters, digits and `-`, with a letter or digit at both ends\n");
    run(&["-i", "far", "--project", "p"]).is(2, "", "error: `--project` has no meaning inside a machine: a provider is reached over its socket\n");
}

#[test]
fn a_socket_overrides_all_that_picks_a_channel() {
    if !have_program("python3") {
        return;
    }
    let server = Server::start("echo");
    let socket = server.socket();
    let ways: [&[&str]; 4] = [
        &["list", "-i", "nowhere"],
        &["list", "--machine", "No name", "--project", "p"],
        &["list", "--project", "p"],
        &["connect", "nowhere", "--project", "p"],
    ];
    for way in ways {
        for inside in [true, false] {
            let mut run = Anklume::new()
                .args(["mcp"])
                .args(way.iter().copied().map(str::to_owned))
                .args(["--socket", &socket]);
            if inside {
                run = run.env("ANKLUME_SOCKET_DIR", "/nowhere");
            }
            let ran = run.run();
            let listed = match way {
                ["connect", ..] => "",
                _ => "echo  Gives back its arguments.\n",
            };
            ran.is(0, listed, "");
        }
    }
}

#[test]
fn a_project_is_named_with_its_machine() {
    for command in ["list", "call x", "connect"] {
        let words = command.split(' ').map(str::to_owned);
        let ran = Anklume::new()
            .args(["mcp"])
            .args(words)
            .args(["--project", "p"])
            .run();
        assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{command}");
    }
}

#[test]
fn what_can_be_no_socket_is_said_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.sock");
    std::fs::write(&file, "").unwrap();
    let long = folder.path().join("x".repeat(108));
    let run = |path: &std::path::Path, message: &str| {
        let ran = Anklume::new()
            .args(["mcp", "list", "--socket"])
            .args([path.to_str().unwrap()])
            .run();
        let message = format!("error: Cannot reach MCP server: {message}\n");
        ran.is(4, "", &message);
    };
    let message = format!(
        "this file is not a socket: `{}`\n  = help: name the socket of a provider: a file `PROVIDER.sock`",
        file.display()
    );
    run(&file, &message);
    let message = format!(
        "this socket path is longer than 107 bytes: `{}`\n  = help: use a shorter path, such as a relative one or one through a symbolic link",
        long.display()
    );
    run(&long, &message);
}

#[test]
fn a_socket_without_a_server_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("x.sock");
    let run = || {
        Anklume::new()
            .args(["mcp", "list", "--socket"])
            .args([socket.to_str().unwrap()])
            .run()
    };
    let begin = "error: Cannot reach MCP server: ";
    let message = format!(
        "{begin}no socket exists at `{}`\n  = help: that folder contains no socket; `-i PROVIDER` finds a provider's socket\n",
        socket.display()
    );
    run().is(4, "", &message);
    let empty = folder.path().to_str().unwrap();
    Anklume::new()
        .args(["mcp", "list", "-i", "x"])
        .env("ANKLUME_SOCKET_DIR", empty)
        .run()
        .is(
            4,
            "",
            &message.replace(
                "that folder contains no socket; `-i PROVIDER` finds a provider's socket",
                "no provider serves this machine; the operator declares services in infra.yml",
            ),
        );
    // A relative path without a folder.
    let ran = Anklume::new()
        .file("near.sock", "")
        .args(["mcp", "list", "--socket", "naer.sock"])
        .run();
    let message = format!(
        "{begin}no socket exists at `naer.sock`\n  = help: did you mean `near`? available: near\n"
    );
    ran.is(4, "", &message);
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let message = format!(
        "{begin}no server is listening on socket `{}`\n  = help: the provider is stopped or its server is not running: ask the operator\n",
        socket.display()
    );
    run().is(4, "", &message);
}

#[test]
fn a_dry_run_shows_the_messages_and_sends_nothing() {
    let ran = Anklume::new()
        .file("f", "hi")
        .args(["mcp", "call", "gpg_sign", "data=@f", "--dry-run"])
        .args(["--socket", "/nowhere/it's"])
        .run();
    let hello = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"_meta":{"progressToken":1},"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"anklume","version":"VERSION"}}}
{"jsonrpc":"2.0","method":"notifications/initialized"}
{"jsonrpc":"2.0","id":2,"method":"tools/list","params":{"_meta":{"progressToken":2}}}
"#.replace("VERSION", env!("CARGO_PKG_VERSION"));
    let call = r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"_meta":{"progressToken":3},"name":"gpg_sign","arguments":{"data":"aGk="}}}
"#;
    let opening = "# connect to '/nowhere/it'\\''s'\n";
    ran.answers(&format!("{opening}{hello}{call}"));
}

#[test]
fn a_folder_of_sockets_that_cannot_be_read_does_not_count_as_empty() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let missing = folder.path().join("missing");
    let causes = [
        (&missing, "No such file or directory (os error 2)"),
        (&file, "Not a directory (os error 20)"),
    ];
    let commands: [&[&str]; 5] = [
        &["clipboard", "get"],
        &["file", "list"],
        &["file", "pull", "x"],
        &["file", "push", "main.rs"],
        &["sign", "main.rs"],
    ];
    let run = |folder: &std::path::Path, command: &[&str]| {
        Anklume::new()
            .file("main.rs", "")
            .args(command.iter().copied().map(str::to_owned))
            .env("ANKLUME_SOCKET_DIR", folder.to_str().unwrap())
            .run()
    };
    for command in commands {
        for (folder, why) in causes {
            let message = format!(
                "error: Cannot reach MCP server: cannot read `{}`: {why}\n  = help: `ANKLUME_SOCKET_DIR` names the folder of the providers' sockets; without it, that is `/srv/anklume/mcp`\n",
                folder.display()
            );
            run(folder, command).is(4, "", &message);
        }
        // An empty one is: no provider could be meant.
        let ran = run(folder.path(), command);
        assert_eq!(ran.status, 2, "{command:?}: {}", ran.stderr);
        assert!(
            ran.stderr.starts_with("error: no provider of `"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn a_socket_is_not_suggested_as_its_own_correction() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("vault.sock")).unwrap();
    let ran = Anklume::new()
        .args(["mcp", "list", "-i", "vault"])
        .env("ANKLUME_SOCKET_DIR", folder.path().to_str().unwrap())
        .run();
    let message = format!(
        "error: Cannot reach MCP server: no socket exists at `{}/vault.sock`\n  = help: the provider is stopped or its server is not running: ask the operator\n",
        folder.path().display()
    );
    ran.is(4, "", &message);
}
