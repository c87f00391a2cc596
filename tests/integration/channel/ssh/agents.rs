//! Hostile ends: agents that lie, clients that replay, consumers that ask for too much.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Alice, ed25519, key, provider, service};

/// Appends a string of the SSH protocol.
fn put(bytes: &mut Vec<u8>, string: &[u8]) {
    bytes.extend(u32::try_from(string.len()).unwrap().to_be_bytes());
    bytes.extend(string);
}

fn framed(kind: u8, strings: &[&[u8]], end: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    for string in strings {
        put(&mut message, string);
    }
    message.extend(end);
    let mut framed = Vec::new();
    put(&mut framed, &message);
    framed
}

fn receive(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut message = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut message).ok()?;
    Some(message)
}

/// The bytes of a public key in one line.
fn blob(line: &str) -> Vec<u8> {
    let text = line.split(' ').nth(1).unwrap();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap()
}

/// An agent that has one key, and answers requests to sign with these bytes; without any, it never answers them.
fn agent(path: &Path, key: Vec<u8>, answer: Option<Vec<u8>>) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            while let Some(request) = receive(&mut stream) {
                let identities = || {
                    let mut list = 1_u32.to_be_bytes().to_vec();
                    put(&mut list, &key);
                    put(&mut list, b"lies");
                    framed(12, &[], &list)
                };
                let answer = if request[0] == 11 {
                    Some(identities())
                } else {
                    answer.clone()
                };
                match answer {
                    Some(answer) => drop(stream.write_all(&answer)),
                    None => std::thread::park(),
                }
            }
        }
    });
}

/// What `ssh-keygen -Y sign -n git` asks to sign.
fn commit() -> Vec<u8> {
    let mut data = b"SSHSIG".to_vec();
    for part in [b"git".as_slice(), b"", b"sha512", &[7; 64]] {
        put(&mut data, part);
    }
    data
}

fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

#[test]
fn an_agent_of_the_provider_that_lies_or_hangs_gets_nothing_out() {
    let other = {
        // A signature of another key over the same bytes.
        let world = provider();
        let line = key(&world, "other", &["-t", "ed25519"]);
        let alice = Alice::new(world, &[&service("commits", &line, "")]);
        let mut peer = alice.server.peer("alice");
        let signed = peer.call("commits", &json!({"data": base64(&commit())}));
        let text = signed["result"]["structuredContent"]["signature"]
            .as_str()
            .unwrap()
            .to_owned();
        STANDARD.decode(text).unwrap()
    };
    let withheld = "the provider's agent returned a signature that is not valid for the service's key; it was discarded";
    let refused = "the provider's agent has the key, but refused to sign with it";
    for (answer, said) in [
        (framed(14, &[&other], b""), withheld),
        (framed(14, &[b"garbage"], b""), withheld),
        (framed(14, &[b""], b""), withheld),
        (framed(14, &[&other], b"more"), refused),
        (framed(5, &[], b""), refused),
        (framed(200, &[], b""), refused),
        (vec![0xff; 8], "but gave no answer"),
        (vec![0, 0, 0, 0], "but gave no answer"),
    ] {
        let world = provider();
        let line = ed25519(&world);
        agent(&world.path("agent.sock"), blob(&line), Some(answer.clone()));
        let socket = world.text("agent.sock");
        let alice = Alice::new(
            world.env("SSH_AUTH_SOCK", socket),
            &[&service("commits", &line, "")],
        );
        let result = alice
            .server
            .peer("alice")
            .call("commits", &json!({"data": base64(&commit())}));
        let result = &result["result"];
        assert_eq!(result["isError"], true, "{answer:?}: {result}");
        let text = result["content"][0]["text"].as_str().unwrap();
        assert!(text.contains(said), "{answer:?}: {text}");
    }
    // One that hangs is waited for as long as the service's call may take.
    let world = provider();
    let line = ed25519(&world);
    agent(&world.path("agent.sock"), blob(&line), None);
    let socket = world.text("agent.sock");
    let short =
        service("commits", &line, "").replacen("with:", "limits: {call_seconds: 1}, with:", 1);
    let alice = Alice::new(world.env("SSH_AUTH_SOCK", socket), &[&short]);
    let result = alice
        .server
        .peer("alice")
        .call("commits", &json!({"data": base64(&commit())}));
    let text = result["result"]["content"][0]["text"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(text, "it was stopped after 1 s, the maximum duration");
}

#[test]
fn a_caller_chooses_neither_the_key_nor_what_it_signs() {
    let alice = Alice::with("");
    let mut peer = alice.server.peer("alice");
    let data = base64(&commit());
    for argument in [
        json!({"data": data, "allow": ["login"]}),
        json!({"data": data, "hosts": ["SHA256:x"]}),
        json!({"data": data, "key": "ssh-ed25519 AAAA"}),
    ] {
        let result = peer.call("commits", &argument);
        let text = result["result"]["content"][0]["text"].as_str().unwrap();
        assert!(
            text.starts_with("the caller may not set `"),
            "{argument}: {text}"
        );
    }
    for (arguments, said) in [
        (json!({}), "missing argument `data`"),
        (json!({"data": "!"}), "`data` is not base64"),
        (json!({"data": ""}), "neither SSHSIG data"),
        (
            json!({"data": data, "flags": 2}),
            "the flags 2 are not valid for the key",
        ),
        (
            json!({"data": data, "flags": 5}),
            "`flags` must be between 0 and 4",
        ),
        (
            json!({"data": data, "bind": ["AAAA"]}),
            "`bind` is not a list of session binds",
        ),
        (
            json!({"data": data, "bind": "AAAA"}),
            "`bind` must be a list of strings, not a string",
        ),
        (
            json!({"data": data, "bind": vec![""; 17]}),
            "`bind` has 17 entries; at most 16 are taken",
        ),
        (
            json!({"data": base64(&[0; 9000])}),
            "longer than 8192 bytes",
        ),
    ] {
        let result = peer.call("commits", &arguments);
        let text = result["result"]["content"][0]["text"].as_str().unwrap();
        assert!(text.contains(said), "{arguments}: {text}");
    }
    let good = peer.call("commits", &json!({"data": data}));
    assert_eq!(good["result"]["structuredContent"]["purpose"], "git");
}

#[test]
fn rsa_with_sha_1_is_refused() {
    let world = provider();
    let line = key(&world, "rsa", &["-t", "rsa", "-b", "2048"]);
    let alice = Alice::new(world, &[&service("commits", &line, "")]);
    let mut peer = alice.server.peer("alice");
    let data = base64(&commit());
    let said = |result: &Value| {
        result["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let sha1 = said(&peer.call("commits", &json!({"data": data})));
    assert_eq!(
        sha1,
        "RSA signatures with SHA-1 are refused; the client must ask for SHA-256 or SHA-512"
    );
    // The positive control fails later, for want of an agent.
    let sha512 = said(&peer.call("commits", &json!({"data": data, "flags": 4})));
    assert!(sha512.contains("signs only through an agent"), "{sha512}");
}

#[test]
fn ten_thousand_requests_are_counted_and_harm_nobody() {
    let world = provider();
    let line = ed25519(&world);
    let limited = |name: &str, consumer: &str| {
        let one = service(name, &line, "").replace("alice", consumer);
        one.replacen("with:", "limits: {calls_per_minute: 50}, with:", 1)
    };
    let services = [limited("commits", "alice"), limited("theirs", "bob")];
    let alice = Alice::new(world, &services.each_ref().map(String::as_str));
    let mut peer = alice.server.peer("alice");
    let data = base64(&commit());
    let mut signed = 0;
    for _ in 0..10_000 {
        let answer = peer.call("commits", &json!({"data": data}));
        signed += usize::from(answer["result"]["structuredContent"]["purpose"] == "git");
    }
    // Within more than one minute, more than once as many.
    assert!((50..=500).contains(&signed), "{signed}");
    let theirs = alice
        .server
        .peer("bob")
        .call("theirs", &json!({"data": data}));
    assert_eq!(theirs["result"]["structuredContent"]["purpose"], "git");
    let lines = alice.world.log().len();
    assert!(lines < 2000, "{lines}");
    alice.world.log_is_intact();
}

#[test]
fn a_client_of_the_agent_is_bounded() {
    let alice = Alice::with("");
    let path = alice.world.text("agent.sock");
    let (mut child, _) =
        crate::harness::announced(alice.world.command(&["ssh-agent", "-D", "-a", &path]));
    let closed = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(bytes).unwrap();
        receive(&mut stream).is_none()
    };
    assert!(closed(&[0xff, 0xff, 0xff, 0xff]));
    assert!(closed(&[0, 0, 0, 0]));
    let answer = |messages: &[Vec<u8>]| {
        let mut stream = UnixStream::connect(&path).unwrap();
        let answers = messages.iter().map(|message| {
            stream.write_all(message).unwrap();
            receive(&mut stream).unwrap()
        });
        answers.last().unwrap()
    };
    let failure = vec![5];
    for unknown in [
        framed(1, &[], b""),
        framed(17, &[b"x"], b""),
        framed(11, &[], b"more"),
        framed(13, &[b"key"], b""),
        framed(13, &[b"key", b"data"], &[0; 5]),
        framed(27, &[b"query"], b""),
        // A bind whose signature is of nobody.
        framed(
            27,
            &[
                b"session-bind@openssh.com",
                b"key",
                b"session",
                b"signature",
            ],
            &[0],
        ),
    ] {
        assert_eq!(
            answer(std::slice::from_ref(&unknown)),
            failure,
            "{unknown:?}"
        );
    }
    // After such a bind, the connection gets nothing any more.
    let list = framed(11, &[], b"");
    let bind = framed(
        27,
        &[
            b"session-bind@openssh.com",
            b"key",
            b"session",
            b"signature",
        ],
        &[0],
    );
    let cut = framed(27, &[b"session-bind@openssh.com", b"key"], b"");
    let odd = framed(
        27,
        &[
            b"session-bind@openssh.com",
            b"key",
            b"session",
            b"signature",
        ],
        &[255],
    );
    for bad in [bind, cut, odd] {
        assert_eq!(answer(std::slice::from_ref(&bad)), failure, "{bad:?}");
        assert_eq!(answer(&[bad, list.clone()]), [12, 0, 0, 0, 0]);
    }
    assert_eq!(answer(&[list])[..5], [12, 0, 0, 0, 1]);
    super::super::world::signal(child.id(), "TERM");
    super::super::world::wait(&mut child);
}

/// A provider whose socket is `name`, which offers that key and answers each call with that signature.
fn hostile_provider(alice: &Alice, name: &str, service: &str, line: &str, signature: &[u8]) {
    let socket = alice.world.path(&format!("alice/{name}.sock"));
    let listener = UnixListener::bind(socket).unwrap();
    let (service, line, signature) = (service.to_owned(), line.to_owned(), base64(signature));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let mut writer = stream.try_clone().unwrap();
            for request in std::io::BufRead::lines(std::io::BufReader::new(stream)) {
                let request: Value = serde_json::from_str(&request.unwrap()).unwrap();
                let result = match request["method"].as_str().unwrap() {
                    "initialize" => json!({
                        "protocolVersion": "2025-11-25",
                        "capabilities": {"tools": {}},
                        "serverInfo": {"name": "x", "version": "1"},
                    }),
                    "tools/list" => json!({"tools": [{
                        "name": service,
                        "inputSchema": {"type": "object"},
                        "_meta": {"anklume/tool": "ssh_sign", "anklume/public_key": line},
                    }]}),
                    "tools/call" => json!({
                        "content": [{"type": "text", "text": signature}],
                        "structuredContent": {"signature": signature, "purpose": "git"},
                    }),
                    _ => continue,
                };
                let answer = json!({"jsonrpc": "2.0", "id": request["id"], "result": result});
                writeln!(writer, "{answer}").unwrap();
            }
        }
    });
}

#[test]
fn a_provider_that_lists_another_s_key_signs_nothing_and_one_that_lies_reaches_no_terminal() {
    let alice = Alice::with("");
    let line = std::fs::read_to_string(alice.world.path(".ssh/id_ed25519.pub")).unwrap();
    let line = line.trim();
    // Its name comes before that of the real provider.
    hostile_provider(&alice, "a", "commits", line, b"garbage");
    for (name, service, line) in [
        ("b", "commits\u{1b}[31m", line.to_owned()),
        ("c", "commits", format!("{line}\u{202e}x")),
        ("d", "commits", "ssh-ed25519 AAAA".to_owned()),
    ] {
        hostile_provider(&alice, name, service, &line, b"");
    }
    let ran = alice.agent("ssh-add -L");
    let (key, comment) = line.rsplit_once(' ').unwrap();
    let listed = format!("{key} a/commits {comment}\n");
    assert_eq!(ran.stdout, listed, "{}", ran.stderr);
    // The real provider is asked after it.
    let ran =
        alice.agent("echo x | ssh-keygen -q -Y sign -n git -f .ssh/id_ed25519.pub >/dev/null");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    // If nobody signs, both say why.
    let ran =
        alice.agent("echo x | ssh-keygen -q -Y sign -n mail -f .ssh/id_ed25519.pub >/dev/null");
    assert_eq!(ran.status, 255, "{}", ran.stderr);
    for said in [
        "anklume ssh-agent: a/commits: the provider's answer is not a signature with this key",
        "anklume ssh-agent: vault/commits: the provider reports: the service does not sign `file:mail`",
    ] {
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
}

#[test]
fn a_host_that_floods_a_forwarded_agent_keeps_nobody_out() {
    let alice = Alice::with("");
    let path = alice.world.text("agent.sock");
    let agent = alice.world.command(&["ssh-agent", "-D", "-a", &path]);
    let (mut child, _) = crate::harness::announced(agent);
    // As ssh does for each connection of a remote host: the signature is not looked at.
    let strings: [&[u8]; 4] = [
        b"session-bind@openssh.com",
        b"key",
        b"session",
        b"signature",
    ];
    let bind = framed(27, &strings, &[1]);
    let mut open = Vec::new();
    for _ in 0..400 {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&bind).unwrap();
        assert_eq!(receive(&mut stream), Some(vec![6]));
        open.push(stream);
    }
    let mut local = UnixStream::connect(&path).unwrap();
    local.write_all(&framed(11, &[], b"")).unwrap();
    assert_eq!(receive(&mut local).unwrap()[..5], [12, 0, 0, 0, 1]);
    super::super::world::signal(child.id(), "TERM");
    super::super::world::wait(&mut child);
}

#[test]
fn a_consumer_that_hangs_up_ends_what_it_asked_for() {
    let world = provider();
    let line = ed25519(&world);
    agent(&world.path("agent.sock"), blob(&line), None);
    let socket = world.text("agent.sock");
    let alice = Alice::new(
        world.env("SSH_AUTH_SOCK", socket),
        &[&service("commits", &line, "")],
    );
    let arguments = json!({"data": base64(&commit())});
    let request = crate::channel::peer::call(1, "commits", &arguments);
    let mut hasty = UnixStream::connect(alice.server.socket("alice")).unwrap();
    writeln!(hasty, "{request}").unwrap();
    super::until("the call runs", || {
        alice.server.helper("alice", "ssh-keys").is_some()
    });
    drop(hasty);
    super::until("the call has ended", || {
        let calls = alice.world.logged("call");
        calls.iter().any(|call| call["outcome"] == "cancelled")
    });
}
