//! The channel between a consumer and a provider: `mcp serve --listen`, `--caller`, the log, `mcp connect`.

#![expect(
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    reason = "an answer of another shape is a failed test"
)]

mod agree;
mod ask;
mod beyond;
mod client;
mod clients;
mod clipboard;
mod conditions;
mod confined;
mod connect;
mod files;
mod flood;
mod gateway;
mod git;
mod greedy;
mod half_close;
mod hostile;
mod identity;
mod life;
mod limits;
mod load;
mod log;
mod notify;
mod page;
mod peer;
mod programs;
mod reload;
mod ssh;
mod starved;
mod steady;
mod tamper;
mod transfer;
mod unlogged;
mod unseen;
mod upstreams;
mod worker;
mod world;

use serde_json::Value;

/// The names in a list.
fn names(listed: &Value) -> Vec<&str> {
    let tools = listed["result"]["tools"].as_array().expect("a list");
    tools
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect()
}

/// The text of an answer that is not an error, from a tool that did not fail.
#[track_caller]
fn text(answer: &Value) -> &str {
    let result = &answer["result"];
    assert_ne!(result["isError"], true, "{answer}");
    result["content"][0]["text"]
        .as_str()
        .unwrap_or_else(|| panic!("no text: {answer}"))
}
