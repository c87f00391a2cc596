//! `network_policies` let through exactly what they declare, in the declared direction, and nothing after their removal.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::project::{incus, succeeded};
use crate::world::World;

/// Two machines in each of two domains.
const INFRA: &str = r#"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-one: {ip: "{base}.1.10"}
      {a}-two: {ip: "{base}.1.11"}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-far: {ip: "{base}.2.10"}
      {b}-near: {ip: "{base}.2.11"}
"#;

/// The machines, with the last two octets of their addresses.
const MACHINES: [(usize, &str, &str); 4] = [
    (0, "one", "1.10"),
    (0, "two", "1.11"),
    (1, "far", "2.10"),
    (1, "near", "2.11"),
];

/// Ports on which every machine listens.
const PORTS: [u16; 2] = [7000, 7001];

/// One kind of traffic that arrives: `FROM TO KIND`, where the kind is `ping`, `tcp PORT` or `udp PORT`.
type Arrivals = BTreeSet<String>;

/// Sets the address of a machine without a DHCP client, listens, and answers every UDP packet to a closed port.
fn bring_up(world: &World) {
    for (domain, name, address) in MACHINES {
        let (net, _) = address.split_once('.').unwrap();
        let listen = PORTS.map(|port| format!("nc -ll -p {port} -e /bin/cat >/dev/null 2>&1 &\n"));
        let up = format!(
            "echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; ip link set eth0 up; ip addr add {{base}}.{address}/24 dev eth0 && \
             ip route add default via {{base}}.{net}.254\n{}",
            listen.concat()
        );
        assert!(world.exec(domain, name, &world.filled(&up)).0);
    }
}

/// Sends every kind of traffic from every machine to every machine of the other domain, all at once.
fn arrivals(world: &World) -> Arrivals {
    std::thread::scope(|scope| {
        let senders = MACHINES.map(|(domain, from, _)| {
            scope.spawn(move || {
                world
                    .exec(domain, from, &world.filled(&probes(domain, from)))
                    .1
            })
        });
        let told = senders.map(|sender| sender.join().unwrap());
        told.iter()
            .flat_map(|told| told.lines().map(str::to_owned))
            .collect()
    })
}

/// A script that sends every kind of traffic, and prints what arrived.
fn probes(domain: usize, from: &str) -> String {
    let mut script = String::new();
    for (_, to, address) in MACHINES.iter().filter(|(other, ..)| *other != domain) {
        let target = format!("{{base}}.{address}");
        let mut probe = |kind: &str, command: &str| {
            writeln!(
                script,
                "({command}) >/dev/null 2>&1 && echo '{from} {to} {kind}' &"
            )
            .unwrap();
        };
        probe("ping", &format!("ping -c1 -W2 {target}"));
        for port in PORTS {
            probe(
                &format!("tcp {port}"),
                &format!("echo x | nc -w2 {target} {port}"),
            );
            // The closed UDP port itself must answer; the answer of a gateway has another address.
            let before = port - 1;
            let trace = format!(
                "traceroute -n -f9 -m9 -q1 -w2 -p {before} {target} | tail -n 1 | grep -q '9 *{target} '"
            );
            probe(&format!("udp {port}"), &trace);
        }
    }
    script + "wait"
}

/// Asserts that exactly this arrives. A packet may be late on a busy computer, so what is missing is sent again.
#[track_caller]
fn arrive(world: &World, expected: &Arrivals, policies: &str) {
    const TRIES: usize = 5;
    let mut arrived = Arrivals::new();
    for _ in 0..TRIES {
        arrived.extend(arrivals(world));
        assert!(
            arrived.is_subset(expected),
            "{policies}: {:?}",
            arrived.difference(expected)
        );
        if arrived == *expected {
            return;
        }
    }
    assert_eq!(arrived, *expected, "{policies}");
}

fn expected(lines: &[&str]) -> Arrivals {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// All kinds of traffic between these machines.
fn every(pairs: &[(&str, &str)]) -> Arrivals {
    let kinds = ["ping", "tcp 7000", "tcp 7001", "udp 7000", "udp 7001"];
    let all = pairs
        .iter()
        .flat_map(|(from, to)| kinds.map(|kind| format!("{from} {to} {kind}")));
    all.collect()
}

#[test]
fn exactly_what_is_declared_is_let_through() {
    let mut world = World::new(INFRA);
    world.apply();
    bring_up(&world);
    arrive(&world, &Arrivals::new(), "none");
    let cases = [
        (
            "{from: {a}-one, to: {b}-far, ports: [7000], protocol: tcp}",
            expected(&["one far tcp 7000"]),
        ),
        (
            "{from: {a}-one, to: {b}-far, ports: [7000, 7001], protocol: udp}",
            expected(&["one far udp 7000", "one far udp 7001"]),
        ),
        (
            "{from: {b}-near, to: {a}-two, ports: [7001], bidirectional: true}",
            expected(&[
                "near two tcp 7001",
                "near two udp 7001",
                "two near tcp 7001",
                "two near udp 7001",
            ]),
        ),
        (
            "{from: {a}, to: {b}-far, ports: all}",
            every(&[("one", "far"), ("two", "far")]),
        ),
        (
            "{from: {b}-far, to: {a}, ports: all, protocol: tcp}",
            expected(&[
                "far one ping",
                "far one tcp 7000",
                "far one tcp 7001",
                "far two ping",
                "far two tcp 7000",
                "far two tcp 7001",
            ]),
        ),
        // None of these has an effect.
        (
            "{from: {a}-one, to: {a}-two, ports: all}, {from: host, to: {b}, ports: all}, {from: {a}, to: {b}}",
            Arrivals::new(),
        ),
    ];
    for (policies, permitted) in cases {
        let text = format!("{INFRA}network_policies: [{policies}]\n");
        world.declare(&text);
        world.apply();
        arrive(&world, &permitted, policies);
        world.is_settled();
    }
    // The host's address in the other domain stays closed to a domain that may reach all of its machines.
    world.declare(&format!(
        "{INFRA}network_policies: [{{from: {{a}}, to: {{b}}, ports: all}}]\n"
    ));
    world.apply();
    let gateway = world.filled("ping -c1 -W1 {base}.2.254");
    assert!(!world.exec(0, "one", &gateway).0);
    assert!(
        world
            .exec(0, "one", &world.filled("ping -c1 -W3 {base}.2.10"))
            .0
    );
    // Without the access lists, everything arrives: each probe works.
    for domain in &world.domains {
        let net = format!("net-{domain}");
        let unset = || incus(["network", "unset", &net, "security.acls"]);
        let output = unset();
        // Incus may start the bridge's dnsmasq before the one that it stopped has closed its socket.
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.contains("Address already in use") {
            succeeded(&unset());
        } else {
            succeeded(&output);
        }
    }
    let mut all = Vec::new();
    for (a, b) in [
        ("one", "far"),
        ("one", "near"),
        ("two", "far"),
        ("two", "near"),
    ] {
        all.extend([(a, b), (b, a)]);
    }
    arrive(&world, &every(&all), "no access list");
    // `apply` closes what somebody opened by hand, and takes away what is no longer declared.
    world.declare(INFRA);
    world.apply();
    arrive(&world, &Arrivals::new(), "none any more");
    world.is_settled();
}
