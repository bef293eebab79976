"""One self-contained HTML file: works offline, asks no host for anything."""

from __future__ import annotations

import base64
import gc
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from markupsafe import Markup

from kftune.analysis.stored.results import FileResults, load_results
from kftune.dashboard.encoding import figure_json, json_markup
from kftune.dashboard.figures.style import DARK, OptimizerStyle, optimizer_styles
from kftune.dashboard.header import make_header
from kftune.dashboard.panels import PanelEntry, Subject, panels_of
from kftune.dashboard.parts import Panel
from kftune.dashboard.trials import trial_tables
from kftune.errors import UsageError
from kftune.storage.repository import Repository

__all__ = [
    "Sources",
    "check_names",
    "policy",
    "read_sources",
    "render_live_page",
    "render_main",
    "render_page",
    "render_panels",
    "without_collecting",
    "write_page",
    "write_whole",
]

Sources: TypeAlias = Mapping[str, Sequence[str] | None]
"""Database URL → names of study files in it, in the order wanted; None for all of them."""

_ALL = "all problems"


@dataclass(frozen=True)
class _Problem:
    id: str
    name: str
    panels: Sequence[Markup]


@dataclass(frozen=True)
class _File:
    id: str
    head: Markup
    optimizers: Sequence[str]
    problems: Sequence[_Problem]
    panels: Sequence[Markup]


def write_page(sources: Sources, *, out: Path) -> list[str]:
    """Write the page about some study files.

    Args:
        sources: database URL → names of study files in it, in the order wanted; None for all of them.
        out: the HTML file; replaced at once, never half written. Its directory is made if need be.

    Returns:
        Names of the study files.

    Raises:
        UnknownNameError: a name of which nothing is stored.
        UsageError: ``out`` cannot be written, or two databases hold a study file of one name.
        StorageError: a database cannot be read.
    """
    with without_collecting():
        files, database = read_sources(sources)
        text = render_page(files, database=database)
    write_whole(out, text.encode("utf-8"))
    return [file.name for file in files]


def read_sources(sources: Sources) -> tuple[list[FileResults], str]:
    """Everything about some study files, and what a page calls their databases.

    Raises:
        UnknownNameError: a name of which nothing is stored.
        UsageError: two databases hold a study file of one name, so that a page could not tell them apart.
        StorageError: a database cannot be read.
    """
    files: list[FileResults] = []
    labels = []
    for url, names in sources.items():
        with Repository.open(url, read_only=True) as repository:
            labels.append(_label(repository))
            files += load_results(repository, names)
    check_names(file.name for file in files)
    return files, ", ".join(labels)


def check_names(names: Iterable[str]) -> None:
    """Refuse study files that no page can show together.

    Raises:
        UsageError: two databases hold a study file of one name, so that a page could not tell them apart.
    """
    for name, n in Counter(names).items():
        if n > 1:
            raise UsageError(f"several of these databases hold a study file named {name!r}: show them apart")


def write_whole(out: Path, content: bytes) -> None:
    """Write a file at once or not at all; its directory is made if need be.

    Raises:
        UsageError: it cannot be written.
    """
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.replace(out)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if unfinished.exists():
            unfinished.unlink()


def _label(repository: Repository) -> str:
    """Pages are passed on: a file's directory is nobody else's business."""
    return repository.path.name if repository.path is not None else repository.name


def render_page(files: Sequence[FileResults], *, database: str) -> str:
    """The page as text.

    Args:
        files: from :func:`kftune.analysis.stored.results.load_results`, with curves.
        database: where they come from, for the foot of the page.
    """
    return _whole(files, render_main(files, database=database), connect=False)


def render_live_page(files: Sequence[FileResults], main: Markup) -> str:
    """The same page for a server: it asks that server, and nobody else, for news.

    Args:
        files: see :func:`render_page`.
        main: from :func:`render_main`, with a revision.
    """
    return _whole(files, main, connect=True)


def render_main(files: Sequence[FileResults], *, database: str, revision: str = "") -> Markup:
    """All of the page that depends on the database: its ``main`` element.

    Args:
        files: see :func:`render_page`.
        database: see :func:`render_page`.
        revision: state of the database that this shows; empty for a page that does not change.
    """
    render = _Renderer(files)
    shown = [render.file(i, file) for i, file in enumerate(files)]
    structure = "\0".join(
        [*(file.name for file in files), *render.ids, *(f"{name}{style}" for name, style in render.styles.items())]
    )
    return render(
        "main.html.j2",
        files=shown,
        database=database,
        live=revision,
        structure=_hash(structure),
        trials=trial_tables(files),
    )


def render_panels(
    files: Sequence[FileResults], panels: Sequence[tuple[str, Sequence[Panel]]], *, title: str, database: str
) -> str:
    """A page of some panels only, under their problem's names."""
    render = _Renderer(files)
    problems = [
        _Problem(f"p{i}", name, [render.panel(f"p{i}", panel) for panel in of_problem])
        for i, (name, of_problem) in enumerate(panels)
    ]
    head = Markup("<h1>{}</h1>").format(title)
    optimizers = list(dict.fromkeys(name for file in files for name in file.optimizers))
    shown = _File("f", head, optimizers, problems, ())
    trials = trial_tables(files)
    main = render("main.html.j2", files=[shown], database=database, live="", structure="", trials=trials)
    return _whole(files, main, connect=False)


def _whole(files: Sequence[FileResults], main: Markup, *, connect: bool) -> str:
    render = _Renderer(files)
    plotly, script = _plotly(), _own("page.js")
    return render(
        "page.html.j2",
        title=", ".join(file.name for file in files) or "no studies",
        dark_styles={name: DARK[style.colour] for name, style in render.styles.items()},
        css=_own("page.css"),
        main=main,
        plotly=plotly,
        script=script,
        policy=policy(connect=connect),
        palette=json_markup(DARK),
    )


@cache
def policy(*, connect: bool) -> str:
    """The page's Content-Security-Policy: its two scripts may run, whatever a name in the database holds.

    Args:
        connect: whether the page may ask its own server for news.
    """
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in (_plotly(), _own("page.js")))
    news = "; connect-src 'self'" if connect else ""
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:{news}"


@dataclass
class _Renderer:
    """Templates with what all of them need."""

    files: Sequence[FileResults]
    ids: list[str] = field(default_factory=list)
    """Of the sections made so far."""

    def __post_init__(self) -> None:
        self.styles: Mapping[str, OptimizerStyle] = optimizer_styles(
            name for file in self.files for name in file.optimizers
        )

    def __call__(self, template: str, **values: Any) -> Markup:
        return Markup(_environment().get_template(template).render(styles=self.styles, **values))

    def file(self, number: int, file: FileResults) -> _File:
        file_id = f"f{number}"
        contents: list[tuple[str, list[tuple[str, str]]]] = []

        def of(section: str, name: str, entries: Sequence[PanelEntry], problem: str) -> list[Markup]:
            subject = Subject(file, problem, self.styles)
            made = [entry.make(subject) for entry in entries]
            contents.append((name, [(f"{section}-{panel.key}", panel.title) for panel in made]))
            return [self.panel(section, panel) for panel in made]

        problems = [
            _Problem(f"{file_id}p{i}", problem, of(f"{file_id}p{i}", problem, panels_of("problem"), problem))
            for i, problem in enumerate(file.problems)
        ]
        panels = of(f"{file_id}-all", _ALL, panels_of("file"), file.problems[0])
        body = self("head.html.j2", file=file, header=make_header(file), contents=contents)
        return _File(file_id, self._section(f"{file_id}-head", "head", body), file.optimizers, problems, panels)

    def panel(self, section: str, panel: Panel) -> Markup:
        body = self("panel.html.j2", panel=panel)
        return self._section(f"{section}-{panel.key}", f"panel {panel.key}", body)

    def _section(self, id_: str, classes: str, body: Markup) -> Markup:
        """A part of the page that a live page exchanges when its hash has changed."""
        self.ids.append(id_)
        start = '<section id="{}" class="{}" data-part data-hash="{}">\n'
        return Markup(start).format(id_, classes, _hash(body)) + body + Markup("</section>\n")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_own),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["figure_json"] = figure_json
    environment.filters["json"] = json_markup
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(text: str) -> Markup:
    """A heading of a column that may be broken after underscores; copied, it is the text as it was."""
    return Markup("_<wbr>").join(text.split("_"))


@cache
def _own(name: str) -> Markup:
    """A file of the page's own; it may hold HTML."""
    return Markup(resources.files("kftune.dashboard").joinpath("templates", name).read_text(encoding="utf-8"))


@cache
def _plotly() -> Markup:
    """Plotly's bundle of scatter and bar traces: a quarter of the whole, which browsers take seconds to start."""
    bundle = resources.files("kftune.dashboard").joinpath("vendor", "plotly-basic.min.js")
    return Markup(bundle.read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@contextmanager
def without_collecting() -> Iterator[None]:
    """Without looking for cycles: half a million results hold none, and looking takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
