"""How much tuning an optimizer needs."""

from __future__ import annotations

from kftune.dashboard.figures.tunability import plot_best_of_k, plot_best_so_far
from kftune.dashboard.panels._entry import PanelEntry
from kftune.dashboard.panels._subject import Subject, nothing_yet
from kftune.dashboard.parts import Panel, Part, plots

__all__ = ["ENTRIES"]


def tunability_panel(subject: Subject) -> Panel:
    """Expected best of k, and best so far."""
    file, problem, styles = subject.file, subject.problem, subject.styles
    expected = plot_best_of_k(file, problem, styles=styles)
    so_far = [
        (plot_best_so_far(file, problem, against="trials", styles=styles), f"best so far on {problem} against trials"),
        (
            plot_best_so_far(file, problem, against="spent_seconds", styles=styles),
            f"best so far on {problem} against all seconds spent",
        ),
    ]
    no_random = (
        "No trial drawn at random has finished: the expected best of k is computed from such trials alone "
        "(`startup_trials` of the study file; a grid and a Sobol' sequence have none, and those that `--widen` takes "
        "over were drawn from a narrower box)."
    )
    parts: list[Part] = [
        plots([(expected, f"expected best of k random configurations on {problem}")], missing=no_random),
        plots(so_far, missing=nothing_yet(subject)),
    ]
    return Panel(
        key="tunability",
        title="Tunability",
        sentence="Above: the loss to expect from the best of k random configurations (from trials drawn at random; the "
        "95 % band ends where they are too few for one): the flatter, the less tuning is needed. Below: what the "
        "search really found, which guided trials may have improved.",
        parts=parts,
    )


ENTRIES = (
    PanelEntry(
        name="tunability",
        summary="how much tuning an optimizer needs",
        scope="problem",
        place=50,
        make=tunability_panel,
    ),
)
