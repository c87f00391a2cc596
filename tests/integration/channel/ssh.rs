//! `ssh_sign` and `anklume ssh-agent` with real OpenSSH, and git's SSH signatures.

mod agents;
mod git;
mod login;
mod places;
mod sshd;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::{Command, Stdio};

use super::world::{Ended, Listening, World, ended, until};
use crate::harness::ANKLUME;

/// The provider `vault`, in whose home folder the keys are, and the consumer `alice`, which has none.
struct Alice {
    world: World,
    server: Listening,
}

/// The provider's folder, to which keys are added before its services are declared.
fn provider() -> World {
    World::new(&["{name: notes, tool: notify, consumers: [bob]}"])
}

/// Makes a key of the provider; returns its public part in one line.
fn key(world: &World, name: &str, kind: &[&str]) -> String {
    fs::create_dir_all(world.path(".ssh")).unwrap();
    let path = world.text(&format!(".ssh/{name}"));
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-N", "", "-C", name, "-f", &path]);
    command.args(kind).stdin(Stdio::null());
    assert!(command.status().unwrap().success());
    let public = fs::read_to_string(format!("{path}.pub")).unwrap();
    public.trim().to_owned()
}

fn ed25519(world: &World) -> String {
    key(world, "id_ed25519", &["-t", "ed25519"])
}

/// A service that signs with a key, with the rest of its `with`, such as `, allow: [git]`.
fn service(name: &str, key: &str, rest: &str) -> String {
    format!("{{name: {name}, tool: ssh_sign, consumers: [alice], with: {{key: \"{key}\"{rest}}}}}")
}

impl Alice {
    /// With these services of a world that has their keys.
    fn new(world: World, services: &[&str]) -> Self {
        world.policy(services);
        let server = world.listen();
        for folder in ["alice", "home", "bare"] {
            fs::create_dir(world.path(folder)).unwrap();
        }
        symlink(server.socket("alice"), world.path("alice/vault.sock")).unwrap();
        let (sockets, home) = (world.text("alice"), world.text("home"));
        let world = world
            .env("ANKLUME_SOCKET_DIR", sockets)
            .env("HOME", home)
            .env("SSH_AUTH_SOCK", "");
        Self { world, server }
    }

    /// With one service `commits`, of a key in a file.
    fn with(rest: &str) -> Self {
        let world = provider();
        let commits = service("commits", &ed25519(&world), rest);
        Self::new(world, &[&commits])
    }

    /// Runs a shell script with the agent.
    #[track_caller]
    fn agent(&self, script: &str) -> Ended {
        ended(self.agent_command(script))
    }

    fn agent_command(&self, script: &str) -> Command {
        let mut command = self.world.command(&["ssh-agent", "--", "sh", "-c", script]);
        command.env("PATH", std::env::var("PATH").unwrap());
        command
    }

    /// Runs a script, which must succeed, with the agent; returns what it wrote.
    #[track_caller]
    fn done(&self, script: &str) -> String {
        let ran = self.agent(script);
        assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
        ran.stdout + &ran.stderr
    }

    /// The purposes and reasons of the calls in the log, oldest first.
    fn purposes(&self) -> Vec<String> {
        let calls = self.world.logged("call");
        let texts = calls.iter().map(|call| match call.get("purpose") {
            Some(purpose) => purpose.as_str().unwrap().to_owned(),
            None => format!(
                "{}: {}",
                call["decision"].as_str().unwrap(),
                call["reason"].as_str().unwrap()
            ),
        });
        texts.collect()
    }
}

#[test]
fn the_agent_lists_the_keys_of_all_services_and_refuses_what_it_is_not_for() {
    let world = provider();
    let (first, second) = (ed25519(&world), key(&world, "id_ecdsa", &["-t", "ecdsa"]));
    let services = [
        service("commits", &first, ""),
        service("more", &first, ", allow: [\"file:x\"]"),
        service("deploy", &second, ""),
        // Not one of alice's.
        service("other", &second, "").replace("alice", "bob"),
    ];
    let services = services.each_ref().map(String::as_str);
    let alice = Alice::new(world, &services);
    let listed = |line: &str, service: &str| {
        let (key, comment) = line.rsplit_once(' ').unwrap();
        format!("{key} vault/{service} {comment}\n")
    };
    let shown = listed(&first, "commits") + &listed(&second, "deploy");
    alice.agent("ssh-add -L").is(0, &shown, "");
    let cannot = |what: &str| format!("{what}: agent refused operation\n");
    let (new, own) = (
        alice.world.text("home/new"),
        alice.world.text(".ssh/id_ed25519"),
    );
    alice.done(&format!("ssh-keygen -q -t ed25519 -N '' -f {new}"));
    let refused = cannot(&format!("Could not add identity \"{new}\""));
    alice.agent(&format!("ssh-add {new}")).is(1, "", &refused);
    let refused = cannot(&format!("Could not remove identity \"{own}.pub\""));
    alice
        .agent(&format!("ssh-add -d {own}.pub"))
        .is(1, "", &refused);
    alice
        .agent("ssh-add -D")
        .is(1, "", "Failed to remove all identities.\n");
    assert_eq!(alice.agent("ssh-add -s /usr/lib/x.so </dev/null").status, 1);
    alice.world.write("askpass", "#!/bin/sh\necho secret\n");
    alice.done("chmod +x askpass");
    alice
        .agent("SSH_ASKPASS=$PWD/askpass SSH_ASKPASS_REQUIRE=force ssh-add -x")
        .is(1, "", "Failed to lock agent: agent refused operation\n");
    assert_eq!(alice.purposes(), [""; 0]);
    alice.agent("ssh-add -L").is(0, &shown, "");
}

#[test]
fn the_agent_ends_with_its_command_and_returns_its_exit_code() {
    let alice = Alice::with("");
    let ran = alice.agent("echo $SSH_AUTH_SOCK $SSH_AGENT_PID; stat -c %a $SSH_AUTH_SOCK; exit 7");
    let (first, rest) = ran.stdout.split_once('\n').unwrap();
    let (socket, process) = first.split_once(' ').unwrap();
    let runtime = alice.world.text("run/anklume/ssh-agent.");
    assert_eq!(
        (socket, rest, ran.status),
        (&*format!("{runtime}{process}"), "600\n", 7)
    );
    until("the socket is gone", || {
        !std::path::Path::new(socket).exists()
    });
    until("the process is gone", || {
        !std::path::Path::new(&format!("/proc/{process}")).exists()
    });
    let missing = alice.world.run(&["ssh-agent", "--", "no-such-program"]);
    missing.is(
        1,
        "",
        "error: cannot run `no-such-program`: No such file or directory (os error 2)\n",
    );
}

#[test]
fn a_shell_evaluates_what_the_agent_prints() {
    let alice = Alice::with("");
    let mut command = Command::new("sh");
    let script = "eval \"$(\"$0\" ssh-agent)\" && ssh-add -l && test -S \"$SSH_AUTH_SOCK\" && \
         kill \"$SSH_AGENT_PID\" && while test -e \"$SSH_AUTH_SOCK\"; do sleep 0.05; done; echo gone";
    command.args(["-c", script, ANKLUME]);
    let world = &alice.world;
    let own = world.command(&[]);
    command.env_clear().current_dir(world.path(""));
    for (name, value) in own.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command.env("PATH", std::env::var("PATH").unwrap());
    command.stdin(Stdio::null());
    let ran = ended(command);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(
        lines[0].starts_with("Agent pid ") && lines[1].contains("SHA256:"),
        "{lines:?}"
    );
    assert_eq!(lines[2..], ["gone"]);
}

#[test]
fn in_the_foreground_it_serves_until_it_is_told_to_end_and_replaces_a_dead_socket() {
    let alice = Alice::with("");
    let path = alice.world.text("agent.sock");
    // A socket on which nothing listens, as a killed agent leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let args = ["ssh-agent", "-D", "-a", &path];
    let (mut child, line) = crate::harness::announced(alice.world.command(&args));
    assert_eq!(line, format!("SSH_AUTH_SOCK={path}; export SSH_AUTH_SOCK;"));
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    alice.world.run(&args).is(
        1,
        "",
        &format!("error: cannot listen on `{path}`: Address already in use (os error 98)\n  = help: another agent listens there; use it, or end it\n"),
    );
    super::world::signal(child.id(), "TERM");
    assert_eq!(super::world::wait(&mut child), 130);
    assert!(!std::path::Path::new(&path).exists());
    // In the background, the same is said.
    let ran = alice.world.run(&["ssh-agent", "-a", "no/such/folder"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stderr
            .contains("no/such/folder`: No such file or directory"),
        "{}",
        ran.stderr
    );
    alice.world.write("file", "");
    let ran = alice.world.run(&["ssh-agent", "-D", "-a", "file"]);
    assert!(
        ran.stderr
            .ends_with("= help: choose another path with `-a SOCKET`\n"),
        "{}",
        ran.stderr
    );
    let ran = alice
        .world
        .run(&["ssh-agent", "-D", "-a", "no/such/folder"]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.stderr
            .contains("no/such/folder`: No such file or directory"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_silent_provider_is_named_and_the_others_serve() {
    let alice = Alice::with("");
    fs::create_dir(alice.world.path("dead")).unwrap();
    symlink(
        alice.world.path("dead/none"),
        alice.world.path("alice/dead.sock"),
    )
    .unwrap();
    let ran = alice.agent("ssh-add -l");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        ran.stderr
            .starts_with("anklume ssh-agent: dead: Cannot reach MCP server"),
        "{}",
        ran.stderr
    );
    alice.server.signal("TERM");
    let socket = alice.server.socket("alice");
    until("the provider has ended", || !socket.exists());
    let ran = alice.agent("ssh-add -l");
    assert_eq!(
        (ran.status, ran.stdout.as_str()),
        (1, "The agent has no identities.\n")
    );
    assert!(
        ran.stderr
            .contains("anklume ssh-agent: vault: Cannot reach MCP server"),
        "{}",
        ran.stderr
    );
}

#[test]
fn of_two_services_with_one_key_the_one_that_may_signs_and_the_other_is_silent() {
    let world = provider();
    let line = ed25519(&world);
    let services = [
        service("commits", &line, ""),
        service("reports", &line, ", allow: [\"file:reports\"]"),
    ];
    let alice = Alice::new(world, &services.each_ref().map(String::as_str));
    let sign = |namespace: &str| {
        let public = alice.world.text(".ssh/id_ed25519.pub");
        alice.agent(&format!(
            "echo x | ssh-keygen -q -Y sign -n {namespace} -f {public} >/dev/null"
        ))
    };
    for namespace in ["git", "reports"] {
        let ran = sign(namespace);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{namespace}");
    }
    let ran = sign("mail");
    for name in ["commits", "reports"] {
        assert!(
            ran.stderr.contains(&format!("vault/{name}: ")),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn no_service_and_no_key_are_said() {
    let alice = Alice::with("");
    alice.done("ssh-keygen -q -t ed25519 -N '' -f home/own && ssh-keygen -lf home/own.pub >print");
    let ran =
        alice.agent("echo x | ssh-keygen -q -Y sign -n git -f .ssh/id_ed25519.pub >/dev/null");
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    alice
        .world
        .policy(&["{name: notes, tool: notify, consumers: [alice]}"]);
    until("the service is gone", || {
        alice.agent("ssh-add -l").status == 1
    });
    let none = "anklume ssh-agent: no provider offers this machine an `ssh_sign` service; ask the operator for one\n";
    alice
        .agent("ssh-add -l")
        .is(1, "The agent has no identities.\n", none);
}
