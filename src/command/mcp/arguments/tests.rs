//! Tests how arguments are read from the command line and converted.

use super::*;

fn tool() -> Tool {
    let schema = r#"{"name":"t","outputSchema":{"type":"object","properties":{"complete":{}}},
            "inputSchema":{"type":"object","additionalProperties":false,"properties":{
            "text":{"type":"string"},"maybe":{"type":["integer","null"]},"ratio":{"type":"number"},
            "final":{"type":"boolean"},"list":{"type":"array"},"offset":{"type":"integer"},
            "data":{"type":"string"}}},
            "_meta":{"anklume/base64":["data"]}}"#;
    serde_json::from_str(schema).unwrap()
}

async fn made(words: &[&str]) -> Result<Arguments, Failure> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    typed(parse(&words)?, &tool()).await
}

#[tokio::test]
async fn values_get_the_type_of_the_schema() {
    let words = [
        "text=1",
        "maybe=-7",
        "ratio=1.5e3",
        "final=true",
        "list:=[1]",
    ];
    let arguments = made(&words).await.unwrap();
    let expected = r#"{"text":"1","maybe":-7,"ratio":1500.0,"final":true,"list":[1]}"#;
    assert_eq!(serde_json::to_string(&arguments.object).unwrap(), expected);
}

#[tokio::test]
async fn a_value_of_another_type_and_an_unknown_key_are_usage_errors() {
    let cases = [
        (
            "maybe=x",
            "argument `maybe` must be a whole number, not `x`",
            None,
        ),
        (
            "maybe=1.0",
            "argument `maybe` must be a whole number, not `1.0`",
            None,
        ),
        (
            "ratio=NaN",
            "argument `ratio` must be a number, not `NaN`",
            None,
        ),
        (
            "final=yes",
            "argument `final` must be `true` or `false`, not `yes`",
            None,
        ),
        (
            "list=1",
            "argument `list` must be an array, not `1`",
            Some("write it in JSON: `list:=…`"),
        ),
        (
            "data=test",
            "`data` takes bytes, and plain text is ambiguous: it could be the bytes or their base64",
            Some(
                "a file: `data=@FILE`; stdin: `printf TEXT | anklume mcp call … data=-`; base64: `data:='\"…\"'`",
            ),
        ),
        (
            "txet=1",
            "`t` has no argument `txet`",
            Some(
                "did you mean `text`? its arguments: text, maybe, ratio, final, list, offset, data",
            ),
        ),
    ];
    for (word, message, help) in cases {
        let failure = made(&[word]).await.unwrap_err();
        assert_eq!(
            (
                failure.exit,
                failure.message.as_str(),
                failure.help.as_deref()
            ),
            (Exit::Usage, message, help)
        );
    }
}

#[tokio::test]
async fn files_become_base64_where_the_schema_says_so_and_text_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    std::fs::write(&path, "é").unwrap();
    let path = path.to_str().unwrap();
    let words = [format!("text=@{path}"), format!("data=@{path}")];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let arguments = made(&words).await.unwrap();
    let expected = r#"{"text":"é","data":"w6k="}"#;
    assert_eq!(serde_json::to_string(&arguments.object).unwrap(), expected);
    std::fs::write(path, [b'a', 0xff]).unwrap();
    let failure = made(&words[..1]).await.unwrap_err();
    let message = format!("`{path}` is not UTF-8 at byte 1, but `text` is a string");
    assert_eq!((failure.exit, failure.message), (Exit::Failed, message));
}

#[tokio::test]
async fn only_what_is_too_large_for_one_call_goes_in_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    let word = format!("data=@{}", path.to_str().unwrap());
    let limit = usize::try_from(ONE_CALL_MAX).unwrap();
    for (size, pieces) in [(limit, false), (limit + 1, true)] {
        std::fs::write(&path, vec![0; size]).unwrap();
        let arguments = made(&[&word]).await.unwrap();
        assert_eq!(arguments.payload.is_some(), pieces, "{size}");
        assert_eq!(arguments.object.contains_key("data"), !pieces, "{size}");
        let object = format!(r#"{{"data":"{}"}}"#, STANDARD.encode(vec![0; size]));
        let arguments = made(&[&object]).await.unwrap();
        assert_eq!(arguments.payload.is_some(), pieces, "{size} in an object");
    }
}

#[test]
fn what_the_help_shows_works_in_a_shell() {
    for (word, expected) in [("key=@/nowhere/x", "@…"), ("key:=x", "text")] {
        let help = parse(&[word.to_owned()]).unwrap_err().help.unwrap();
        let (_, form) = help.split_once(": key").unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "the test runs the help text in a shell"
        )]
        let shell = std::process::Command::new("sh")
            .args(["-c", &format!("printf %s key{form}")])
            .output()
            .unwrap();
        let typed = String::from_utf8(shell.stdout).unwrap();
        let given = parsed(&[&typed]);
        assert_eq!(
            given,
            format!("Pairs([(\"key\", Json(String({expected:?})))])")
        );
    }
}

fn parsed(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    match parse(&words) {
        Ok(given) => format!("{given:?}"),
        Err(failure) => failure.message,
    }
}

#[test]
fn every_form_is_read_and_a_wrong_one_is_named() {
    let cases: [(&[&str], &str); 18] = [
        (&[], "Pairs([])"),
        (&["-"], "Stdin"),
        (&[r#" {"a":1}"#], r#"Object({"a": Number(1)})"#),
        (&["a=b=c"], r#"Pairs([("a", Text("b=c"))])"#),
        (&["a="], r#"Pairs([("a", Text(""))])"#),
        (&["a=--x"], r#"Pairs([("a", Text("--x"))])"#),
        (&["a:=[1]"], r#"Pairs([("a", Json(Array [Number(1)]))])"#),
        (&["a:=\"@x\""], r#"Pairs([("a", Json(String("@x")))])"#),
        (
            &["a=-"],
            r#"Pairs([("a", Content { from: "stdin", source: Source })])"#,
        ),
        (&["a=-", "b=@-"], "only one argument can come from stdin"),
        (&["a"], "`a` is not an argument"),
        (&["=a"], "`=a` is not an argument"),
        (&["a=1", "a=2"], "argument `a` is given twice"),
        (
            &["a:=x"],
            "argument `a` is not JSON: expected value at line 1 column 1",
        ),
        (
            &["a=@/nowhere/x"],
            "`/nowhere/x` cannot be read: No such file or directory (os error 2)",
        ),
        (&["a=@/dev/zero"], "`/dev/zero` is a device, not a file"),
        (
            &[r#"{"a":1,"a":2}"#],
            "the arguments are not a JSON object: duplicate key `a` at line 1 column 10",
        ),
        (
            &[r#"{"a":1} x"#],
            "the arguments are not a JSON object: trailing characters at line 1 column 9",
        ),
    ];
    for (words, expected) in cases {
        assert_eq!(parsed(words), expected, "{words:?}");
    }
}
