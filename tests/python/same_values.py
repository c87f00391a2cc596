"""Compares what PyYAML and Ansible read in the files of a tree with the declaration.

Argument: folder. Input: two lines of JSON, each {"MACHINE": {"VARIABLE": VALUE}}: the declaration, and the values that
Ansible's tasks see.
"""

import json
import sys
from pathlib import Path

import yaml

from read_back import same

base = Path(sys.argv[1])
declared, seen = map(json.loads, sys.stdin)
for machine, variables in declared.items():
    own = yaml.safe_load((base / "host_vars" / f"{machine}.yml").read_text())
    for name, value in variables.items():
        if not same(own.get(name), value):
            print(f"PyYAML reads {own.get(name)!a} for {name} of {machine}, not {value!a}")
        if not same(seen[machine].get(name), value, text=lambda _: str):
            print(f"Ansible reads {seen[machine].get(name)!a} for {name} of {machine}, not {value!a}")
