//! Without `-i`: the server is a child of the client.

use crate::harness::Anklume;

#[test]
fn the_five_tools_are_listed_in_order() {
    let ran = Anklume::new().args(["mcp", "list"]).run();
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    let names: Vec<&str> = ran
        .stdout
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let five = [
        "gpg_sign",
        "clipboard_get",
        "clipboard_set",
        "file_accept",
        "file_provide",
    ];
    assert_eq!(names, five);
}

#[test]
fn an_unknown_tool_names_those_there_are() {
    let there = "there are: gpg_sign, clipboard_get, clipboard_set, file_accept, file_provide";
    for arguments in [
        &["clipbord_get", "a=1"][..],
        &["clipbord_get"],
        &["clipbord_get", "{}"],
    ] {
        let ran = Anklume::new()
            .args(["mcp", "call"])
            .args(arguments.iter().copied())
            .run();
        let message = format!(
            "error: Unknown tool: clipbord_get\n  = help: did you mean `clipboard_get`? {there}\n"
        );
        ran.is(1, "", &message);
    }
    let ran = Anklume::new().args(["mcp", "call", "\u{1b}"]).run();
    ran.is(
        1,
        "",
        &format!("error: Unknown tool: \\u{{1b}}\n  = help: {there}\n"),
    );
}
