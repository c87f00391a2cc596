"""The peer: PyYAML's C code reads a declaration and, if a folder is given, writes a file for each machine there."""

import pathlib
import sys

import yaml

with open(sys.argv[1], "rb") as file:
    infra = yaml.load(file, Loader=yaml.CSafeLoader)
if len(sys.argv) > 2:
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir()
    for domain in infra["domains"].values():
        for name, machine in domain["machines"].items():
            text = yaml.dump(machine, Dumper=yaml.CSafeDumper, sort_keys=False)
            (folder / f"{name}.yml").write_text(text, encoding="utf-8")
