"""The tables of ``kftune profile``, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kftune.progress.output import counted, print_table, say
from kftune.wording import number

if TYPE_CHECKING:
    from kftune.training.profile import OptimizerProfile, Profile

__all__ = ["markdown", "print_profile"]

_NONE = "–"
_STEP_COLUMNS = ("optimizer", "× SGD", "quartiles", "ms", "floor", "memory")
_PHASES = {
    "fwd/bwd": "forward_backward",
    "statistics": "statistics",
    "inversion": "inversion",
    "precond.": "preconditioning",
    "update": "update",
    "rest": "other",
}
_PHASE_COLUMNS = ("optimizer", *_PHASES)
_MEANINGS = (
    "× SGD: a step as a multiple of torch's SGD step, measured just before and after; median of the rounds, whole "
    "periods of statistics and inversions.",
    "floor: the least operations of the method, as a multiple of SGD's; linear and convolutional layers only.",
    "memory: the most that torch had allocated for model, activations, gradients and state.",
)
_PHASE_TITLE = "Where the time goes, in SGD steps"


def print_profile(profile: Profile) -> None:
    """Print both tables, at most 80 columns wide."""
    say(_title(profile), bold=True)
    say(_machine(profile))
    say(_baseline(profile))
    say()
    print_table(_STEP_COLUMNS, _step_rows(profile), right=_STEP_COLUMNS[1:], wrap=("optimizer",))
    say(f"\n{_PHASE_TITLE}", bold=True)
    print_table(_PHASE_COLUMNS, _phase_rows(profile), right=_PHASE_COLUMNS[1:], wrap=("optimizer",))
    say()
    for line in (*_notes(profile), *_MEANINGS):
        say(line)


def markdown(profile: Profile, command: str) -> str:
    """Both tables with the machine and the command line that made them."""
    parts = [
        f"# {_title(profile)}",
        f"{_machine(profile)}\n{_baseline(profile)}",
        f"```console\n{command}\n```",
        _markdown_table(_STEP_COLUMNS, _step_rows(profile)),
        f"{_PHASE_TITLE}:",
        _markdown_table(_PHASE_COLUMNS, _phase_rows(profile)),
        "\n".join(f"* {line}" for line in (*_notes(profile), *_MEANINGS)),
    ]
    return "\n\n".join(parts) + "\n"


def _title(profile: Profile) -> str:
    args = "".join(f", {name}={number(value)}" for name, value in profile.spec.problem_args.items())
    return f"{profile.spec.problem}{args}: a step at batch size {profile.spec.batch_size}"


def _machine(profile: Profile) -> str:
    at, spec = profile.machine, profile.spec
    gpu = "" if at.device == "cpu" else f"{at.device_name}, "
    return (
        f"{gpu}{at.cpu} ({counted(at.cores, 'core')}), {counted(at.threads, 'thread')}, {spec.dtype}, {at.system}, "
        f"Python {at.python}, torch {at.torch}, kftune {at.kftune}"
    )


def _baseline(profile: Profile) -> str:
    step, memory = _milliseconds(profile.sgd_step_seconds), _memory(profile.sgd_peak_memory_bytes)
    rounds = counted(profile.spec.rounds, "round")
    return f"torch SGD (Nesterov): {step} ms, {memory}; {rounds}, {profile.n_parameters} parameters"


def _step_rows(profile: Profile) -> list[tuple[str, ...]]:
    return [
        (
            _label(each),
            *(_measured(each) if each.rounds else (_NONE, _NONE, _NONE)),
            _NONE if each.floor is None else _multiple(each.floor),
            _memory(each.peak_memory_bytes),
        )
        for each in profile.optimizers
    ]


def _measured(each: OptimizerProfile) -> tuple[str, str, str]:
    low, median, high = each.ratio
    return _multiple(median), f"{_multiple(low)}–{_multiple(high)}", _milliseconds(each.step_seconds)


def _phase_rows(profile: Profile) -> list[tuple[str, ...]]:
    return [
        (_label(each), *(_multiple(each.phase_ratios[phase]) for phase in _PHASES.values()))
        for each in profile.optimizers
        if each.rounds
    ]


def _notes(profile: Profile) -> list[str]:
    """What was set, and why there are no numbers."""
    notes = []
    for each, contestant in zip(profile.optimizers, profile.spec.contestants, strict=True):
        added = {name: v for name, v in contestant.params.items() if f"{name}=" not in each.label}
        if added:
            notes.append(f"{_label(each)}: {', '.join(f'{name}={number(v)}' for name, v in added.items())}")
        if each.failure:
            notes.append(f"{_label(each)}: not measured: {each.failure}")
    return notes


def _label(each: OptimizerProfile) -> str:
    """Name and settings with spaces between them, where a narrow column may break it."""
    settings = each.label.removeprefix(f"{each.optimizer}:")
    return each.label if settings == each.label else f"{each.optimizer} {settings.replace(',', ' ')}"


def _multiple(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _milliseconds(seconds: float) -> str:
    return _three_digits(1e3 * seconds)


def _memory(n_bytes: int | None) -> str:
    return _NONE if n_bytes is None else f"{_three_digits(n_bytes / 1e6)} MB"


def _three_digits(value: float) -> str:
    """Without an exponent for large values."""
    return number(value, 3) if value < 1000 else f"{value:.0f}"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ruler, *rows))
