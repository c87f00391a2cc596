//! Machines with a whole Debian, for the long tests: with systemd, or with OpenRC.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::harness::{have, have_program};
use crate::project::{Project, have_incus, have_time, incus};

/// What starts and watches the services of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    /// systemd.
    Systemd,
    /// OpenRC.
    OpenRc,
}

impl Init {
    /// The alias of the image, and the script that makes it.
    fn image(self) -> (&'static str, &'static str) {
        match self {
            Self::Systemd => ("bookworm-systemd", "systemd-image.sh"),
            Self::OpenRc => ("bookworm-openrc", "openrc-image.sh"),
        }
    }

    /// A command for a machine's shell: waits until the machine is up, and prints what its init says of itself.
    ///
    /// `running` of systemd where no unit has failed, `default` of OpenRC.
    pub(crate) fn up(self) -> &'static str {
        match self {
            Self::Systemd => {
                r#"until state=$(systemctl is-system-running --wait 2>/dev/null) || [ "$state" = degraded ]
                do sleep 0.1; done; echo "$state""#
            }
            Self::OpenRc => "until [ -e /run/up ]; do sleep 0.1; done; rc-status -r",
        }
    }
}

/// The alias of a Debian image, made where it is not there; `None` where the test is skipped, which a line says.
#[track_caller]
pub(crate) fn debian(init: Init) -> Option<&'static str> {
    if !have_incus() || !have_time() {
        return None;
    }
    let (alias, script) = init.image();
    let tree = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = tree.join("target/incus");
    std::fs::create_dir_all(&cache).unwrap();
    // Whoever comes second finds what the first has made.
    let lock = File::create(cache.join(format!("{alias}.lock"))).unwrap();
    lock.lock().unwrap();
    let there = incus(["query", &format!("/1.0/images/aliases/{alias}")]);
    if !there.status.success() {
        let root = rustix::process::geteuid().is_root();
        if !have("root", root) || !have_program("debootstrap") {
            return None;
        }
        let made = Command::new("sh")
            .arg(tree.join("tests/incus").join(script))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    Some(alias)
}

#[test]
fn a_machine_with_systemd_comes_up_whole_and_stops_when_asked() {
    let Some(image) = debian(Init::Systemd) else {
        return;
    };
    let project = Project::new();
    project.incus(&["launch", "-q", image, "debian"]);
    assert_eq!(project.exec("debian", Init::Systemd.up()), "running\n");
    project.incus(&["restart", "debian", "--timeout=60"]);
    assert_eq!(project.exec("debian", Init::Systemd.up()), "running\n");
}

#[test]
fn a_machine_with_openrc_runs_what_is_added_to_it_after_a_restart_too() {
    const SERVICE: &str = "#!/sbin/openrc-run
supervisor=supervise-daemon
command=/bin/sleep
command_args=infinity
";
    let Some(image) = debian(Init::OpenRc) else {
        return;
    };
    let project = Project::new();
    project.incus(&["launch", "-q", image, "debian"]);
    assert_eq!(project.exec("debian", Init::OpenRc.up()), "default\n");
    let install = format!(
        "printf '{SERVICE}' >/etc/init.d/nap; chmod 755 /etc/init.d/nap; rc-update -q add nap default"
    );
    project.exec("debian", &install);
    project.incus(&["restart", "debian", "--timeout=60"]);
    assert_eq!(project.exec("debian", Init::OpenRc.up()), "default\n");
    let state = "rc-service -C nap status";
    assert_eq!(project.exec("debian", state), " * status: started\n");
}
