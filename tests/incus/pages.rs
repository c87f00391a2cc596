//! The pages about files and the clipboard: each command of their console blocks runs in the machine that its prompt names.

use crate::world::World;

const PAIR: &str = r"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-vault:
        services:
          - {name: inbox, tool: file_accept, consumers: [{b}-work-dev]}
          - {name: outbox, tool: file_provide, consumers: [{b}-work-dev]}
          - {name: paste, tool: clipboard_get, consumers: [{b}-work-dev], offered_only: true}
          - {name: copy, tool: clipboard_set, consumers: [{b}-work-dev]}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-work-dev: {}
";

/// A command of a console block, and what is shown after it.
struct Step {
    is_in_provider: bool,
    command: String,
    shown: String,
}

/// The commands of a page, with the names of these machines instead of its own.
fn steps(page: &str, vault: &str, work: &str) -> Vec<Step> {
    let text = std::fs::read_to_string(format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR")));
    let text = text.unwrap();
    let mut steps: Vec<Step> = Vec::new();
    for block in text.split("```console\n").skip(1) {
        for line in block.split("```").next().unwrap().lines() {
            let (prompt, command) = line.split_once("$ ").unwrap_or(("output", line));
            match prompt {
                "" | "vault" | "work-dev" => steps.push(Step {
                    is_in_provider: prompt == "vault",
                    command: named(command, vault, work),
                    shown: String::new(),
                }),
                _ => {
                    let shown = &mut steps.last_mut().unwrap().shown;
                    shown.push_str(&named(line, vault, work));
                    shown.push('\n');
                }
            }
        }
    }
    steps
}

fn named(line: &str, vault: &str, work: &str) -> String {
    line.replace("-i vault", &format!("-i {vault}"))
        .replace("work-dev", work)
}

#[test]
fn the_consoles_of_the_pages_work_between_two_machines() {
    let world = World::new(PAIR);
    world.apply();
    let (vault, work) = (world.machine(0, "vault"), world.machine(1, "work-dev"));
    let prepared =
        "mkdir -p photos inbox && echo report > report.pdf && echo photo > photos/one.jpg";
    assert!(world.exec(1, "work-dev", prepared).0);
    let out = "/srv/anklume/portal/outgoing";
    let handed_out = format!(
        "mkdir -p {out}/all {out}/{work}/reports/old && printf %s %PDF-1.7 > {out}/all/july.pdf
        echo may > {out}/{work}/reports/may.pdf && echo april > {out}/{work}/reports/old/april.pdf"
    );
    assert!(world.exec(0, "vault", &handed_out).0);
    for (page, count) in [("files.md", 5), ("clipboard.md", 3)] {
        let steps = steps(page, &vault, &work);
        assert!(steps.len() >= count, "{page} has {} steps", steps.len());
        for Step {
            is_in_provider,
            command,
            shown,
        } in steps
        {
            let (domain, name) = if is_in_provider {
                (0, "vault")
            } else {
                (1, "work-dev")
            };
            let (done, said) = world.exec(domain, name, &format!("{{ {command}; }} 2>&1"));
            let said = said.trim_end();
            assert_eq!((done, said), (true, shown.trim_end()), "{page}: {command}");
        }
    }
    // What was set last is there.
    let last = world.exec(0, "vault", "anklume mcp call clipboard_get");
    assert_eq!(last, (true, "salut".to_owned()));
}
