//! What is read and what is refused, by whole files.

use super::*;
use crate::diagnostic::draw;

/// The seed's quick start, exactly as printed.
pub(crate) const QUICK_START: &str = r#"domains:
  vault:
    subnet_id: 0
    machines:
      vault-signer:
        type: lxc
        ip: "10.100.0.10"
        services:
          - name: file_sign
            tool: gpg_sign
            consumers: [work-dev, pro-dev]
          - name: clipboard
            tool: clipboard_get
            consumers: [work-dev]
  work:
    subnet_id: 1
    machines:
      work-dev:
        type: lxc
        ip: "10.100.1.10"
"#;

const PRO: &str = r#"  pro:
    subnet_id: 2
    machines:
      pro-dev:
        ip: "10.100.2.10"
"#;

const EXAMPLE: &str = include_str!("../../infra.example.yml");

#[track_caller]
fn good(text: &str) -> Read {
    match parse("infra.yml", text) {
        Ok(read) => read,
        Err(Faults(faults)) => panic!("{}", draw(&faults, false)),
    }
}

#[test]
fn the_quick_start_of_the_documentation_has_one_fault() {
    let Err(Faults(faults)) = parse("infra.yml", QUICK_START) else {
        panic!("read")
    };
    let drawn = "\
error[unknown-consumer]: `pro-dev` is not a machine of this file
  --> infra.yml:11:35
   |
11 |             consumers: [work-dev, pro-dev]
   |                                   ^^^^^^^
   = help: declare the machine in a domain, or take it off the list";
    assert_eq!(draw(&faults, false), drawn);
}

#[test]
fn the_quick_start_with_a_pro_domain_is_read() {
    let read = good(&format!("{QUICK_START}{PRO}"));
    assert_eq!(read.warnings, []);
    let infra = read.infra;
    let names: Vec<_> = infra.machines().map(|(_, m)| m.name.as_str()).collect();
    assert_eq!(names, ["vault-signer", "work-dev", "pro-dev"]);
    let (domain, signer) = infra.machine("vault-signer").unwrap();
    assert_eq!(domain.network.name, "net-vault");
    assert_eq!(domain.network.subnet.to_string(), "10.100.0.0");
    assert_eq!(domain.network.gateway.to_string(), "10.100.0.254");
    assert_eq!(signer.os_image, DEFAULT_IMAGE);
    assert_eq!(signer.place.short(), "infra.yml:5");
    let [sign, clipboard] = signer.services.as_slice() else {
        panic!("two services")
    };
    assert_eq!(sign.tool, ToolName::GpgSign);
    assert_eq!(sign.consumers.len(), 2);
    assert_eq!(clipboard.place.short(), "infra.yml:12");
}

#[test]
fn the_example_is_read_without_a_warning() {
    let read = good(EXAMPLE);
    assert_eq!(draw(&read.warnings, false), "");
}
