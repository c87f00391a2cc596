//! Domains cannot reach each other; within a domain, and to its own gateway, everything works.

use std::collections::BTreeMap;

use crate::project::{incus, succeeded};
use crate::world::World;

/// Two machines in one domain, one in another.
const INFRA: &str = r#"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-one: {ip: "{base}.1.10"}
      {a}-two: {}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-far: {ip: "{base}.2.10"}
"#;

/// Two machines with fixed addresses.
const PAIR: &str = r#"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-one: {ip: "{base}.1.10"}
      {a}-two: {ip: "{base}.1.11"}
"#;

/// Gives a machine the address that its gateway assigns to it, and prints the address.
const ASK: &str = r#"
cat >/tmp/lease <<'X'
#!/bin/sh
[ "$1" = bound ] && ip addr add $ip/24 dev $interface && ip route add default via $router && echo nameserver $dns >/etc/resolv.conf
X
chmod +x /tmp/lease; ip link set eth0 up; udhcpc -i eth0 -n -q -t 20 -T 1 -s /tmp/lease >/dev/null 2>&1; ip -4 addr show eth0 | grep -o 'inet [0-9.]*' | cut -d' ' -f2
"#;

/// A packet that a machine sends, and the counter that rises if it arrives.
struct Packet {
    /// The sending machine: its domain number and its name.
    from: (usize, &'static str),
    command: &'static str,
    /// The receiving machine.
    to: (usize, &'static str),
    /// The receiver's counter, as named in `/proc/net/snmp` or `/proc/net/snmp6`.
    counter: &'static str,
}

/// Every kind of IPv4 packet between the domains, including some with a forged sender address.
const IPV4: [Packet; 8] = [
    Packet::new(
        (0, "one"),
        "ping -c1 -W1 {base}.2.10",
        (1, "far"),
        "Icmp:InEchos",
    ),
    Packet::new(
        (1, "far"),
        "ping -c1 -W1 {base}.1.10",
        (0, "one"),
        "Icmp:InEchos",
    ),
    Packet::new(
        (0, "one"),
        "ping -c1 -W1 -I {base}.2.77 {base}.2.10",
        (1, "far"),
        "Icmp:InEchos",
    ),
    Packet::new(
        (1, "far"),
        "ping -c1 -W1 -I {base}.1.77 {base}.1.10",
        (0, "one"),
        "Icmp:InEchos",
    ),
    Packet::new(
        (0, "one"),
        "nc -w1 {base}.2.10 7000",
        (1, "far"),
        "Tcp:InSegs",
    ),
    Packet::new(
        (1, "far"),
        "nc -w1 {base}.1.10 7000",
        (0, "one"),
        "Tcp:InSegs",
    ),
    Packet::new(
        (0, "one"),
        "traceroute -n -f9 -m9 -q1 -w1 {base}.2.10",
        (1, "far"),
        "Udp:NoPorts",
    ),
    Packet::new(
        (1, "far"),
        "traceroute -n -f9 -m9 -q1 -w1 {base}.1.10",
        (0, "one"),
        "Udp:NoPorts",
    ),
];

/// The same over IPv6. They are sent separately, because TCP has a single counter for both.
const IPV6: [Packet; 6] = [
    Packet::new(
        (0, "one"),
        "ping -6 -c1 -W1 fd00:2::10",
        (1, "far"),
        "Icmp6InEchos",
    ),
    Packet::new(
        (1, "far"),
        "ping -6 -c1 -W1 fd00:1::10",
        (0, "one"),
        "Icmp6InEchos",
    ),
    Packet::new(
        (0, "one"),
        "nc -w1 fd00:2::10 7000",
        (1, "far"),
        "Tcp:InSegs",
    ),
    Packet::new(
        (1, "far"),
        "nc -w1 fd00:1::10 7000",
        (0, "one"),
        "Tcp:InSegs",
    ),
    Packet::new(
        (0, "one"),
        "traceroute -6 -n -f9 -m9 -q1 -w1 fd00:2::10",
        (1, "far"),
        "Udp6NoPorts",
    ),
    Packet::new(
        (1, "far"),
        "traceroute -6 -n -f9 -m9 -q1 -w1 fd00:1::10",
        (0, "one"),
        "Udp6NoPorts",
    ),
];

impl Packet {
    const fn new(
        from: (usize, &'static str),
        command: &'static str,
        to: (usize, &'static str),
        counter: &'static str,
    ) -> Self {
        Self {
            from,
            command,
            to,
            counter,
        }
    }
}

/// A counter of received packets in a machine.
fn counter(texts: &str, name: &str) -> u64 {
    if let Some((protocol, name)) = name.split_once(':') {
        let mut lines = texts.lines().filter_map(|line| {
            let (head, rest) = line.split_once(": ")?;
            (head == protocol).then_some(rest)
        });
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|one| one == name).unwrap();
        values.split(' ').nth(at).unwrap().parse().unwrap()
    } else {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        let mut lines = texts.lines().map(words);
        let line: Vec<String> = lines.find(|line: &Vec<String>| line[0] == name).unwrap();
        line[1].parse().unwrap()
    }
}

/// The number of packets for each machine and counter.
type Counts = BTreeMap<(&'static str, &'static str), u64>;

fn received(world: &World, packets: &[Packet]) -> Counts {
    let mut counts = Counts::new();
    for (domain, name) in [(0, "one"), (1, "far")] {
        let (_, texts) = world.exec(domain, name, "cat /proc/net/snmp /proc/net/snmp6");
        let own = packets.iter().filter(|packet| packet.to == (domain, name));
        counts.extend(own.map(|packet| ((name, packet.counter), counter(&texts, packet.counter))));
    }
    counts
}

/// Sends all packets and counts how many of each kind arrive. Ignores answers, which may go to another machine.
fn arriving(world: &World, packets: &[Packet]) -> Counts {
    let before = received(world, packets);
    for (domain, name) in [(0, "one"), (1, "far")] {
        let own = packets
            .iter()
            .filter(|packet| packet.from == (domain, name));
        let all = own.map(|packet| format!("{} </dev/null >/dev/null 2>&1 &\n", packet.command));
        let all = world.filled(&(all.collect::<String>() + "wait"));
        world.exec(domain, name, &all);
    }
    let more = |(key, count)| (key, count - before[&key]);
    received(world, packets).into_iter().map(more).collect()
}

/// Asserts that each counter rises by at least one packet per command; a command may send several.
#[track_caller]
fn all_arrive(world: &World) {
    for packets in [IPV4.as_slice(), &IPV6] {
        let arrived = arriving(world, packets);
        for (key, count) in &arrived {
            let sent = packets
                .iter()
                .filter(|packet| (packet.to.1, packet.counter) == *key);
            assert!(*count >= sent.count() as u64, "{key:?} of {arrived:?}");
        }
    }
}

#[track_caller]
fn none_arrives(world: &World) {
    for packets in [IPV4.as_slice(), &IPV6] {
        let arrived = arriving(world, packets);
        assert!(arrived.values().all(|count| *count == 0), "{arrived:?}");
    }
}

#[test]
fn domains_are_apart_and_each_works_inside() {
    let world = World::new(INFRA);
    world.apply();
    let address = |domain, name| world.exec(domain, name, ASK).1.trim().to_owned();
    let one = address(0, "one");
    let two = address(0, "two");
    let far = address(1, "far");
    assert_eq!(
        (one.as_str(), far.as_str()),
        (&*world.filled("{base}.1.10"), &*world.filled("{base}.2.10"))
    );
    let range: u8 = two.rsplit('.').next().unwrap().parse().unwrap();
    assert!((100..=249).contains(&range), "{two}");

    let reaches = |domain, name, command: &str| world.exec(domain, name, &world.filled(command)).0;
    let ping = |target: &str| format!("ping -c1 -W10 {target} >/dev/null");
    let serve = "nc -ll -p 7000 -e /bin/cat >/dev/null 2>&1 &";
    for (domain, name) in [(0, "two"), (1, "far")] {
        assert!(reaches(domain, name, serve));
    }
    // Traffic works within a domain, and to its own gateway.
    let talk = format!("(echo hello; sleep 3) | timeout 20 nc -w 10 {two} 7000 | grep -q hello");
    assert!(reaches(0, "one", &ping(&two)));
    assert!(reaches(0, "one", &talk));
    assert!(reaches(0, "one", &ping("{base}.1.254")));
    let ask = format!(
        "timeout 20 nslookup {}.incus >/dev/null",
        world.machine(0, "two")
    );
    assert!(reaches(0, "one", &ask));
    // The host may connect to its own machines.
    let host = std::net::TcpStream::connect_timeout(
        &format!("{far}:7000").parse().unwrap(),
        std::time::Duration::from_secs(20),
    );
    assert!(host.is_ok(), "{host:?}");

    // Root in a machine can add an address from the other domain, and IPv6 addresses with a default route.
    for (domain, name, own) in [(0, "one", "1"), (1, "far", "2")] {
        let set = format!(
            "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad && ip -6 addr add fd00:{own}::10/64 dev eth0 && \
             ip -6 route add default via fd00:{own}::1 dev eth0 onlink"
        );
        assert!(reaches(domain, name, &set));
    }
    assert!(reaches(0, "one", "ip addr add {base}.2.77/32 dev eth0"));
    assert!(reaches(1, "far", "ip addr add {base}.1.77/32 dev eth0"));
    let have_no_ipv6 = || {
        world.domains.iter().all(|domain| {
            let switch = format!("/proc/sys/net/ipv6/conf/net-{domain}/disable_ipv6");
            std::fs::read(switch).unwrap() == b"1\n"
        })
    };
    assert!(have_no_ipv6());
    let gateways = [
        (0, "one", "ping -c1 -W1 {base}.2.254 >/dev/null"),
        (1, "far", "ping -c1 -W1 {base}.1.254 >/dev/null"),
    ];
    let of_gateways = || {
        gateways
            .iter()
            .filter(|(domain, name, command)| reaches(*domain, name, command))
            .count()
    };
    none_arrives(&world);
    assert_eq!(of_gateways(), 0);

    // The same packets arrive once `apply`'s protection is removed.
    for (domain, own) in [("{a}", "1"), ("{b}", "2")] {
        let net = world.filled(&format!("net-{domain}"));
        succeeded(&incus(["network", "unset", &net, "security.acls"]));
        let address = format!("ipv6.address=fd00:{own}::1/64");
        succeeded(&incus([
            "network",
            "set",
            &net,
            &address,
            "ipv6.dhcp=false",
        ]));
    }
    for (domain, name) in [(0, "one"), (1, "far")] {
        let machine = world.machine(domain, name);
        let filter = [
            "config",
            "device",
            "set",
            &machine,
            "eth0",
            "security.ipv4_filtering=false",
        ];
        succeeded(&world.incus(domain, &filter));
    }
    // Wait until the host's new IPv6 addresses have passed duplicate address detection.
    for (domain, name, own) in [(0, "one", "1"), (1, "far", "2")] {
        let ping =
            format!("for i in $(seq 60); do ping -6 -c1 -W1 fd00:{own}::1 && exit; done; exit 1");
        assert!(reaches(domain, name, &ping));
    }
    all_arrive(&world);
    assert_eq!(of_gateways(), gateways.len());

    // They no longer arrive once the protection is back.
    world.apply();
    world.is_settled();
    none_arrives(&world);
    assert_eq!(of_gateways(), 0);
    assert!(have_no_ipv6());
}

#[test]
fn an_address_is_one_machine_s_also_against_another_file_and_may_pass_to_another() {
    let mut world = World::new(PAIR);
    let swapped = PAIR
        .replace(".1.10", ".1.12")
        .replace(".1.11", ".1.10")
        .replace(".1.12", ".1.11");
    let stranger =
        World::new("domains: {{a}: {subnet_id: 1, ephemeral: true, machines: {{a}-it: {}}}}\n");
    world.apply();
    stranger.apply();
    stranger.is_settled();
    assert_eq!(
        world.exec(0, "two", ASK).1.trim(),
        world.filled("{base}.1.11")
    );
    assert_ne!(stranger.exec(0, "it", ASK).1.trim(), "");

    // Arriving packets are counted, because an answer would go to the owner of the address.
    let heard = || {
        counter(
            &world.exec(0, "two", "cat /proc/net/snmp").1,
            "Icmp:InEchos",
        )
    };
    let before = heard();
    let ping = world.filled("ping -c2 -W1 {base}.1.11 >/dev/null");
    assert!(world.exec(0, "one", &format!("{ASK}\n{ping}")).0);
    assert_eq!(heard(), before + 2);
    // A machine from another file that uses its own address is kept out only by the rules of the domain that it calls.
    let honest = world.filled("ping -c2 -W1 {base}.1.11");
    assert!(!stranger.exec(0, "it", &honest).0);
    assert_eq!(heard(), before + 2, "a machine from another file gets in");
    let net = world.filled("net-{a}");
    succeeded(&incus(["network", "unset", &net, "security.acls"]));
    stranger.exec(0, "it", &honest);
    assert_eq!(heard(), before + 4);
    world.apply();
    stranger.exec(0, "it", &honest);
    assert_eq!(
        heard(),
        before + 4,
        "a machine from another file gets in again"
    );

    let forged = "ip addr add {base}.1.10/32 dev eth0; ping -c2 -W1 -I {base}.1.10 {base}.1.11";
    assert!(!stranger.exec(0, "it", &world.filled(forged)).0);
    assert_eq!(heard(), before + 4, "a forged address arrives");
    // The forged packet arrives if nothing checks its sender.
    let (it, eth0) = (stranger.machine(0, "it"), "eth0");
    let filter = [
        "config",
        "device",
        "set",
        &it,
        eth0,
        "security.ipv4_filtering=false",
    ];
    succeeded(&stranger.incus(0, &filter));
    succeeded(&incus(["network", "unset", &net, "security.acls"]));
    let forged = forged.split_once("; ").unwrap().1;
    stranger.exec(0, "it", &world.filled(forged));
    let arrived = heard();
    // More may arrive: earlier packets may still have been waiting for address resolution.
    assert!(arrived >= before + 6, "{before} {arrived}");
    for one in [&world, &stranger] {
        one.apply();
        one.is_settled();
    }
    stranger.exec(0, "it", &world.filled(forged));
    assert_eq!(heard(), arrived, "a forged address arrives again");

    world.declare(&swapped);
    world.apply();
    world.is_settled();
    let shifted = swapped.replace(".1.11", ".1.12").replace(".1.10", ".1.11");
    world.declare(&shifted);
    world.apply();
    world.is_settled();
    let renewed = "ip addr flush dev eth0; ".to_owned() + ASK;
    assert_eq!(
        world.exec(0, "two", &renewed).1.trim(),
        world.filled("{base}.1.11")
    );
}

#[test]
fn a_new_domain_is_closed_to_the_old_ones() {
    let mut world = World::new("domains: {{a}: {subnet_id: 1, machines: {}}}\n");
    world.apply();
    world.declare(INFRA.replace("{a}-two: {}", "").as_str());
    let closes = world.filled("+ acl net-{a} egress: reject {base}.2.0/24");
    assert!(world.plan().contains(&closes), "{:?}", world.plan());
    world.apply();
    world.is_settled();
    // An entry that the user adds to the list stays.
    let rule = ["action=drop", "destination=192.0.2.7/32"];
    let net = world.filled("net-{a}");
    let added = incus(
        [
            &["network", "acl", "rule", "add", &net, "egress"],
            &rule[..],
        ]
        .concat(),
    );
    assert!(added.status.success(), "{added:?}");
    world.is_settled();
}
