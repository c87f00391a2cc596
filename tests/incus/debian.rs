//! Machines with a complete Debian system, for the long tests: with systemd or OpenRC.

use crate::project::{Project, incus};

/// The init system that starts and supervises the services of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    /// systemd.
    Systemd,
    /// OpenRC.
    OpenRc,
}

impl Init {
    /// The alias of the image, which is also the name of its file.
    fn image(self) -> &'static str {
        match self {
            Self::Systemd => "debian-systemd",
            Self::OpenRc => "debian-openrc",
        }
    }

    /// A shell command that waits until the machine is up, and prints the state that its init system reports.
    ///
    /// This is `running` for systemd if no unit has failed, and `default` for OpenRC.
    pub(crate) fn up(self) -> &'static str {
        match self {
            Self::Systemd => {
                r#"until state=$(systemctl is-system-running --wait 2>/dev/null) || [ "$state" = degraded ]
                do sleep 0.1; done; echo "$state""#
            }
            Self::OpenRc => "until [ -e /run/up ]; do sleep 0.1; done; rc-status -r",
        }
    }

    /// A command that restarts a service.
    pub(crate) fn restart(self, service: &str) -> String {
        self.tell(service, "restart")
    }

    /// A command that stops a service.
    pub(crate) fn stop(self, service: &str) -> String {
        self.tell(service, "stop")
    }

    fn tell(self, service: &str, verb: &str) -> String {
        match self {
            Self::Systemd => format!("systemctl {verb} {service}"),
            Self::OpenRc => format!("rc-service {service} {verb}"),
        }
    }
}

/// Imports a Debian image into Incus and returns its alias; tests/incus/debian-image.sh makes the file beforehand.
#[track_caller]
pub(crate) fn debian(init: Init) -> &'static str {
    let alias = init.image();
    let file = format!("{}/target/incus/{alias}.tar", env!("CARGO_MANIFEST_DIR"));
    let imported = incus(["image", "import", &file, "--alias", alias]);
    assert!(imported.status.success(), "{imported:?}");
    alias
}

#[test]
#[ignore = "long"]
fn a_machine_with_systemd_comes_up_whole_and_stops_when_asked() {
    let image = debian(Init::Systemd);
    let project = Project::new();
    project.incus(&["launch", "-q", image, "debian"]);
    assert_eq!(project.exec("debian", Init::Systemd.up()), "running\n");
    project.incus(&["restart", "debian", "--timeout=60"]);
    assert_eq!(project.exec("debian", Init::Systemd.up()), "running\n");
}

#[test]
#[ignore = "long"]
fn a_machine_with_openrc_runs_what_is_added_to_it_after_a_restart_too() {
    const SERVICE: &str = "#!/sbin/openrc-run
supervisor=supervise-daemon
command=/bin/sleep
command_args=infinity
";
    let image = debian(Init::OpenRc);
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
