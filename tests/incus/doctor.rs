//! `anklume doctor` on a real Incus: each fault is caused for real, reported, fixed by `apply`, and then gone.

mod inside;
mod logs;
mod machines;
mod said;
mod way;

use serde_json::Value;

use crate::processes::proxy;
use crate::world::World;

/// A provider with two services, and their consumer in another domain.
const PAIR: &str = r#"
domains:
  {a}:
    subnet_id: 1
    ephemeral: true
    machines:
      {a}-signer:
        ip: "{base}.1.10"
        services:
          - {name: sign, tool: gpg_sign, consumers: [{b}-dev]}
          - {name: push, tool: file_accept, consumers: [{b}-dev]}
  {b}:
    subnet_id: 2
    ephemeral: true
    machines:
      {b}-dev: {ip: "{base}.2.10", mcp: {uid: 1000, gid: 1000}}
"#;

/// A channel between two machines.
pub(crate) struct Patient {
    pub(crate) world: World,
    /// The name of its devices.
    pub(crate) device: String,
}

impl Patient {
    /// Creates a working channel.
    pub(crate) fn new() -> Self {
        Self::well(World::new(PAIR))
    }

    /// Like `new`, but with another file; `up` waits until the machines, which serve nothing yet, are ready.
    pub(crate) fn of(text: &str, up: impl FnOnce(&World)) -> Self {
        let lines = text.lines();
        let alone: Vec<&str> = lines
            .filter(|line| !line.contains("services:") && !line.contains("tool:"))
            .collect();
        let mut world = World::new(&alone.join("\n"));
        world.apply();
        up(&world);
        world.declare(text);
        Self::well(world)
    }

    /// Creates the channel of this world, and asserts that it works.
    fn well(world: World) -> Self {
        world.apply();
        let devices = world.edge_devices(0, &world.machine(0, "signer"));
        assert_eq!(devices.len(), 1, "{devices:?}");
        let patient = Self {
            world,
            device: devices.concat(),
        };
        patient.is_well();
        patient
    }

    fn signer(&self) -> String {
        self.world.machine(0, "signer")
    }

    fn dev(&self) -> String {
        self.world.machine(1, "dev")
    }

    /// Runs `anklume doctor --format json`.
    #[track_caller]
    pub(crate) fn examined(&self) -> (i32, Value) {
        let ran = self.world.run(&["doctor", "--format", "json"]);
        let answer = serde_json::from_str(&ran.stdout);
        assert!(answer.is_ok(), "{ran:?}");
        (ran.status, answer.unwrap())
    }

    /// Asserts that the channel works and that the doctor says so.
    #[track_caller]
    pub(crate) fn is_well(&self) {
        let (status, answer) = self.examined();
        assert_eq!(status, 0, "{answer:#}");
        assert_eq!(answer["ok"], true);
        let edge = &answer["edges"][0];
        assert_eq!(edge["consumer"], self.dev());
        assert_eq!(edge["provider"], self.signer());
        assert!(edge["milliseconds"].as_f64().unwrap() > 0.0, "{answer:#}");
        assert_eq!(edge["broken"], Value::Null);
    }

    /// Asserts that the doctor reports this fault first, and returns its suggested fix.
    #[track_caller]
    pub(crate) fn ails(&self, what: &str, detail: &str) -> String {
        let (status, answer) = self.examined();
        assert_eq!(status, 1, "{answer:#}");
        let edge = &answer["edges"][0];
        assert_eq!(edge["ok"], false);
        assert_eq!(edge["milliseconds"], Value::Null);
        let broken = &edge["broken"];
        assert_eq!(broken["what"], what, "{answer:#}");
        let detail = detail
            .replace("{dev}", &self.dev())
            .replace("{signer}", &self.signer())
            .replace("{device}", &self.device);
        let said = broken["detail"].as_str().unwrap();
        assert!(said.contains(&detail), "{said} | {detail}");
        broken["fix"].as_str().unwrap().to_owned()
    }

    /// Asserts that `apply` fixes the fault, and then has nothing left to do.
    #[track_caller]
    pub(crate) fn is_mended(&self) {
        self.world.apply();
        self.is_well();
        self.world.is_settled();
    }

    /// The whole cycle: asserts that the doctor reports this fault, and that `apply` fixes it.
    #[track_caller]
    pub(crate) fn recovers(&self, what: &str, detail: &str) {
        assert_eq!(self.ails(what, detail), "anklume apply");
        self.is_mended();
    }

    /// Runs `incus …` on one of the domains; it must succeed.
    #[track_caller]
    pub(crate) fn incus(&self, domain: usize, args: &[&str]) {
        let output = self.world.incus(domain, args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }

    /// Runs a command in a machine; it must succeed.
    #[track_caller]
    pub(crate) fn exec(&self, domain: usize, name: &str, command: &str) {
        let (done, said) = self.world.exec(domain, name, command);
        assert!(done, "{command}: {said}");
    }

    /// The socket on the host.
    pub(crate) fn host_socket(&self) -> String {
        let hash = self.device.strip_prefix("mcp_").unwrap();
        format!("/var/lib/anklume/mcp/{hash}.sock")
    }

    /// The process on the host that carries the bytes at the provider's or the consumer's end.
    pub(crate) fn proxy(&self, provider: bool) -> i32 {
        proxy(provider, &self.host_socket())
    }

    /// The process ID of the provider's server, as the host sees it.
    pub(crate) fn server(&self) -> i32 {
        self.world.server()
    }
}
