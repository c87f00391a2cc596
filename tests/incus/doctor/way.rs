//! Faults in devices, the processes that carry their bytes, and sockets.

use std::path::Path;

use rustix::process::Signal;

use super::Patient;
use crate::processes::{kill, signal};

#[test]
fn devices_and_their_processes_are_looked_at() {
    let patient = Patient::new();
    a_device_that_was_removed_or_changed_is_named_and_comes_back(&patient);
    a_device_whose_process_is_gone_or_stopped_is_made_again(&patient);
}

fn a_device_that_was_removed_or_changed_is_named_and_comes_back(patient: &Patient) {
    let (signer, dev) = (patient.signer(), patient.dev());
    let device = patient.device.clone();
    patient.incus(1, &["config", "device", "remove", &dev, &device]);
    patient.recovers("device", "{dev} has no device {device}");
    patient.incus(0, &["config", "device", "remove", &signer, &device]);
    patient.recovers("device", "{signer} has no device {device}");
    patient.incus(1, &["config", "device", "set", &dev, &device, "mode=0666"]);
    patient.recovers(
        "device",
        "the device {device} of {dev} differs from the expected one in: mode",
    );
    let other = "connect=unix:/run/anklume/mcp/other.sock";
    patient.incus(
        0,
        &["config", "device", "set", &signer, &device, other, "uid=0"],
    );
    patient.recovers(
        "device",
        "the device {device} of {signer} differs from the expected one in: connect, uid",
    );
}

#[test]
fn a_process_that_incus_lost_track_of_is_named_and_ended() {
    let mut patient = Patient::new();
    let (project, dev) = (patient.world.domains[1].clone(), patient.dev());
    let number = format!(
        "/var/lib/incus/devices/{project}_{dev}/proxy.{}",
        patient.device
    );
    let lose_track = || std::fs::remove_file(&number).unwrap();
    let strays = |patient: &Patient| {
        let (status, answer) = patient.examined();
        (status, answer["others"].as_array().unwrap().clone())
    };
    let named = |patient: &Patient, process: i32| {
        let (status, others) = strays(patient);
        assert_eq!((status, others.len()), (1, 1), "{others:#?}");
        let detail = others[0]["detail"].as_str().unwrap();
        let expected =
            format!("process {process} on the host is an Incus proxy from `/srv/anklume/mcp/");
        assert!(detail.starts_with(&expected), "{detail}");
    };
    // As after an upgrade of Incus that names its file in another way: the restart of a machine adds a second process.
    let first = patient.proxy(false);
    lose_track();
    let device = patient.device.clone();
    let keys = patient
        .world
        .incus(1, &["config", "device", "get", &dev, &device, "connect"]);
    assert!(keys.status.success(), "{keys:?}");
    patient.incus(1, &["config", "device", "set", &dev, &device, "mode=0666"]);
    patient.incus(1, &["config", "device", "set", &dev, &device, "mode=0600"]);
    named(&patient, first);
    let plan = patient.world.plan();
    assert!(
        plan[0].starts_with(&format!("- process {first} on the host: ")),
        "{plan:#?}"
    );
    patient.is_mended();
    assert!(!Path::new(&format!("/proc/{first}/exe")).exists());
    // Incus does not end the process of a revoked channel: `apply` does.
    let second = patient.proxy(false);
    lose_track();
    patient
        .world
        .declare(&super::PAIR.replace("[{b}-dev]", "[]"));
    patient.world.apply();
    assert!(!Path::new(&format!("/proc/{second}/exe")).exists());
    assert_eq!(strays(&patient), (0, Vec::new()));
}

#[test]
fn copies_and_sockets_are_looked_at() {
    let patient = Patient::new();
    a_socket_that_is_gone_or_not_the_channels_alone_is_made_again(&patient);
    a_copy_with_a_device_of_the_channel_is_named_and_loses_it(&patient);
}

fn a_copy_with_a_device_of_the_channel_is_named_and_loses_it(patient: &Patient) {
    for (domain, name) in [(0, "signer"), (1, "dev")] {
        let (machine, copy) = (
            patient.world.machine(domain, name),
            patient.world.machine(domain, "copy"),
        );
        patient.incus(domain, &["copy", &machine, &copy]);
        // The original machine has the address; without it, the copy starts, and a provider's copy takes the socket.
        patient.incus(
            domain,
            &["config", "device", "unset", &copy, "eth0", "ipv4.address"],
        );
        patient.incus(domain, &["start", &copy]);
        let detail = format!(
            "{copy} (project {}) has a device of this channel, {{device}}, but is not one of its ends",
            patient.world.domains[domain]
        );
        patient.recovers("copy", &detail);
        patient.incus(domain, &["delete", "--force", &copy]);
        patient.is_well();
    }
    // A profile belongs to somebody else, who must remove the device from it.
    let connect = format!("connect=unix:{}", patient.host_socket());
    let device = ["p", "proxy", "bind=instance", "listen=unix:/x", &connect];
    patient.incus(1, &["profile", "create", "mine"]);
    patient.incus(
        1,
        &[&["profile", "device", "add", "mine"], &device[..]].concat(),
    );
    let fix = patient.ails("copy", "the device `p` of the profile `mine` (project `");
    let ran = patient.world.run(&["apply"]);
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    assert!(
        ran.stderr.contains(&format!("remove it: `{fix}`")),
        "{ran:?}"
    );
    let words: Vec<&str> = fix.split(' ').skip(1).collect();
    assert!(crate::project::incus(words).status.success(), "{fix}");
    patient.is_well();
    patient.incus(1, &["profile", "delete", "mine"]);
}

fn a_device_whose_process_is_gone_or_stopped_is_made_again(patient: &Patient) {
    // A process in a machine cannot use its command line to pose as one of the host's.
    let words = format!(
        "unix:{} unix:/run/anklume/mcp/{}.sock {}",
        patient.host_socket(),
        patient.dev(),
        patient.world.first(0, "signer")
    );
    let like = format!("sh -c 'while :; do sleep 5; done' x {words} >/dev/null 2>&1 </dev/null &");
    patient.exec(0, "signer", &like);
    for (domain, name) in [(0, "signer"), (1, "dev")] {
        let machine = patient.world.machine(domain, name);
        let detail = format!("no proxy process is running for the device {{device}} of {machine}");
        kill(patient.proxy(domain == 0));
        patient.recovers("process", &detail);
        signal(patient.proxy(domain == 0), Signal::STOP);
        patient.recovers("process", &detail);
    }
    // One run fixes both processes.
    kill(patient.proxy(true));
    kill(patient.proxy(false));
    patient.recovers("process", "for the device {device} of {dev}");
}

fn a_socket_that_is_gone_or_not_the_channels_alone_is_made_again(patient: &Patient) {
    let socket = patient.host_socket();
    std::fs::remove_file(&socket).unwrap();
    let gone = format!("`{socket}` on the host is gone");
    patient.recovers("socket", &gone);
    assert!(Path::new(&socket).exists());

    std::os::unix::fs::chown(&socket, Some(0), Some(0)).unwrap();
    patient.recovers(
        "socket",
        &format!("`{socket}` on the host is not a socket, or is not private to user "),
    );

    let inside = format!("/srv/anklume/mcp/{}.sock", patient.signer());
    for harm in ["chown 0:0", "chmod 666"] {
        patient.exec(1, "dev", &format!("{harm} {inside}"));
        let odd = format!("`{inside}` in {{dev}} is not a socket, or is not private to user 1000");
        patient.recovers("socket", &odd);
    }
    patient.exec(1, "dev", &format!("rm {inside}"));
    patient.recovers("socket", &format!("`{inside}` in {{dev}} is gone"));
    patient.exec(1, "dev", &format!("rm {inside}; touch {inside}"));
    patient.recovers("socket", &format!("`{inside}` in {{dev}} is not a socket"));
}
