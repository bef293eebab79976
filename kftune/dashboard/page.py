"""One self-contained HTML file: works offline, asks no host for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from kftune.analysis.results import FileResults, load_results
from kftune.dashboard.figures._style import DARK, OptimizerStyle, optimizer_styles
from kftune.dashboard.header import Header, make_header
from kftune.dashboard.panels import Panel, outcomes_panel, problem_panels
from kftune.errors import UsageError
from kftune.storage.repository import Repository

__all__ = ["render_page", "write_page"]


@dataclass(frozen=True)
class _Problem:
    name: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class _File:
    name: str
    header: Header
    optimizers: Sequence[str]
    problems: Sequence[_Problem]
    outcomes: Panel
    study_file: str


def write_page(repository: Repository, *, file_names: Sequence[str] | None = None, out: Path) -> Path:
    """Write the page about some study files.

    Args:
        repository: an open database.
        file_names: names of study files, in the order wanted; None for all.
        out: the HTML file; replaced at once, never half written. Its directory is made if need be.

    Returns:
        ``out``.

    Raises:
        UnknownNameError: a name of which nothing is stored.
        UsageError: ``out`` cannot be written.
    """
    # Pages are passed on: a file's directory is nobody else's business.
    database = repository.path.name if repository.path is not None else repository.name
    text = render_page(load_results(repository, file_names), database=database)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if unfinished.exists():
            unfinished.unlink()
    return out


def render_page(files: Sequence[FileResults], *, database: str) -> str:
    """The page as text.

    Args:
        files: from :func:`kftune.analysis.results.load_results`, with curves.
        database: where they come from, for the foot of the page.
    """
    styles = optimizer_styles(name for file in files for name in file.optimizers)
    plotly, script = Markup(get_plotlyjs()), _own("page.js")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_own),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["figure_json"] = _figure_json
    return environment.get_template("page.html.j2").render(
        title=", ".join(file.name for file in files) or "no studies",
        files=[_file(file, styles) for file in files],
        styles=styles,
        dark_styles={name: DARK[style.colour] for name, style in styles.items()},
        database=database,
        css=_own("page.css"),
        plotly=plotly,
        script=script,
        # Only these two scripts may run, whatever a name or a message in the database holds.
        script_hashes=[_hash(plotly), _hash(script)],
        palette=_json(DARK),
    )


def _file(file: FileResults, styles: Mapping[str, OptimizerStyle]) -> _File:
    return _File(
        name=file.name,
        header=make_header(file),
        optimizers=file.optimizers,
        problems=[_Problem(problem, problem_panels(file, problem, styles)) for problem in file.problems],
        outcomes=outcomes_panel(file),
        study_file=yaml.safe_dump(dict(file.config), sort_keys=False, allow_unicode=True, width=100),
    )


def _own(name: str) -> Markup:
    """A file of the page's own; it may hold HTML."""
    return Markup(resources.files("kftune.dashboard").joinpath("templates", name).read_text(encoding="utf-8"))


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _figure_json(figure: go.Figure) -> Markup:
    return _json(json.loads(figure.to_json(engine="json")))


def _json(value: Any) -> Markup:
    """JSON that can stand in a script element: nothing in it can end the element."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
