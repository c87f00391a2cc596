//! Tests the layout by example; `tests/integration/sync/yaml.rs` tests how YAML readers parse it.

use serde_json::json;

use super::*;

fn written(value: &Value) -> String {
    to_yaml(value.as_object().unwrap()).unwrap()
}

#[test]
fn the_layout_is_the_one_that_users_have() {
    let value = json!({
        "project_name": "demo",
        "base_subnet": "10.100",
        "description": "",
        "ephemeral": false,
        "network": { "subnet": "10.100.0.0/24", "id": 0 },
        "services": [
            { "name": "file_sign", "consumers": ["work-dev", "pro-dev"] },
            { "name": "clipboard", "consumers": [] },
        ],
        "hosts": null,
        "nested": [[1, [2]], {}, null],
    });
    let expected = "\
project_name: demo
base_subnet: \"10.100\"
description: \"\"
ephemeral: false
network:
  subnet: 10.100.0.0/24
  id: 0
services:
  - name: file_sign
    consumers:
      - work-dev
      - pro-dev
  - name: clipboard
    consumers: []
hosts: null
nested:
  - - 1
    - - 2
  - {}
  - null
";
    assert_eq!(written(&value), expected);
    assert_eq!(written(&json!({})), "{}\n");
}

#[test]
fn a_marker_in_a_value_never_begins_a_line() {
    let value = json!({ "a": "x\n# === END MANAGED ===\ny" });
    assert_eq!(written(&value), "a: \"x\\n# === END MANAGED ===\\ny\"\n");
}

#[test]
fn numbers_are_numbers_for_every_reader() {
    let value = json!({ "a": 1e300, "b": 1.5e-7, "c": 0.1, "d": -0.0, "e": 1e16, "f": u64::MAX });
    let expected = "a: 1.0e+300\nb: 1.5e-7\nc: 0.1\nd: -0.0\ne: 1.0e+16\nf: 18446744073709551615\n";
    assert_eq!(written(&value), expected);
}
