"""Draws what a terminal showed as SVG: python3 packaging/picture.py TITLE < TEXT > FILE.svg

Reads text with the colours that the programs use (SGR 0, 1, 30 to 37, 90 to 97).
"""

import html
import re
import sys

COLORS = ["#666666", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d7dae0"]
PLAIN, BACK, BAR = "#d7dae0", "#1e2127", "#2c313a"
WIDTH, HEIGHT, MARGIN, TOP = 8.4, 19, 16, 34


def spans(line):
    """Yields the pieces of a line, each with its colour and whether it is bold."""
    color, bold = PLAIN, False
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        if not piece.startswith("\x1b["):
            if piece:
                yield piece, color, bold
            continue
        for code in (int(code or 0) for code in piece[2:-1].split(";")):
            if code == 0:
                color, bold = PLAIN, False
            elif code == 1:
                bold = True
            elif code == 39:
                color = PLAIN
            elif code in (*range(30, 38), *range(90, 98)):
                color = COLORS[code % 10]


def main():
    title = sys.argv[1]
    lines = sys.stdin.read().rstrip("\n").split("\n")
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    width = round(max(map(len, plain)) * WIDTH + 2 * MARGIN)
    height = len(lines) * HEIGHT + TOP + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACK}"/>',
        f'<path d="M0 8a8 8 0 0 1 8-8h{width - 16}a8 8 0 0 1 8 8v16H0z" fill="{BAR}"/>',
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        column = 0
        for piece, color, bold in spans(line):
            weight = ' font-weight="bold"' if bold else ""
            x, y = MARGIN + column * WIDTH, TOP + 6 + number * HEIGHT
            length = f' textLength="{len(piece) * WIDTH:.1f}"'
            out.append(f'<text x="{x:.1f}" y="{y}" fill="{color}"{weight}{length}>{html.escape(piece)}</text>')
            column += len(piece)
    print("\n".join([*out, "</g>", "</svg>"]))


main()
