//! Domains do not reach each other; inside one, and to its own gateway, all works.

use crate::project::have_incus;
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

/// Gives a machine the address that its gateway has for it.
const ASK: &str = r#"
cat >/tmp/lease <<'X'
#!/bin/sh
[ "$1" = bound ] && ip addr add $ip/24 dev $interface && ip route add default via $router && echo nameserver $dns >/etc/resolv.conf
X
chmod +x /tmp/lease; ip link set eth0 up; udhcpc -i eth0 -n -q -t 20 -T 1 -s /tmp/lease >/dev/null 2>&1; ip -4 addr show eth0 | grep -o 'inet [0-9.]*' | cut -d' ' -f2
"#;

#[test]
fn domains_are_apart_and_each_works_inside() {
    if !have_incus() {
        return;
    }
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
    let ping = |target: &str| format!("ping -c1 -W1 {target} >/dev/null");
    let serve = "nc -ll -p 7000 -e /bin/cat >/dev/null 2>&1 &";
    for (domain, name) in [(0, "two"), (1, "far")] {
        assert!(reaches(domain, name, serve));
    }
    let talk = |target: &str| {
        format!("(echo hello; sleep 1) | timeout 3 nc -w 1 {target} 7000 | grep -q hello")
    };

    // Inside a domain, and with its own gateway.
    assert!(reaches(0, "one", &ping(&two)));
    assert!(reaches(0, "one", &talk(&two)));
    assert!(reaches(0, "one", &ping("{base}.1.254")));
    assert!(reaches(
        0,
        "one",
        &format!(
            "timeout 5 nslookup {}.incus >/dev/null",
            world.machine(0, "two")
        )
    ));
    // To the other: ping, TCP, its gateway, from both sides.
    assert!(!reaches(0, "one", &ping(&far)));
    assert!(!reaches(0, "one", &talk(&far)));
    assert!(!reaches(0, "one", &ping("{base}.2.254")));
    assert!(!reaches(1, "far", &ping(&one)));
    assert!(!reaches(1, "far", &talk(&two)));
    assert!(!reaches(1, "far", &ping("{base}.1.254")));
    // Nor with an address of the other domain's.
    let forged =
        "ip addr add {base}.2.77/32 dev eth0; ping -c1 -W1 -I {base}.2.77 {base}.2.10 >/dev/null";
    assert!(!reaches(0, "one", forged));
    // Nor over IPv6: there is none between bridges, not even where two machines agree on it.
    for (domain, name, own) in [(0, "one", "fd00:a::1"), (1, "far", "fd00:b::1")] {
        let set = format!(
            "ip -6 addr add {own}/64 dev eth0 nodad; ip -6 route add default via fe80::1 dev eth0"
        );
        reaches(domain, name, &set);
    }
    assert!(!reaches(0, "one", "ping -6 -c1 -W1 fd00:b::1 >/dev/null"));
    let bridges = world
        .domains
        .clone()
        .map(|one| format!("/proc/sys/net/ipv6/conf/net-{one}/disable_ipv6"));
    for bridge in bridges {
        assert_eq!(std::fs::read(&bridge).unwrap(), b"1\n", "{bridge}");
    }
    // The host may speak to its machines: they are its own.
    let host = std::net::TcpStream::connect_timeout(
        &format!("{far}:7000").parse().unwrap(),
        std::time::Duration::from_secs(2),
    );
    assert!(host.is_ok(), "{host:?}");
}

#[test]
fn an_address_is_one_machine_s_also_against_another_file_and_may_pass_to_another() {
    if !have_incus() {
        return;
    }
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

    // What arrives is counted: an answer would go to whoever has the address.
    let heard = || -> u32 {
        let (_, text) = world.exec(0, "two", "cat /proc/net/snmp");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|name| name == "InEchos").unwrap();
        values.split(' ').nth(at).unwrap().parse().unwrap()
    };
    let before = heard();
    let ping = world.filled("ping -c2 -W1 {base}.1.11 >/dev/null");
    assert!(world.exec(0, "one", &format!("{ASK}\n{ping}")).0);
    assert_eq!(heard(), before + 2);
    let forged = "ip addr add {base}.1.10/32 dev eth0; ping -c2 -W1 -I {base}.1.10 {base}.1.11";
    assert!(!stranger.exec(0, "it", &world.filled(forged)).0);
    assert_eq!(heard(), before + 2, "a forged address arrives");

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
    if !have_incus() {
        return;
    }
    let mut world = World::new("domains: {{a}: {subnet_id: 1, machines: {}}}\n");
    world.apply();
    world.declare(INFRA.replace("{a}-two: {}", "").as_str());
    let closes = world.filled("~ acl net-{a} egress: (none) → reject {base}.2.0/24");
    assert!(world.plan().contains(&closes), "{:?}", world.plan());
    world.apply();
    world.is_settled();
    // What the user adds to the list stays.
    let rule = ["action=drop", "destination=192.0.2.7/32"];
    let net = world.filled("net-{a}");
    let added = crate::project::incus(
        [
            &["network", "acl", "rule", "add", &net, "egress"],
            &rule[..],
        ]
        .concat(),
    );
    assert!(added.status.success(), "{added:?}");
    world.is_settled();
}
