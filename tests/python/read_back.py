"""Uses PyYAML to read what anklume wrote, and compares the result with the original values.

Input: one JSON object per line, {"value": V, "text": T}. Output: the shortest fault.
"""

import json
import sys

import yaml


def same(left, right):
    """Compares values, and distinguishes true from 1 and 1 from 1.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


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
