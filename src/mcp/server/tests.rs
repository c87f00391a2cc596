//! Tests connections: their peers, tools and shutdown, using tools defined by the tests.

mod relayed;
mod renewed;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::mcp::concurrency::ConcurrencyLimiter;
use crate::mcp::framing::{Line, Lines};
use crate::mcp::monitor::Local;
use crate::mcp::policy_watcher::Policy;
use crate::mcp::recorder::Recorder;
use crate::name::ToolName;
use crate::services::{Service, Services};

/// The other end of a connection.
struct Peer {
    lines: Lines<ReadHalf<DuplexStream>>,
    writer: WriteHalf<DuplexStream>,
    serving: JoinHandle<()>,
    stop: Shutdown,
}

impl Peer {
    /// Connects to a server over a 4 KiB pipe.
    fn of(server: Server) -> Self {
        let (near, far) = tokio::io::duplex(4096);
        let (far_reader, far_writer) = tokio::io::split(far);
        let (reader, writer) = tokio::io::split(near);
        let stop = Shutdown::default();
        Self {
            lines: Lines::new(reader, usize::MAX - 1),
            writer,
            serving: tokio::spawn(server.serve(far_reader, far_writer, stop.clone())),
            stop,
        }
    }

    async fn send(&mut self, message: Value) {
        self.send_text(&format!("{message}\n")).await;
    }

    async fn send_text(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).await.unwrap();
    }

    async fn call(&mut self, id: impl Into<Value>, name: &str) {
        self.send(call(id, name)).await;
    }

    /// Calls a tool, and tells the server to end while the call is running.
    async fn told_to_end_during_call(&mut self, id: impl Into<Value>, name: &str) {
        self.call(id, name).await;
        self.send(json!({"jsonrpc": "2.0", "id": "ping", "method": "ping"}))
            .await;
        // The answer to the ping shows that the preceding call was read.
        assert_eq!(self.receive().await["id"], "ping");
        self.stop.graceful.cancel();
    }

    async fn receive(&mut self) -> Value {
        let line = tokio::time::timeout(Duration::from_secs(120), self.lines.next()).await;
        let Some(Line::Whole(line)) = line.expect("an answer in time").unwrap() else {
            panic!("the stream ended");
        };
        serde_json::from_slice(&line).unwrap()
    }

    /// Closes the sending side: no more requests will follow.
    async fn end(&mut self) {
        self.writer.shutdown().await.unwrap();
    }

    /// Checks that the server ends and sends nothing more.
    async fn ended(mut self) {
        let next = tokio::time::timeout(Duration::from_secs(120), self.lines.next()).await;
        assert_eq!(next.expect("an end in time").unwrap(), None);
        self.serving.await.unwrap();
    }
}

fn call(id: impl Into<Value>, name: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "method": "tools/call", "params": {"name": name}})
}

/// Creates a server for the operator that runs its tools with `run`.
fn server(
    run: impl for<'a> Fn(&'a Grant, &'a ToolSession) -> RunningServer<'a> + Send + Sync + 'static,
) -> Server {
    let policy = Policy::new(Services::none("vault".parse().unwrap()));
    let mut server = Server::new(Caller::Operator, shared(move || Arc::clone(&policy)));
    server.run = Arc::new(move |grant, session, _| run(grant, session));
    server
}

/// Builds the shared state of a server without a log, with this policy.
fn shared(policy: impl Fn() -> Arc<Policy> + Send + Sync + 'static) -> Arc<Shared> {
    let settings = Settings::new("/nowhere".into(), "/nowhere".into());
    Arc::new(Shared {
        monitor: Box::new(Local {
            caller: Caller::Operator,
            policy: Box::new(policy),
            recorder: Arc::new(Recorder::new(None, false, Box::new(|_| {}))),
            limiter: Arc::new(ConcurrencyLimiter::default()),
        }),
        settings: Arc::new(settings),
        helpers: None,
        observer: Arc::new(|_| {}),
    })
}

fn outcome(text: &str) -> ToolOutcome {
    ToolOutcome {
        text: text.to_owned(),
        is_png: false,
        structured: Map::new(),
    }
}

/// Creates a server whose tools wait for a semaphore permit and then return their name.
fn waiting() -> (Server, Arc<Semaphore>) {
    let permits = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&permits);
    let server = server(move |grant, _| {
        let held = Arc::clone(&held);
        Box::pin(async move {
            held.acquire().await.unwrap().forget();
            Ok(outcome(grant.name()))
        })
    });
    (server, permits)
}

fn answer(id: impl Into<Value>, text: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "result": {
        "content": [{"type": "text", "text": text}], "structuredContent": {}, "isError": false}})
}

fn error(id: impl Into<Value>, code: i32, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id.into(), "error": {"code": code, "message": message}})
}

#[tokio::test]
async fn a_tool_that_panics_is_answered_and_the_connection_lives() {
    let mut peer = Peer::of(server(|grant, _| match grant.tool().built_in().unwrap() {
        ToolName::GpgSign => Box::pin(async { panic!("secret contents") }),
        ToolName::FileAccept => panic!("before it is even a future"),
        _ => Box::pin(async { Ok(outcome("alive")) }),
    }));
    for tool in ["gpg_sign", "file_accept"] {
        peer.call(1, tool).await;
        let fault = error(
            1,
            -32603,
            "the request failed because of a fault in this server",
        );
        assert_eq!(peer.receive().await, fault);
    }
    peer.call(2, "clipboard_get").await;
    assert_eq!(peer.receive().await, answer(2, "alive"));
    peer.end().await;
    peer.ended().await;
}

#[tokio::test]
async fn a_call_in_flight_at_the_end_of_requests_is_answered() {
    let (server, permits) = waiting();
    let mut peer = Peer::of(server);
    peer.call("x", "gpg_sign").await;
    peer.end().await;
    permits.add_permits(1);
    assert_eq!(peer.receive().await, answer("x", "gpg_sign"));
    peer.ended().await;
}

#[tokio::test]
async fn a_call_that_never_ends_does_not_hold_the_end_for_ever() {
    let (mut server, _permits) = waiting();
    server.limits.drain = Duration::from_millis(50);
    let mut peer = Peer::of(server);
    peer.call(1, "gpg_sign").await;
    peer.end().await;
    let ended = error(1, -32603, "the call was stopped before it finished");
    assert_eq!(peer.receive().await, ended);
    peer.ended().await;
}

#[tokio::test]
async fn progress_comes_while_a_call_runs_even_after_the_end_of_requests_and_never_after_its_answer()
 {
    let (mut server, permits) = waiting();
    server.limits.progress = Duration::from_millis(5);
    let mut peer = Peer::of(server);
    let mut asked = call(7, "gpg_sign");
    asked["params"]["_meta"] = json!({"progressToken": "t"});
    peer.send(asked).await;
    peer.end().await;
    let mut last = 0.0;
    for _ in 0..3 {
        let report = peer.receive().await;
        assert_eq!(report["method"], "notifications/progress");
        assert_eq!(report["params"]["progressToken"], "t");
        assert_eq!(report["params"]["message"], "gpg_sign is still running");
        let progress = report["params"]["progress"].as_f64().unwrap();
        assert!(progress > last, "{progress} after {last}");
        last = progress;
    }
    permits.add_permits(1);
    loop {
        let message = peer.receive().await;
        if message.get("method").is_none() {
            assert_eq!(message, answer(7, "gpg_sign"));
            break;
        }
    }
    peer.ended().await;
}

#[tokio::test]
async fn a_cancelled_call_is_dropped_has_no_answer_and_its_id_is_free() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dropped);
    let mut peer = Peer::of(server(move |grant, _| {
        let counted = Dropped(Arc::clone(&counted));
        let tool = grant.tool().built_in().unwrap();
        Box::pin(async move {
            let _counted = counted;
            if tool == ToolName::GpgSign {
                std::future::pending::<()>().await;
            }
            Ok(outcome("done"))
        })
    }));
    peer.call(1, "gpg_sign").await;
    peer.send(
        json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}),
    )
    .await;
    peer.call(1, "clipboard_get").await;
    assert_eq!(peer.receive().await, answer(1, "done"));
    peer.end().await;
    peer.ended().await;
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_id_in_flight_is_not_taken_twice_and_its_first_answer_is_not_lost() {
    let (server, permits) = waiting();
    let mut peer = Peer::of(server);
    peer.call(1, "gpg_sign").await;
    peer.call(1, "clipboard_get").await;
    let twice = "invalid request: `id` belongs to a request that has not been answered yet";
    let nobody = json!({"jsonrpc": "2.0", "error": {"code": -32600, "message": twice}});
    assert_eq!(peer.receive().await, nobody);
    permits.add_permits(1);
    assert_eq!(peer.receive().await, answer(1, "gpg_sign"));
    peer.end().await;
    peer.ended().await;
}

#[tokio::test]
async fn beyond_the_limits_nothing_more_is_read_and_every_call_is_answered_in_the_end() {
    const CALLS: usize = 2000;
    let started = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&started);
    let permits = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&permits);
    let mut server = server(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        let held = Arc::clone(&held);
        Box::pin(async move {
            held.acquire().await.unwrap().forget();
            Ok(outcome("done"))
        })
    });
    server.limits.in_flight = 4;
    server.limits.running = 2;
    let mut peer = Peer::of(server);
    let calls: Vec<String> = (0..CALLS)
        .map(|id| call(id, "gpg_sign").to_string())
        .collect();
    let calls = calls.join("\n") + "\n";
    // The pipe holds 4 KiB and the reader 64 KiB: the write can finish only if the server continues to read.
    let (_, unused) = tokio::io::split(tokio::io::duplex(1).0);
    let mut writer = std::mem::replace(&mut peer.writer, unused);
    let writing = tokio::spawn(async move {
        writer.write_all(calls.as_bytes()).await.unwrap();
        writer
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(started.load(Ordering::SeqCst), 2, "tools that run");
    assert!(!writing.is_finished(), "back-pressure");
    permits.add_permits(CALLS);
    let mut answered = vec![false; CALLS];
    for _ in 0..CALLS {
        let message = peer.receive().await;
        let id = usize::try_from(message["id"].as_u64().unwrap()).unwrap();
        assert_eq!(message, answer(id, "done"));
        assert!(!std::mem::replace(&mut answered[id], true), "{id} twice");
    }
    peer.writer = writing.await.unwrap();
    peer.end().await;
    peer.ended().await;
}

#[tokio::test]
async fn answers_that_nobody_reads_stop_the_calls() {
    let started = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&started);
    let server = server(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(outcome(&"x".repeat(10_000))) })
    });
    let limit = server.limits.running as usize;
    let mut peer = Peer::of(server);
    let (reader, mut writer) = (peer.lines, peer.writer);
    let writing = tokio::spawn(async move {
        for id in 0..10_000 {
            let line = format!("{}\n", call(id, "clipboard_get"));
            if writer.write_all(line.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(started.load(Ordering::SeqCst) <= limit);
    // The server ends even though its peer is not reading.
    peer.stop.immediate.cancel();
    (&mut peer.serving).await.unwrap();
    drop(reader);
    writing.abort();
}

#[tokio::test]
async fn told_to_end_it_answers_what_runs_and_reads_no_more() {
    let (server, permits) = waiting();
    let mut peer = Peer::of(server);
    peer.told_to_end_during_call(1, "gpg_sign").await;
    tokio::task::yield_now().await;
    peer.call(3, "gpg_sign").await;
    permits.add_permits(2);
    assert_eq!(peer.receive().await, answer(1, "gpg_sign"));
    peer.ended().await;
}

#[tokio::test(start_paused = true)]
async fn a_stopping_server_waits_for_a_running_call_up_to_its_limit() {
    /// Duration of a call: longer than the operator's server waits, but shorter than a person may need for a pinentry.
    const CALL: Duration = Duration::from_secs(25);
    let slow = || {
        server(|_, _| {
            Box::pin(async {
                tokio::time::sleep(CALL).await;
                Ok(outcome("signed"))
            })
        })
    };
    let ended = error(1, -32603, "the call was stopped before it finished");
    let none = shared(|| panic!("nothing is asked"));
    let consumer = "dev".parse().unwrap();
    let longer = Server::of_consumer(consumer, none, Arc::new(ReadThrottle::default()));
    let cases = [
        (ConnectionLimits::DEFAULT.stop, ended),
        (longer.limits.stop, answer(1, "signed")),
    ];
    for (stop, expected) in cases {
        let mut server = slow();
        server.limits.stop = stop;
        let mut peer = Peer::of(server);
        peer.told_to_end_during_call(1, "gpg_sign").await;
        assert_eq!(peer.receive().await, expected);
        peer.ended().await;
    }
}

#[tokio::test]
async fn a_line_over_the_limit_is_answered_with_its_id_and_the_connection_lives() {
    let (mut server, _permits) = waiting();
    server.limits.line = 4000;
    let mut peer = Peer::of(server);
    let data = "A".repeat(5000);
    let mut long = call("big", "gpg_sign");
    long["params"]["arguments"] = json!({"data": data});
    let bytes = long.to_string().len();
    peer.send(long).await;
    let message =
        format!("invalid request: a message can have at most 4000 bytes; this one has {bytes}");
    assert_eq!(peer.receive().await, error("big", -32600, &message));
    peer.send_text(&format!("{{\"method\":\"{data}\",\"id\":5}}\n"))
        .await;
    assert_eq!(peer.receive().await["id"], 5);
    peer.send(json!({"jsonrpc": "2.0", "id": 6, "method": "ping"}))
        .await;
    assert_eq!(peer.receive().await["id"], 6);
    peer.end().await;
    peer.ended().await;
}

#[tokio::test]
async fn a_consumer_sees_and_calls_what_the_services_grant_at_that_moment() {
    let service = |consumers: &[&str]| Service {
        name: "release_sign".parse().unwrap(),
        tool: ToolName::GpgSign.into(),
        consumers: consumers.iter().map(|name| name.parse().unwrap()).collect(),
        with: Map::from_iter([("key_id".to_owned(), json!("ABCD"))]),
        conditions: crate::condition::Conditions::default(),
        limits: crate::limits::Limits::default(),
        declared_at: None,
    };
    let services = |consumers: &[&str]| {
        Policy::new(Services {
            services: vec![service(consumers)],
            ..Services::none("vault".parse().unwrap())
        })
    };
    let (sender, receiver) = watch::channel(services(&["work-dev"]));
    let mut server = server(|grant, _| {
        Box::pin(async move {
            Ok(outcome(
                &Value::Object(grant.arguments().clone()).to_string(),
            ))
        })
    });
    server.caller = Caller::Consumer("work-dev".parse().unwrap());
    server.shared = shared(move || Arc::clone(&receiver.borrow()));
    let mut peer = Peer::of(server);
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});

    peer.send(list.clone()).await;
    let listed = peer.receive().await;
    let tool = &listed["result"]["tools"][0];
    assert_eq!(tool["name"], "release_sign");
    let marks = json!({"anklume/tool": "gpg_sign", "anklume/base64": ["data"]});
    assert_eq!(tool["_meta"], marks);
    assert!(tool["inputSchema"]["properties"].get("data").is_some());
    assert!(tool["inputSchema"]["properties"].get("key_id").is_none());
    peer.call(2, "release_sign").await;
    assert_eq!(peer.receive().await, answer(2, r#"{"key_id":"ABCD"}"#));
    let mut choosing = call(3, "release_sign");
    choosing["params"]["arguments"] = json!({"key_id": "EEEE"});
    peer.send(choosing).await;
    let refused = peer.receive().await;
    assert_eq!(refused["result"]["isError"], true);
    let mark = json!({"anklume/decision": "refused"});
    assert_eq!(refused["result"]["_meta"], mark);
    let text = &refused["result"]["content"][0]["text"];
    assert_eq!(text, "the caller may not set `key_id`");

    // The tool's own name is not a service, so the answer is the same as for a revoked service.
    peer.call(4, "gpg_sign").await;
    assert_eq!(
        peer.receive().await,
        error(4, -32602, "Unknown tool: gpg_sign")
    );
    sender.send_replace(services(&["pro-dev"]));
    peer.call(5, "release_sign").await;
    assert_eq!(
        peer.receive().await,
        error(5, -32602, "Unknown tool: release_sign")
    );
    peer.send(list).await;
    assert_eq!(peer.receive().await["result"]["tools"], json!([]));
    peer.end().await;
    peer.ended().await;
}

#[test]
fn whatever_comes_the_connection_lives() {
    use proptest::prelude::*;
    let valid = call(1, "clipboard_get").to_string().into_bytes();
    // Arbitrary bytes, and a valid call with a few bytes changed.
    let mutated =
        proptest::collection::vec((0..valid.len(), any::<u8>()), 1..4).prop_map(move |changes| {
            let mut bytes = valid.clone();
            for (place, byte) in changes {
                bytes[place] = byte;
            }
            bytes
        });
    let any_bytes = proptest::collection::vec(any::<u8>(), 0..200);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    proptest!(|(bytes in prop_oneof![mutated, any_bytes])| {
        runtime.block_on(async {
            let mut peer = Peer::of(server(|_, _| Box::pin(async { Ok(outcome("done")) })));
            peer.writer.write_all(&bytes).await.unwrap();
            peer.send_text("\n").await;
            peer.send(json!({"jsonrpc": "2.0", "id": "after", "method": "ping"})).await;
            while peer.receive().await["id"] != "after" {}
            peer.end().await;
            peer.ended().await;
        });
    });
}
