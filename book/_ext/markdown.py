"""Pieces of plain Markdown, as Colab and GitHub show it."""

import re
from collections.abc import Iterable
from textwrap import indent

# Environments that stand alone in LaTeX, and what they are called inside a display.
DISPLAYS = {"align": "aligned", "equation": "aligned", "gather": "gathered", "multline": "gathered"}


def joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def quoted(text: str) -> str:
    return indent(text, "> ", lambda line: True).replace("> \n", ">\n")


def details(summary: str, text: str) -> str:
    summary = re.sub(r"`([^`]+)`", r"<code>\1</code>", summary)  # Markdown is not read there
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def fenced(language: str, text: str) -> str:
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    return f"{'`' * (longest + 1)}{language}\n{text.rstrip()}\n{'`' * (longest + 1)}"


def display(formula: str, number: str = "", wrap: bool = True) -> str:
    """A formula on its own line; several lines are set as Sphinx sets them."""
    formula = formula.strip()
    if wrap and r"\\" in formula:
        formula = f"\\begin{{aligned}}\n{formula}\n\\end{{aligned}}"
    tag = f" \\tag{{{number}}}" if number else ""
    return f"$$\n{formula}{tag}\n$$"


def environment(match: re.Match) -> str:
    if match[2] not in DISPLAYS:
        return match[0]
    return f"\\{match[1]}{{{DISPLAYS[match[2]]}}}"


def table(rows: list[list[str]], styles: list[str]) -> str:
    """A table in GitHub's Markdown; the first row is its head."""
    rules = {"text-align:left": ":--", "text-align:center": ":-:", "text-align:right": "--:"}
    cells = [[" ".join(cell.split("\n")).replace("|", "\\|") for cell in row] for row in rows]
    cells.insert(1, [rules.get(style, "---") for style in styles])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def linked(text: str, address: str | None) -> str:
    return f"[{text}]({address})" if address else text


def titled(text: str) -> tuple[str, str]:
    """`title <target>` as its two parts; the title is empty if there is none."""
    match = re.fullmatch(r"(.+?)\s*<([^<>]+)>", text, re.DOTALL)
    return (match[1], match[2]) if match else ("", text)
