//! Tests addresses that move from one machine to another.

use super::*;

/// Returns a file with three machines; those named here have an address with this last octet, the others use DHCP.
fn machines(addresses: &[(&str, u8)]) -> String {
    let mut text =
        "project_name: demo\nglobal: {default_os_image: bb}\ndomains:\n  work:\n    subnet_id: 1\n    machines:\n"
            .to_owned();
    for name in ["one", "two", "three"] {
        let last = addresses.iter().find(|(is, _)| *is == name);
        let ip = last.map_or_else(String::new, |(_, last)| format!("ip: 10.100.1.{last}"));
        text.extend(["      ", name, ": {", &ip, "}\n"]);
    }
    text
}

/// Returns the planned address changes; checks that they never assign an address twice, and leave nothing to change.
fn passes(before: &[(&str, u8)], after: &[(&str, u8)]) -> Vec<String> {
    let mut state = applied(&machines(before));
    let after = machines(after);
    let plan = planned(&after, &state, &facts(), &[]).unwrap();
    carry(&mut state, &plan);
    assert_eq!(
        lines(&planned(&after, &state, &facts(), &[]).unwrap()),
        [""; 0]
    );
    let shown = lines(&plan).into_iter();
    shown.filter(|line| line.contains(" eth0 ")).collect()
}

#[test]
fn an_address_is_taken_off_a_machine_before_another_gets_it() {
    let swapped = passes(&[("one", 10), ("two", 11)], &[("one", 11), ("two", 10)]);
    let eth0 = |name: &str, from: &str, to: &str| {
        format!("~ device eth0 on {name} ipv4.address: {from} → {to}")
    };
    assert_eq!(
        swapped,
        [
            eth0("one", "10.100.1.10", "(none)"),
            eth0("two", "10.100.1.11", "(none)"),
            eth0("one", "(none)", "10.100.1.11"),
            eth0("two", "(none)", "10.100.1.10"),
        ]
    );
    let shifted = passes(&[("one", 10), ("two", 11)], &[("one", 11), ("two", 12)]);
    assert_eq!(
        shifted,
        [
            eth0("two", "10.100.1.11", "(none)"),
            eth0("one", "10.100.1.10", "10.100.1.11"),
            eth0("two", "(none)", "10.100.1.12"),
        ]
    );
    // From a machine that loses its address, to one that had none.
    let given = passes(&[("three", 10)], &[("one", 10)]);
    assert_eq!(
        given,
        [
            eth0("three", "10.100.1.10", "(none)"),
            eth0("one", "(none)", "10.100.1.10"),
        ]
    );
    // No other machine needs the old address.
    let moved = passes(&[("one", 10)], &[("one", 11)]);
    assert_eq!(moved, [eth0("one", "10.100.1.10", "10.100.1.11")]);
}
