//! Tests host folders that machines write to as the host's root.

use super::*;
use crate::plan::{Reach, shared_sources};

/// Returns the sources that a machine `dev` with these keys writes to as the host's root; its domain has `profiles`.
fn sources(keys: &str, profiles: &str) -> Vec<String> {
    let text = format!(
        "global: {{default_os_image: bb}}\ndomains: {{work: {{subnet_id: 1, profiles: {{{profiles}}}, machines: {{dev: {{{keys}}}}}}}}}\n"
    );
    let infra = infra(&text);
    let found = shared_sources(&infra).into_iter();
    found.map(str::to_owned).collect()
}

#[test]
fn a_disk_that_is_written_as_the_host_s_users_counts_and_no_other() {
    let own = |device: &str| format!("devices: {{d: {{type: disk, path: /d, {device}}}}}");
    let shifted = own("source: /srv/d, shift: true");
    assert_eq!(sources(&shifted, ""), ["/srv/d"]);
    assert_eq!(
        sources("persistent_data: {p: {path: /p}}", ""),
        ["/srv/anklume/data/work/dev/p"]
    );
    for none in [
        "persistent_data: {p: {path: /p, readonly: true}}".to_owned(),
        // Without `shift`, the machine's root is an unprivileged user on the host.
        own("source: /srv/d"),
        own("source: /srv/d, shift: false"),
        own("source: /srv/d, shift: true, readonly: true"),
        own("source: vol, pool: default, shift: true"),
    ] {
        assert_eq!(sources(&none, ""), [""; 0], "{none}");
    }
    // The host's root writes a virtual machine's files; `raw.idmap` can name the host's users.
    let plain = own("source: /srv/d");
    assert_eq!(sources(&format!("type: vm, {plain}"), ""), ["/srv/d"]);
    let mapped = format!("config: {{raw.idmap: both 0 0}}, {plain}");
    assert_eq!(sources(&mapped, ""), ["/srv/d"]);
    let profile = |name: &str| {
        format!("{name}: {{devices: {{d: {{type: disk, source: /srv/d, path: /d, shift: true}}}}}}")
    };
    assert_eq!(sources("profiles: [own]", &profile("own")), ["/srv/d"]);
    assert_eq!(sources("ip: 10.100.1.1", &profile("own")), [""; 0]);
    assert_eq!(sources("ip: 10.100.1.1", &profile("default")), ["/srv/d"]);
}

#[test]
fn a_folder_that_is_open_to_the_host_s_users_stands_in_the_way() {
    let text = |access: &str, source: &str| {
        let share = format!("{{docs: {{source: {source}, consumers: {{dev: {access}}}}}}}");
        format!("{INFRA}shared_volumes: {share}\n")
    };
    let of = |source: &str, reach: Reach| Facts {
        shares: [(source.to_owned(), reach)].into(),
        ..facts()
    };
    let help = |source: &str, reach: Reach| {
        let found = planned(&text("rw", source), &empty(), &of(source, reach), &[]);
        let Err(Faults(mut faults)) = found else {
            panic!("no fault");
        };
        assert_eq!((faults.len(), faults[0].code), (1, "open-share"));
        faults.remove(0).help.unwrap()
    };
    // The suggested command closes the parent folder, unless others need it.
    assert_eq!(
        help("/home/me/docs", Reach::Everybody),
        "`chmod 0700 /home/me`; or share it `ro`"
    );
    assert_eq!(
        help("/var/lib/app/docs", Reach::Everybody),
        "`chmod 0700 /var/lib/app`; or share it `ro`"
    );
    for (source, top) in [
        ("/srv/docs", "/srv"),
        ("/var/lib/docs", "/var/lib"),
        ("/docs", ""),
    ] {
        let expected = format!(
            "`mkdir -m 0700 {top}/shared`, `mv {source} {top}/shared/` if it is there, and declare {top}/shared/docs; or share it `ro`"
        );
        assert_eq!(help(source, Reach::Everybody), expected);
    }
    assert_eq!(
        help("/pub/shut/docs", Reach::Replaceable("/pub".to_owned())),
        "`chmod go-w /pub`; or share it `ro`"
    );
    // A machine that may only read poses no danger.
    let open = of("/srv/docs", Reach::Everybody);
    assert!(planned(&text("ro", "/srv/docs"), &empty(), &open, &[]).is_ok());
    let closed = of("/srv/docs", Reach::Nobody);
    let plan = planned(&text("rw", "/srv/docs"), &empty(), &closed, &[]).unwrap();
    assert_eq!(plan.notes, [""; 0]);
    let mut made = of("/srv/new/docs", Reach::WhenMade);
    made.missing = ["/srv/new/docs".to_owned(), "/srv/ne".to_owned()].into();
    assert!(planned(&text("rw", "/srv/new/docs"), &empty(), &made, &[]).is_ok());
    made.missing.insert("/srv/new".to_owned());
    assert_eq!(
        codes(&text("rw", "/srv/new/docs"), &empty(), &made, &[]),
        ["open-share"]
    );
    let trusted = of("/home/me/docs", Reach::User(1000));
    let plan = planned(&text("rw", "/home/me/docs"), &empty(), &trusted, &[]).unwrap();
    assert_eq!(
        plan.notes,
        [
            "files that machines write in `/home/me/docs` belong to the host's root: the host's user 1000 and a machine's root can together become root (docs/infra.md)"
        ]
    );
}

#[test]
fn what_a_machine_could_exchange_stands_in_the_way() {
    let text =
        format!("{INFRA}shared_volumes: {{docs: {{source: /srv/link, consumers: {{dev: ro}}}}}}\n");
    let found = Facts {
        nested: [("/srv/link".to_owned(), "/srv/x".to_owned())].into(),
        ..facts()
    };
    let Err(Faults(faults)) = planned(&text, &empty(), &found, &[]) else {
        panic!("no fault");
    };
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].code, "source-in-shared-folder");
    assert_eq!(
        faults[0].message,
        "`/srv/link` leads into `/srv/x`, a host folder that a machine may write to"
    );
}
