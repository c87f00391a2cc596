"""Reads the files of anklume with PyYAML, and writes the same values with PyYAML.

Input: one JSON object per line, {"value": V, "text": T}. Output: the shortest fault.
"""

import json
import re
import sys

import yaml


class Dumper(yaml.SafeDumper):
    """The style of users' existing files: indented lists, and nothing for a null."""

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data):
        return True


Dumper.add_representer(
    type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "")
)

# anklume quotes values that the core schema of YAML 1.2 reads as a number, or other readers of YAML 1.1 as a boolean,
# although PyYAML reads them as text.
STRICTER = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?0o[0-7]+|0x[0-9a-fA-F]+|[yYnN]"
)


def same(left, right):
    """Equality that distinguishes true from 1 and 1 from 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def may_differ(value):
    """Returns whether anklume quotes a text of this value more strictly than PyYAML."""
    if isinstance(value, dict):
        return any(may_differ(k) or may_differ(v) for k, v in value.items())
    if isinstance(value, list):
        return any(map(may_differ, value))
    if isinstance(value, str):
        return bool(re.search("[\x85\u2028\u2029]", value) or STRICTER.fullmatch(value))
    return False


def main():
    faults = []
    for line in sys.stdin:
        case = json.loads(line)
        value, text = case["value"], case["text"]
        try:
            read = yaml.safe_load(text)
        except yaml.YAMLError as fault:
            read = fault
        if not same(read, value):
            faults.append(f"read {read!a} for {value!a} in {text!a}")
        written = yaml.dump(
            value, Dumper=Dumper, default_flow_style=False, sort_keys=False, allow_unicode=True
        )
        if written != text and not may_differ(value):
            faults.append(f"written\n{written!a}\nnot\n{text!a}\nfor {value!a}")

    # The shortest fault is the easiest to understand.
    print(*sorted(faults, key=len)[:1], sep="\n", end="")


if __name__ == "__main__":
    main()
