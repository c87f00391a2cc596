//! Tests the relay between a client and all kinds of providers.

use tokio::io::{BufReader, DuplexStream, ReadHalf, WriteHalf, duplex, split};

use super::*;

const PATIENCE: Duration = Duration::from_millis(200);

/// Relays `input` to a provider that replies to each line with `answer`; unless it `stays`, it closes after the first.
async fn relayed(
    input: &[u8],
    stays: bool,
    mut answer: impl FnMut(&[u8]) -> String,
) -> (RelayEnd, Vec<u8>, Vec<u8>) {
    let (near, far) = duplex(256);
    let (reader, writer) = split(near);
    let (far_reader, far_writer) = split(far);
    let mut output = Vec::new();
    let mut seen = Vec::new();
    let provide = async {
        use tokio::io::AsyncBufReadExt as _;
        // Moved in, so that the end of this task closes the stream.
        let mut far_writer = far_writer;
        let mut lines = BufReader::new(far_reader);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).await.unwrap() > 0 {
            seen.extend_from_slice(&line);
            let text = answer(&line);
            line.clear();
            if far_writer.write_all(text.as_bytes()).await.is_err() {
                break;
            }
            if !stays {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut relay = Relay::new(input, &mut output, || true);
    let run = relay.run(reader, writer, PATIENCE);
    let ended = tokio::select! {
        ended = run => ended.unwrap(),
        () = async { provide.await; std::future::pending().await } => unreachable!(),
    };
    (ended, output, seen)
}

const REFUSED: &str = "{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32700}}\n";

fn answered(line: &[u8]) -> String {
    let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
        return REFUSED.to_owned();
    };
    let Some(id) = message.get("id") else {
        return String::new();
    };
    format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n")
}

#[tokio::test]
async fn ends_when_every_request_has_its_answer_and_passes_bytes_as_they_are() {
    let input = b"{\"id\":1,\"method\":\"a\"}\r\n\xff not json\n{\"id\":\"x\",\"method\":\"b\"}\n";
    let (ended, output, seen) = relayed(input, true, answered).await;
    assert_eq!(ended, RelayEnd::InOrder);
    let result = |id: &str| format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":{{}}}}\n");
    assert_eq!(
        String::from_utf8(output).unwrap(),
        [&result("1"), REFUSED, &result("\"x\"")].concat()
    );
    assert_eq!(seen, input);
}

#[tokio::test]
async fn a_provider_that_is_silent_about_what_is_no_request_ends_it_in_order_but_not_one_that_never_spoke()
 {
    let input = b"{\"id\":1,\"method\":\"a\"}\nnonsense\n";
    let silent = |line: &[u8]| match answered(line).as_str() {
        REFUSED => String::new(),
        answer => answer.to_owned(),
    };
    let (ended, output, _) = relayed(input, true, silent).await;
    assert_eq!(ended, RelayEnd::InOrder);
    assert!(!output.is_empty());
    let (ended, ..) = relayed(b"nonsense\n", true, silent).await;
    assert_eq!(ended, RelayEnd::Silent { unanswered: 1 });
}

#[tokio::test]
async fn what_a_provider_said_before_it_went_is_passed_on_though_it_takes_nothing_any_more() {
    // Chance decides which of the two the relay notices first.
    for _ in 0..32 {
        let (near, far) = duplex(256);
        let (_, mut answers) = split(far);
        answers.write_all(REFUSED.as_bytes()).await.unwrap();
        // The provider's input is closed, so every write fails.
        let (reader, _) = split(near);
        let (writer, nobody) = duplex(1);
        drop(nobody);
        let mut output = Vec::new();
        let mut relay = Relay::new(&[b'x'; 1000][..], &mut output, || true);
        let ended = relay.run(reader, writer, PATIENCE).await;
        let vanished = RelayEnd::Vanished {
            unanswered: 0,
            spoke: true,
        };
        assert_eq!(ended.unwrap(), vanished);
        assert_eq!(output, REFUSED.as_bytes());
    }
}

#[tokio::test]
async fn a_provider_that_takes_nothing_is_silent_once_the_client_is_gone() {
    for gone in [true, false] {
        let input = vec![b'x'; CHUNK + 1];
        let (near, _far) = duplex(16);
        let (reader, writer) = split(near);
        let mut relay = Relay::new(input.as_slice(), Vec::new(), || gone);
        let run = relay.run(reader, writer, PATIENCE);
        let ended = timeout(PATIENCE * 3, run).await;
        match ended {
            Ok(ended) => assert!(gone && matches!(ended.unwrap(), RelayEnd::Silent { .. })),
            Err(_) => assert!(!gone),
        }
    }
}

#[tokio::test]
async fn an_id_is_the_same_however_it_is_written() {
    let input = br#"{"id":"\u00e9\/","method":"a"}"#;
    let other = |_: &[u8]| "{\"id\":\"é/\",\"result\":{}}\n".to_owned();
    let (ended, ..) = relayed(input, true, other).await;
    assert_eq!(ended, RelayEnd::InOrder);
}

#[tokio::test]
async fn the_last_line_needs_no_newline() {
    let (ended, output, seen) = relayed(b"{\"id\":1,\"method\":\"a\"}", true, answered).await;
    assert_eq!(ended, RelayEnd::InOrder);
    assert!(!output.is_empty());
    assert_eq!(seen.last(), Some(&b'\n'));
}

#[tokio::test]
async fn nothing_to_answer_ends_at_once_and_a_cancelled_request_is_not_waited_for() {
    let (ended, ..) = relayed(b"", true, answered).await;
    assert_eq!(ended, RelayEnd::InOrder);
    let cancelled = b"{\"id\":7,\"method\":\"a\"}\n{\"jsonrpc\":\"2.0\",\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":7}}\n";
    let (ended, ..) = relayed(cancelled, true, |_| String::new()).await;
    assert_eq!(ended, RelayEnd::InOrder);
}

#[tokio::test]
async fn a_provider_that_goes_or_is_silent_is_told_apart() {
    let input = b"{\"id\":1,\"method\":\"a\"}\n";
    let (ended, ..) = relayed(input, false, |_| String::new()).await;
    let vanished = RelayEnd::Vanished {
        unanswered: 1,
        spoke: false,
    };
    assert_eq!(ended, vanished);
    let (ended, ..) = relayed(input, true, |_| String::new()).await;
    assert_eq!(ended, RelayEnd::Silent { unanswered: 1 });
}

#[tokio::test]
async fn more_than_a_buffer_goes_both_ways_at_once() {
    let mut input = Vec::new();
    for id in 0..2_000 {
        input.extend_from_slice(format!("{{\"id\":{id},\"method\":\"a\"}}\n").as_bytes());
    }
    let (ended, output, seen) = relayed(&input, true, answered).await;
    assert_eq!(ended, RelayEnd::InOrder);
    assert_eq!(seen, input);
    assert_eq!(String::from_utf8(output).unwrap().lines().count(), 2_000);
}

type Talking = Relay<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>, fn() -> bool>;

/// Returns a client that can keep sending, and its relay.
fn talking() -> (DuplexStream, Talking) {
    let (client, near) = duplex(1 << 20);
    let (input, output) = split(near);
    let gone: fn() -> bool = || false;
    let relay = Relay::new(input, output, gone);
    (client, relay)
}

/// A client whose relay loses its first provider and continues with a second one.
struct Twice {
    /// The client's lines before and after the first server ends.
    before: &'static str,
    after: &'static str,
    /// The first server's lines before it ends.
    first: &'static str,
    /// The second server's answers, in order.
    second: Vec<&'static str>,
}

impl Twice {
    async fn run(self) -> (String, String) {
        let (mut client, mut relay) = talking();
        client.write_all(self.before.as_bytes()).await.unwrap();
        let (near, mut far) = duplex(1 << 20);
        let (reader, writer) = split(near);
        let gone = async {
            let mut seen = vec![0; self.before.len()];
            far.read_exact(&mut seen).await.unwrap();
            far.write_all(self.first.as_bytes()).await.unwrap();
            drop(far);
        };
        let (ended, ()) = tokio::join!(relay.run(reader, writer, PATIENCE), gone);
        assert!(matches!(ended.unwrap(), RelayEnd::Vanished { .. }));
        client.write_all(self.after.as_bytes()).await.unwrap();
        assert!(relay.outlive("gone").await.unwrap());
        let (near, far) = duplex(1 << 20);
        let (reader, writer) = split(near);
        let (from, mut to) = split(far);
        // Moved in, so that the end of this task closes the stream.
        let serves = async move {
            use tokio::io::AsyncBufReadExt as _;
            let mut lines = BufReader::new(from);
            let mut seen = String::new();
            for answer in &self.second {
                lines.read_line(&mut seen).await.unwrap();
                to.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        };
        let run = relay.run(reader, writer, PATIENCE);
        let (seen, ended) = tokio::join!(serves, run);
        assert!(matches!(ended.unwrap(), RelayEnd::Vanished { .. }));
        drop(relay);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        (text, seen)
    }
}

const HELLO: &str = "{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"initialize\",\"params\":{}}\n{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}\n";
const WELCOME: &str =
    "{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"capabilities\":{\"tools\":{}}}}\n";
/// The same answer as the client receives it.
const WELCOMED: &str = "{\"jsonrpc\":\"2.0\",\"id\":0,\"result\":{\"capabilities\":{\"tools\":{\"listChanged\":true}}}}\n";
const CHANGED: &str = "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n";

#[tokio::test]
async fn another_provider_takes_over_with_the_next_message_after_the_same_handshake() {
    let before: &str =
        Box::leak(format!("{HELLO}{{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"a\"}}\n").into());
    let next = "{\"jsonrpc\":\"2.0\",\"id\":8,\"method\":\"b\"}\n";
    let answer = "{\"jsonrpc\":\"2.0\",\"id\":8,\"result\":{}}\n";
    let (got, seen) = Twice {
        before,
        after: next,
        first: WELCOME,
        second: vec![WELCOME, "", answer],
    }
    .run()
    .await;
    let lost = "{\"jsonrpc\":\"2.0\",\"id\":7,\"error\":{\"code\":-32000,\"message\":\"gone\"}}\n";
    assert_eq!(got, [WELCOMED, lost, CHANGED, answer].concat());
    assert_eq!(seen, [HELLO, next].concat());
}

#[tokio::test]
async fn neither_half_a_message_nor_half_an_answer_reaches_the_other_side() {
    let (got, seen) = Twice {
        before: "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\"}\n{\"jsonrpc\":\"2.0\",\"id\":2,\"met",
        after: "hod\":\"a\"}\n{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"a\"}\n",
        first: "{\"jsonrpc\":\"2.0\",\"id\":1,\"res",
        second: vec!["{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{}}\n"],
    }
    .run()
    .await;
    let lost = |id| {
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":-32000,\"message\":\"gone\"}}}}\n"
        )
    };
    let answer = "{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{}}\n";
    assert_eq!(got, [&lost(1), &lost(2), answer].concat());
    assert_eq!(seen, "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"a\"}\n");
}

#[tokio::test]
async fn while_nobody_can_be_reached_each_request_is_answered_with_why() {
    let (mut client, mut relay) = talking();
    client
        .write_all(b"{\"id\":1,\"method\":\"a\"}\n{\"jsonrpc\":\"2.0\",\"method\":\"n\"}\n")
        .await
        .unwrap();
    assert!(relay.outlive("gone").await.unwrap());
    assert!(relay.refuse("nobody is there").await.unwrap());
    client.shutdown().await.unwrap();
    assert!(!relay.refuse("nobody is there").await.unwrap());
    let mut got = String::new();
    drop(relay);
    client.read_to_string(&mut got).await.unwrap();
    assert_eq!(
        got,
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"error\":{\"code\":-32000,\"message\":\"nobody is there\"}}\n"
    );
}

#[tokio::test]
async fn a_provider_that_takes_connections_and_says_nothing_is_no_reason_to_turn_in_circles() {
    let (mut client, mut relay) = talking();
    client.write_all(HELLO.as_bytes()).await.unwrap();
    let serve = async |relay: &mut Relay<_, _, _>, said: &str| {
        let (near, mut far) = duplex(1 << 20);
        let (reader, writer) = split(near);
        let goes = async {
            let mut seen = [0; 1024];
            let _ = far.read(&mut seen).await;
            far.write_all(said.as_bytes()).await.unwrap();
            drop(far);
        };
        tokio::join!(relay.run(reader, writer, PATIENCE), goes)
            .0
            .unwrap()
    };
    assert!(matches!(
        serve(&mut relay, WELCOME).await,
        RelayEnd::Vanished { spoke: true, .. }
    ));
    client
        .write_all(b"{\"id\":5,\"method\":\"a\"}\n{\"id\":6,\"method\":\"a\"}\n")
        .await
        .unwrap();
    assert!(relay.outlive("gone").await.unwrap());
    let refusal = "{\"jsonrpc\":\"2.0\",\"id\":0,\"error\":{\"code\":-32603,\"message\":\"no\"}}\n";
    for (said, ended) in [("", RelayEnd::Closed), (refusal, RelayEnd::NotGreeted)] {
        assert_eq!(serve(&mut relay, said).await, ended);
        // Each failed attempt answers one message.
        let goes_on = relay.refuse("not greeted");
        assert!(
            timeout(PATIENCE, goes_on)
                .await
                .map_or(said == refusal, Result::unwrap)
        );
    }
    drop(relay);
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    let refused = |id| {
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"error\":{{\"code\":-32000,\"message\":\"not greeted\"}}}}\n"
        )
    };
    assert_eq!(got, [WELCOMED, &refused(5), &refused(6)].concat());
}
