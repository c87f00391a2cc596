//! Generates declarations: domains of forty machines, each of which offers two services to five consumers.

use std::fmt::Write as _;

const MACHINES_IN_A_DOMAIN: usize = 40;
const CONSUMERS_OF_A_SERVICE: usize = 5;

/// An `infra.yml` of `machines` machines.
pub(crate) fn infra(machines: usize) -> String {
    let mut text = String::from(
        "project_name: bench\nglobal:\n  base_subnet: \"10.100\"\n  default_os_image: images:debian/13\ndomains:\n",
    );
    for machine in 0..machines {
        let (domain, place) = (
            machine / MACHINES_IN_A_DOMAIN,
            machine % MACHINES_IN_A_DOMAIN,
        );
        if place == 0 {
            write!(text, "  d{domain}:\n    description: domain {domain}\n    subnet_id: {domain}\n    machines:\n").unwrap();
        }
        write!(
            text,
            "      {}:\n        type: lxc\n        description: machine {machine}\n        ip: \"10.100.{domain}.{}\"\n        services:\n",
            name(machine),
            place + 1
        )
        .unwrap();
        for (service, tool) in [("file_sign", "gpg_sign"), ("clipboard", "clipboard_get")] {
            writeln!(
                text,
                "          - name: {service}\n            tool: {tool}\n            consumers:"
            )
            .unwrap();
            for consumer in consumers(machine, machines) {
                writeln!(text, "              - {consumer}").unwrap();
            }
        }
    }
    text
}

/// A provider in the middle of the file, one of its services, and a caller that may use it.
pub(crate) fn a_grant(machines: usize) -> (String, &'static str, String) {
    let provider = machines / 2;
    let caller = consumers(provider, machines).last().unwrap();
    (name(provider), "clipboard", caller)
}

/// A few of the machines that follow, wrapping around at the end of the file.
fn consumers(machine: usize, machines: usize) -> impl Iterator<Item = String> {
    (1..=CONSUMERS_OF_A_SERVICE)
        .map(move |step| name((machine + step * 7) % machines))
        .filter(move |consumer| *consumer != name(machine))
}

fn name(machine: usize) -> String {
    format!(
        "d{}-m{}",
        machine / MACHINES_IN_A_DOMAIN,
        machine % MACHINES_IN_A_DOMAIN
    )
}
