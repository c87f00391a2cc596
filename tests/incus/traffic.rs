//! The path of call data: files and signatures arrive complete, and not a byte of them crosses a bridge.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::connection::Connection;
use crate::project::succeeded;
use crate::world::World;

/// A provider with all tools, and its consumer in another domain.
const INFRA: &str = r#"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-signer:
        ip: "{base}.1.10"
        services:
          - {name: sign, tool: gpg_sign, consumers: [{b}-dev]}
          - {name: paste, tool: clipboard_get, consumers: [{b}-dev]}
          - {name: copy, tool: clipboard_set, consumers: [{b}-dev]}
          - {name: push, tool: file_accept, consumers: [{b}-dev]}
          - {name: pull, tool: file_provide, consumers: [{b}-dev]}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-dev: {ip: "{base}.2.10"}
"#;

/// Number of calls.
const CALLS: usize = 100;
/// Size of the file that is sent and fetched, in MiB.
const FILE_MIB: usize = 32;

/// Bytes and packets, in both directions, of every network device on this computer except the loopback device.
fn counters() -> BTreeMap<String, Vec<u64>> {
    let devices = std::fs::read_dir("/sys/class/net").unwrap();
    let names = devices.map(|one| one.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| name != "lo")
        .map(|name| {
            let count = |what: &str| {
                let path = format!("/sys/class/net/{name}/statistics/{what}");
                let text = std::fs::read_to_string(path).unwrap();
                text.trim().parse().unwrap()
            };
            let counts = ["rx_bytes", "tx_bytes", "rx_packets", "tx_packets"].map(count);
            (name, counts.to_vec())
        })
        .collect()
}

/// The counters once they no longer change, when the machines have finished their own startup traffic.
fn quiet() -> BTreeMap<String, Vec<u64>> {
    let mut before = counters();
    loop {
        std::thread::sleep(std::time::Duration::from_secs(2));
        let now = counters();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// Brings a machine's network card up with its address, without starting any daemon.
fn bring_up(world: &World, domain: usize, name: &str) {
    let number = domain + 1;
    let up = world.filled(&format!(
        "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6; ip addr add {{base}}.{number}.10/24 dev eth0 && \
         ip link set eth0 up && ip route add default via {{base}}.{number}.254"
    ));
    let (done, said) = world.exec(domain, name, &up);
    assert!(done, "{said}");
}

/// Installs this computer's gpg, agent and libraries in `{a}-signer`, creates a key there, and returns the public key.
fn make_key(world: &World) -> Vec<u8> {
    let signer = world.machine(0, "signer");
    let project = &world.domains[0];
    let copy = format!(
        "programs='/usr/bin/gpg /usr/bin/gpg-agent /usr/bin/gpgconf /usr/bin/gpg-connect-agent'
         libraries=$(ldd $programs | grep -o '/[^ ]*\\.so[^ ]*' | sort -u)
         tar -C / -ch $(echo $programs $libraries | sed 's| /| |g; s|^/||') |
         incus exec {signer} --project {project} -T -- tar -C / -x"
    );
    let copied = Command::new("sh")
        .args(["-c", &copy])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    succeeded(&copied);
    let key = "gpg --batch --quiet --pinentry-mode loopback --passphrase '' --quick-gen-key 'Signer <signer@example.org>' ed25519 sign never 2>&1";
    let (made, said) = world.exec(0, "signer", key);
    assert!(made, "{said}");
    let (_, public) = world.exec(0, "signer", "gpg --batch --quiet --armor --export");
    public.into_bytes()
}

/// Returns whether this computer's gpg accepts that key's signature of these bytes.
fn is_good(public: &[u8], signature: &str, data: &[u8]) -> bool {
    let home = tempfile::Builder::new()
        .prefix("gpg")
        .tempdir_in("/tmp")
        .unwrap();
    for (name, content) in [
        ("key", public),
        ("data", data),
        ("data.asc", signature.as_bytes()),
    ] {
        std::fs::write(home.path().join(name), content).unwrap();
    }
    let gpg = |args: &[&str]| {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--homedir"])
            .arg(home.path())
            .args(args);
        gpg.current_dir(home.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    succeeded(&gpg(&["--import", "key"]));
    gpg(&["--verify", "data.asc", "data"]).status.success()
}

#[test]
fn calls_files_and_signatures_arrive_whole_and_cross_no_bridge() {
    let world = World::new(INFRA);
    world.apply();
    let public = make_key(&world);
    for (domain, name) in [(0, "signer"), (1, "dev")] {
        bring_up(&world, domain, name);
    }
    let signer = world.machine(0, "signer");
    let make = format!(
        "dd if=/dev/urandom of=/tmp/big bs=1M count={FILE_MIB} 2>/dev/null; echo hello >/tmp/letter"
    );
    assert!(world.exec(1, "dev", &make).0);

    let before = quiet();
    let mut connection = Connection::open(&world, "dev");
    for number in 0..CALLS / 2 {
        connection.call("copy", &json!({"content": format!("text {number}")}));
        let pasted = connection.call("paste", &json!({}));
        assert_eq!(pasted["content"][0]["text"], format!("text {number}"));
    }
    // A round trip: root in the provider moves the file to a folder from which the consumer may fetch it.
    let push = format!("anklume mcp call -i {signer} push path=big data=@/tmp/big 2>&1");
    let (pushed, said) = world.exec(1, "dev", &push);
    assert!(pushed, "{said}");
    let dev = world.machine(1, "dev");
    let offer = format!(
        "cd /srv/anklume/portal && mkdir -p outgoing/{dev} && mv incoming/{dev}/big outgoing/{dev}/ && sha256sum <outgoing/{dev}/big"
    );
    let (_, sum) = world.exec(0, "signer", &offer);
    let pull = format!(
        "anklume mcp call -i {signer} pull path=big | base64 -d >/tmp/back && cmp /tmp/big /tmp/back && sha256sum </tmp/back"
    );
    assert_eq!(world.exec(1, "dev", &pull), (true, sum));
    let sign = format!("anklume mcp call -i {signer} sign data=@/tmp/letter");
    let (done, signature) = world.exec(1, "dev", &sign);
    assert!(done, "{signature}");
    assert_eq!(counters(), before);

    assert!(is_good(&public, &signature, b"hello\n"));
    assert!(!is_good(&public, &signature, b"hallo\n"));
    // Traffic that does cross a bridge is counted.
    let ping = world.filled("ping -c1 -W5 {base}.2.254 >/dev/null");
    assert!(world.exec(1, "dev", &ping).0);
    let after = counters();
    let bridge = world.filled("net-{b}");
    assert!(after[&bridge][0] > before[&bridge][0], "{after:?}");
    assert_eq!(
        after[&world.filled("net-{a}")],
        before[&world.filled("net-{a}")]
    );
}
