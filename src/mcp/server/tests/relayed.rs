//! Tests that `mcp connect` waits for exactly the answers that this server sends.

use proptest::prelude::*;

use super::*;
use crate::mcp::relay::{Relay, RelayEnd};

/// A timeout that only a hang can reach.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Creates a server whose tools finish immediately.
fn prompt() -> Server {
    server(|_, _| Box::pin(async { Ok(outcome("done")) }))
}

/// Returns the server's answers to a finite input.
async fn answers(input: &[u8]) -> Vec<u8> {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (far_reader, far_writer) = tokio::io::split(far);
    let (mut reader, mut writer) = tokio::io::split(near);
    writer.write_all(input).await.unwrap();
    writer.shutdown().await.unwrap();
    prompt()
        .serve(far_reader, far_writer, Shutdown::default())
        .await;
    let mut all = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut all)
        .await
        .unwrap();
    all
}

/// Relays a finite input to the server; returns how the relay ended, and its output.
async fn relayed(input: &[u8]) -> (RelayEnd, Vec<u8>) {
    let (near, far) = tokio::io::duplex(4096);
    let (far_reader, far_writer) = tokio::io::split(far);
    let (reader, writer) = tokio::io::split(near);
    let serving = tokio::spawn(prompt().serve(far_reader, far_writer, Shutdown::default()));
    let mut output = Vec::new();
    let mut relay = Relay::new(input, &mut output, || true);
    let run = relay.run(reader, writer, TIMEOUT * 2);
    let ended = tokio::time::timeout(TIMEOUT, run).await;
    let shown = String::from_utf8_lossy(input);
    let ended =
        ended.unwrap_or_else(|_| panic!("the relay waits for an answer that never comes: {shown}"));
    serving.await.unwrap();
    (ended.unwrap(), output)
}

/// Counts lines, because the order of the answers to two requests with the same id is undefined.
fn lines_of(bytes: &[u8]) -> usize {
    bytes.split_inclusive(|byte| *byte == b'\n').count()
}

/// Generates lines of every kind, including near-requests.
fn any_line() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![
        Just(""),
        Just(r#""jsonrpc":"2.0","#),
        Just(r#""jsonrpc":1,"#)
    ];
    let id = prop_oneof![
        Just(""),
        Just(r#""id":1,"#),
        Just(r#""id":2,"#),
        Just(r#""id":"é","#),
        Just(r#""id":null,"#),
        Just(r#""id":1.5,"#),
        Just(r#""id":[1],"#),
        Just(r#""id":1,"id":1,"#),
    ];
    let body = prop_oneof![
        Just(r#""method":"ping""#),
        Just(r#""method":"tools/call","params":{"name":"clipboard_get"}"#),
        Just(r#""method":"notifications/initialized""#),
        Just(r#""method":7"#),
        Just(r#""result":{}"#),
        Just(r#""error":{}"#),
        Just(r#""a":1"#),
        Just(r#""a":"#),
    ];
    let nearly = (version, id, body)
        .prop_map(|(version, id, body)| format!("{{{version}{id}{body}}}").into_bytes());
    let garbage = proptest::collection::vec(any::<u8>(), 0..20);
    prop_oneof![4 => nearly, 1 => garbage]
}

#[test]
fn every_answer_of_the_server_is_out_before_the_relay_ends_and_none_is_waited_for_that_never_comes()
{
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = ProptestConfig {
        // Each failing attempt takes as long as the timeout.
        max_shrink_iters: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(lines in proptest::collection::vec(any_line(), 0..6))| {
        let input = lines.join(&b'\n');
        runtime.block_on(async {
            let (ended, output) = relayed(&input).await;
            assert_eq!(ended, RelayEnd::InOrder);
            let answers = answers(&input).await;
            let shown = String::from_utf8_lossy(&input);
            assert_eq!(lines_of(&output), lines_of(&answers), "{shown}");
        });
    });
}
