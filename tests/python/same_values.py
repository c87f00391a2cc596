"""Reads a tree written by anklume, in the same way as Ansible does, and compares it with the declaration.

Arguments: folder, file with the output of `ansible-inventory --list`. Input: {"MACHINE": {"VARIABLE": VALUE}} as JSON.
"""

import json
import sys
from pathlib import Path

import yaml

from read_back import same

base, listed = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
for machine, variables in json.load(sys.stdin).items():
    own = yaml.safe_load((base / "host_vars" / f"{machine}.yml").read_text())
    seen = listed["_meta"]["hostvars"][machine]
    for name, value in variables.items():
        for reader, values in (("PyYAML", own), ("Ansible", seen)):
            if not same(values.get(name), value):
                print(f"{reader} reads {values.get(name)!a} for {name} of {machine}, not {value!a}")
