//! `anklume status` on a computer without Incus: what is declared.

use crate::harness::Anklume;

const INFRA: &str = "domains:
  work:
    subnet_id: 1
    machines:
      work-dev: {}
      web: {}
  vault:
    subnet_id: 2
    machines:
      vault-signer:
        services:
          - {name: file_sign, tool: gpg_sign, consumers: [work-dev, web]}
          - {name: paste, tool: clipboard_get, consumers: [work-dev], expires: 2001-01-01T00:00:00Z}
          - {name: unused, tool: notify}
";

fn status(infra: &str, more: &[&str]) -> crate::harness::Ran {
    let args = [&["status"], more].concat();
    let asked = Anklume::new().infra(infra).args(args);
    asked.env("INCUS_SOCKET", "/nowhere/unix.socket").run()
}

#[test]
fn without_incus_status_shows_what_is_declared() {
    let shown = status(INFRA, &[]);
    shown.is(
        0,
        "MACHINE       DOMAIN  STATE\n\
         work-dev      work    unknown\n\
         web           work    unknown\n\
         vault-signer  vault   unknown\n\
         \n\
         CONSUMER  PROVIDER      CHANNEL  MAY CALL\n\
         work-dev  vault-signer  unknown  file_sign, paste (expired)\n\
         web       vault-signer  unknown  file_sign\n",
        "note: only what is declared is shown: Incus is not running on this computer (no socket at `/nowhere/unix.socket`)\n",
    );
    let json = status(INFRA, &["--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        json.pointer("/channels/0/services/1"),
        Some(&serde_json::json!({
            "service": "paste", "tool": "clipboard_get",
            "conditions": ["until 2001-01-01T00:00:00Z", "expired"],
        }))
    );
    let none = status("domains: {}\n", &[]);
    assert_eq!(
        (none.status, none.stdout.as_str()),
        (0, "no machines are declared\n")
    );
    let quiet = status("domains: {d: {subnet_id: 0, machines: {m: {}}}}\n", &["-q"]);
    quiet.answers("MACHINE  DOMAIN  STATE\nm        d       unknown\n\nno services are declared, so no calls are allowed\n");
}
