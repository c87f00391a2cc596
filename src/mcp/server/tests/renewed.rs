//! Tests that a delayed call obeys the policy in force when it runs.

use tokio::sync::watch;

use super::*;
use crate::limits::Limits;
use crate::name::ToolName;
use crate::services::Service;

fn services(limits: Limits) -> Arc<Policy> {
    Policy::new(Services {
        services: vec![Service {
            name: "sign".parse().unwrap(),
            tool: ToolName::GpgSign.into(),
            consumers: vec!["work-dev".parse().unwrap()],
            with: Map::new(),
            conditions: crate::condition::Conditions::default(),
            limits,
            declared_at: None,
        }],
        ..Services::none("vault".parse().unwrap())
    })
}

#[tokio::test]
async fn a_call_that_waited_has_the_time_that_its_service_gives_it_when_it_runs() {
    let (mut server, permits) = waiting();
    let (sender, receiver) = watch::channel(services(Limits::default()));
    server.caller = Caller::Consumer("work-dev".parse().unwrap());
    server.shared = shared(move || Arc::clone(&receiver.borrow()));
    server.limits.running = 1;
    let mut peer = Peer::of(server);
    peer.call(1, "sign").await;
    peer.call(2, "sign").await;
    // The first policy admitted both: the answer to the ping shows that they were read.
    peer.send(json!({"jsonrpc": "2.0", "id": 3, "method": "ping"}))
        .await;
    assert_eq!(peer.receive().await["id"], 3);
    sender.send_replace(services(Limits {
        call_seconds: Some(0),
        ..Limits::default()
    }));
    permits.add_permits(1);
    assert_eq!(peer.receive().await, answer(1, "sign"));
    let ended = peer.receive().await;
    let text = &ended["result"]["content"][0]["text"];
    assert_eq!(text, "it was stopped after 0 s, the maximum duration");
    peer.end().await;
    peer.ended().await;
}

#[tokio::test]
async fn a_live_connection_reads_messages_as_long_as_its_services_allow_now() {
    let limits = |bytes| Limits {
        message_bytes: Some(bytes),
        ..Limits::default()
    };
    let (sender, receiver) = watch::channel(services(limits(200)));
    let mut server = server(|grant, _| Box::pin(async { Ok(outcome(grant.name())) }));
    server.caller = Caller::Consumer("work-dev".parse().unwrap());
    server.shared = shared(move || Arc::clone(&receiver.borrow()));
    let mut peer = Peer::of(server);
    let mut long = call(1, "sign");
    long["params"]["arguments"] = json!({"data": "x".repeat(300)});
    for (bytes, fits) in [(200, false), (1000, true), (300, false)] {
        sender.send_replace(services(limits(bytes)));
        peer.send(long.clone()).await;
        let answer = peer.receive().await;
        if fits {
            assert_eq!(answer["result"]["content"][0]["text"], "sign");
        } else {
            let length = long.to_string().len();
            let text = format!(
                "invalid request: a message can have at most {bytes} bytes; this one has {length}"
            );
            assert_eq!(answer, error(1, -32600, &text));
        }
    }
    peer.end().await;
    peer.ended().await;
}
