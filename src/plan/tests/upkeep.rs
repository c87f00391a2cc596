//! Tests the rotation of channel logs: by a run if they are big, and by the host's scheduler between runs.

use super::*;
use crate::plan::{BigLog, HostFile, Rotation, Schedule};

fn wanting(exists: bool) -> Facts {
    let file = HostFile {
        path: "/etc/cron.d/anklume".to_owned(),
        content: String::new(),
    };
    Facts {
        rotation: Rotation::Wanting(Schedule {
            by: "cron",
            files: vec![file],
            exists,
        }),
        ..facts()
    }
}

fn of(facts: &Facts) -> Vec<String> {
    lines(&planned(INFRA, &applied(INFRA), facts, &[]).unwrap())
}

#[test]
fn a_big_log_is_rotated_and_the_scheduler_is_set_up() {
    assert_eq!(
        of(&wanting(false)),
        ["+ rotation of the channels' logs, by cron"]
    );
    assert_eq!(
        of(&wanting(true)),
        ["~ rotation of the channels' logs, by cron"]
    );
    let big = Facts {
        logs: vec![BigLog {
            path: "/var/log/incus/work_dev/proxy.mcp_1.log".to_owned(),
            bytes: 13 * 1024 * 1024 + 1,
        }],
        ..facts()
    };
    assert_eq!(
        of(&big),
        ["~ log /var/log/incus/work_dev/proxy.mcp_1.log on the host: 13 MiB → rotated"]
    );
}

#[test]
fn without_channels_nothing_is_scheduled_and_where_nothing_can_be_that_is_said() {
    let alone = INFRA.replace("consumers: [dev]", "consumers: []");
    let plan = planned(&alone, &applied(&alone), &wanting(false), &[]).unwrap();
    assert_eq!(lines(&plan), Vec::<String>::new());
    let nobody = Facts {
        rotation: Rotation::Nobody("no cron".to_owned()),
        ..facts()
    };
    let plan = planned(INFRA, &applied(INFRA), &nobody, &[]).unwrap();
    assert_eq!(
        plan.notes,
        ["nothing rotates the logs of channels between runs of `anklume apply`: no cron"]
    );
    let plan = planned(&alone, &applied(&alone), &nobody, &[]).unwrap();
    assert_eq!(plan.notes, [""; 0]);
}
