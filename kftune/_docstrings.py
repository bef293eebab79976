"""What docstrings say of single names, for those who read kftune's own descriptions elsewhere than in its code."""

from __future__ import annotations

import inspect
import re
import textwrap

__all__ = ["documented", "plain", "summary"]


def documented(described: object, section: str) -> dict[str, str]:
    """Name → meaning, from a section of a docstring.

    Args:
        described: what has the docstring.
        section: its heading: ``"Args"`` or ``"Attributes"``.
    """
    match = re.search(rf"^{section}:\n((?:[ ]+.*\n|\n)*)", f"{inspect.getdoc(described) or ''}\n", re.MULTILINE)
    if match is None:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(match[1]).splitlines():
        begins = re.match(r"(\w+)(?: \(.*?\) ?)?: (.*)", line)
        if begins:
            name = begins[1]
            found[name] = begins[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def summary(described: object) -> str:
    """A docstring up to its first section, its lines joined into paragraphs."""
    text = re.split(r"^(?:Args|Attributes|Raises):\n", inspect.getdoc(described) or "", maxsplit=1, flags=re.MULTILINE)
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text[0].strip().split("\n\n"))


def plain(text: str) -> str:
    """Without the marks of roles and literals."""
    return re.sub(r":\w+:`([^`]*)`", r"\1", text).replace("``", "")
