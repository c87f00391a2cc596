"""Uses PyYAML to read what anklume wrote, and compares the result with the original values.

Input: one JSON object per line, {"value": V, "text": T}. Output: the shortest fault.
"""

import json
import sys

import yaml


class Unsafe(str):
    """Text that Ansible does not evaluate."""


yaml.SafeLoader.add_constructor("!unsafe", lambda loader, node: Unsafe(loader.construct_scalar(node)))


def same(read, value, text=lambda value: Unsafe if any(map(value.__contains__, ("{{", "{%", "{#"))) else str):
    """Compares values, and distinguishes true from 1 and 1 from 1.0; text must have the type that `text` returns."""
    if type(read) is not (text(value) if isinstance(value, str) else type(value)):
        return False
    if isinstance(value, dict):
        return list(read) == list(value) and all(same(read[k], value[k], text) for k in value)
    if isinstance(value, list):
        return len(read) == len(value) and all(same(*pair, text) for pair in zip(read, value))
    return read == value


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

    # The shortest fault is the easiest to understand.
    print(*sorted(faults, key=len)[:1], sep="\n", end="")


if __name__ == "__main__":
    main()
