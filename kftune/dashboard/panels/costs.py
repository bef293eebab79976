"""Batch sizes, and what a step is made of."""

from __future__ import annotations

from kftune.analysis.trust.health import step_anatomies
from kftune.dashboard.figures.anatomy import plot_reading, plot_step_against_sgd, plot_step_anatomy, readings_there
from kftune.dashboard.figures.batch_size import (
    MOST_TRIALS,
    common_updates,
    has_accumulation,
    plot_inversion_share,
    plot_loss_against_batch,
)
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import Subject, nothing_yet
from kftune.dashboard.parts import DASH, Cell, Figure, Missing, Panel, Part, Plots, Table, name_of, plots
from kftune.wording import number, percent

__all__ = ["ENTRIES"]


def batch_panel(subject: Subject) -> Panel:
    """Loss against batch size at equal seconds and equal updates (Figs. 2 to 4 of the thesis)."""
    file, problem, styles = subject.file, subject.problem, subject.styles
    updates = common_updates(file, problem)
    drawn = [
        (
            plot_loss_against_batch(file, problem, batch="effective_batch_size", styles=styles),
            f"{subject.what} on {problem} against effective batch size after the whole budget",
        )
    ]
    if has_accumulation(file, problem):
        drawn.append(
            (
                plot_loss_against_batch(file, problem, batch="batch_size", styles=styles),
                f"{subject.what} on {problem} against batch size after the whole budget",
            )
        )
    if updates > 0:
        drawn.append(
            (
                plot_loss_against_batch(file, problem, batch="effective_batch_size", at_updates=updates, styles=styles),
                f"{subject.what} on {problem} against effective batch size after {updates} updates",
            )
        )
    drawn.append((plot_inversion_share(file, problem, styles=styles), f"share of time in inversion on {problem}"))
    return Panel(
        key="batch-size",
        title="Batch size",
        sentence="Every trial of which all runs ended well: at equal seconds a large batch costs updates, at equal "
        "updates it only helps; an optimizer whose marks stay low to the right makes use of large batches. The share "
        "of inversion should fall as batches grow."
        + (" Of many trials only a part is drawn." if subject.most_trials > MOST_TRIALS else ""),
        parts=[plots(drawn, missing=nothing_yet(subject), marks=[s.record.optimizer for s in subject.studies])],
    )


def anatomy_panel(subject: Subject) -> Panel:
    """Where the time of an update goes, and what optimizers say of themselves."""
    file, problem, styles = subject.file, subject.problem, subject.styles
    anatomy = plot_step_anatomy(file, problem)
    parts: list[Part] = [Missing(nothing_yet(subject))]
    if anatomy is not None:
        figures = [Figure(anatomy, f"time of an update by phase on {problem}")]
        against = plot_step_against_sgd(file, problem, styles=styles)
        if against is not None:
            figures.append(Figure(against, f"time of an update against SGD's on {problem}"))
        parts = [Plots(figures), _table(subject)]
        if against is None:
            parts.append(Missing("Step times against SGD's need SGD among the optimizers of the study file."))
        drawn = [
            (plot_reading(file, problem, name, styles=styles), f"{name} over the training of the best configurations")
            for name in readings_there(file, problem)
        ]
        parts.append(
            plots(
                drawn,
                missing="No optimizer here stored readings of its damping, momentum or KL clip: runs made from now on "
                "do, where the optimizer has them.",
            )
        )
    return Panel(
        key="anatomy",
        title="Step anatomy",
        sentence="Where the seconds of an update go, at the batch sizes that the search tried; then what each "
        "optimizer's best configuration did over its first run: how often the KL clip shortened the update, "
        "damping, momentum.",
        parts=parts,
    )


def _table(subject: Subject) -> Table:
    found = [anatomy for anatomy in step_anatomies(subject.file) if anatomy.problem == subject.problem]
    header = [
        Cell("optimizer", "text"),
        Cell("ms per update"),
        Cell("× SGD"),
        Cell("examples per update"),
        Cell("statistics"),
        Cell("inversion"),
        Cell("preconditioning"),
        Cell("runs"),
    ]
    rows = [
        [
            name_of(anatomy.optimizer),
            Cell(number(1000 * anatomy.seconds_per_update, 3), "main"),
            DASH if anatomy.against_sgd is None else Cell(number(anatomy.against_sgd, 3)),
            Cell(f"{anatomy.examples_per_update:.0f}"),
            *(_share(anatomy.phase_shares.get(phase, 0.0)) for phase in ("statistics", "inversion", "preconditioning")),
            Cell(str(anatomy.n_runs)),
        ]
        for anatomy in sorted(found, key=lambda anatomy: anatomy.seconds_per_update)
    ]
    return Table(header, rows)


def _share(share: float) -> Cell:
    return Cell(percent(share), "number" if share > 0 else "none")


ENTRIES = (
    PanelEntry(
        name="batch-size",
        summary="what a larger batch costs and brings",
        scope="problem",
        place=70,
        make=batch_panel,
    ),
    PanelEntry(
        name="anatomy",
        summary="where the time of an update goes",
        scope="problem",
        place=80,
        make=anatomy_panel,
    ),
)
