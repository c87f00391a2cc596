//! The page about services of one's own: an MCP server that others wrote, from its installation to a call.

use std::process::Command;

use crate::debian::{Init, debian};
use crate::world::World;

/// Packages of the tests' Python that are large and that the server does not need.
const NOT_NEEDED: [&str; 7] = [
    "pip",
    "ansible",
    "ansible_test",
    "setuptools",
    "fastmcp",
    "beartype",
    "pygments",
];

/// Installs the server in the provider, as `pip` does, which has no network there: the packages are the tests' own.
fn install(world: &World) {
    let packages = world.folder.path().join("packages.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&packages);
    tar.args(NOT_NEEDED.map(|package| format!("--exclude=./{package}")));
    tar.args([
        "-C",
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/target/python/lib/python3.11/site-packages"
        ),
        ".",
    ]);
    assert!(tar.status().unwrap().success());
    let machine = world.machine(0, "vault");
    let there = format!("{machine}/root/packages.tar");
    let pushed = world.incus(0, &["file", "push", packages.to_str().unwrap(), &there]);
    assert!(pushed.status.success(), "{pushed:?}");
    let install = "useradd -m app && python3 -m venv --without-pip /opt/git-server && cd /opt/git-server &&
        tar -C lib/python3.11/site-packages -xf /root/packages.tar && rm /root/packages.tar &&
        printf '#!/opt/git-server/bin/python3\\nfrom mcp_server_git import main\\nmain()\\n' >bin/mcp-server-git &&
        chmod 755 bin/mcp-server-git && mkdir /srv/app && chown app /srv/app && cd /srv/app && su app -c \"git init -q &&
        git -c user.name=A -c user.email=a@example.org commit -q --allow-empty -m First\"";
    assert_eq!(world.exec(0, "vault", install), (true, String::new()));
}

#[test]
#[ignore = "long"]
fn a_server_that_others_wrote_is_installed_pinned_and_called() {
    let page = include_str!("../../docs/own-services.md");
    let (_, part) = page.split_once("## An MCP server").unwrap();
    let block = |fence: &str, number: usize| {
        let block = part.split(fence).nth(number).unwrap();
        block.split_once("```").unwrap().0
    };
    let image = debian(Init::Systemd);
    let machines = block("```yaml\n", 1)
        .replace(
            "  vault:\n",
            &format!("  {{a}}-vault:\n    os_image: {image}\n"),
        )
        .replace("[work-dev]", "[{b}-work-dev]");
    let in_domain = |machines: &str| {
        let machines = machines.trim_end().replace('\n', "\n    ");
        format!(
            "\ndomains:\n  {{a}}:\n    subnet_id: 1\n    ephemeral: true\n    {machines}\n  {{b}}:\n    subnet_id: 2\n    \
             ephemeral: true\n    machines: {{{{b}}-work-dev: {{}}}}\n"
        )
    };
    let (without_service, _) = machines.split_once("    services:\n").unwrap();
    let mut world = World::new(&in_domain(without_service));
    world.apply();
    assert!(world.exec(0, "vault", Init::Systemd.up()).0);
    install(&world);
    world.declare(&in_domain(&machines));
    // The host's console, with the acceptance that it asks for.
    assert_eq!(
        block("```console\n", 2),
        "$ anklume mcp pin\n$ anklume apply\n"
    );
    let pinned = world.run(&["mcp", "pin", "--yes"]);
    assert_eq!(pinned.status, 0, "{}", pinned.stderr);
    world.lock = Some(pinned.read("anklume.lock"));
    world.apply();
    let console = block("```console\n", 3).trim_end();
    let call = console.strip_prefix("work-dev$ ").unwrap();
    let call = call.replace("-i vault", &format!("-i {}", world.machine(0, "vault")));
    let (done, said) = world.exec(1, "work-dev", &format!("{call} 2>&1"));
    assert!(done && said.contains("First"), "{said}");
    // Nothing else of the server, and no other repository.
    let other = format!("{call} repo_path=/srv 2>&1");
    assert!(!world.exec(1, "work-dev", &other).0);
    world.is_settled();
}
