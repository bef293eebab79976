"""The Markdown pages of the repository and their code blocks, as a reader would take them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "docs" / "tutorial.md"
_MADE = ("_build", "_generated", "gallery")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"# (\w+\.(?:py|yaml))\n")


class Block(NamedTuple):
    """A block of code; ``file`` is what its first line calls it, if that is a comment with a file's name."""

    language: str
    text: str
    file: str | None


def pages() -> list[Path]:
    """README, CONTRIBUTING and every page of the documentation that is written by hand."""
    docs = (path for path in (ROOT / "docs").rglob("*.md") if not set(path.parts) & set(_MADE))
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(docs)]


def page_id(path: Path) -> str:
    """How a test calls a page."""
    return str(path.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of these languages, in order."""
    found = [(match[1], match[2]) for match in _BLOCK.finditer(page.read_text())]
    return [
        Block(language, text, named[1] if (named := _NAMED.match(text)) else None)
        for language, text in found
        if language in languages
    ]


def write_files(page: Path, directory: Path) -> None:
    """Write the page's named blocks as the files that they are."""
    for block in blocks(page, "py", "python", "yaml"):
        if block.file is not None:
            (directory / block.file).write_text(block.text)
