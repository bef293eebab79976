"""Several study files as one, where they have problems in common: for one verdict over all of their optimizers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kftune.analysis.stored.results import FileResults, StudyResults, objective_of
from kftune.errors import UsageError

__all__ = ["together"]

_DECIDE = ("problem", "budget", "seed", "dtype")
"""Keys of a study's identity that must be equal for its losses to be compared with another's, seed by seed."""


def together(files: Sequence[FileResults]) -> list[FileResults]:
    """Study files with a problem in common become one, in the place of the first; the others stay by themselves.

    An optimizer that several of them have on a problem is named with its file: ``kfac (quickstart)``.

    Args:
        files: at least one.

    Raises:
        UsageError: what two of them measure on a common problem cannot be compared: it, its data, the budget, the
            objective, the seeds or the precision differ. Of runs with a budget of seconds, the threads as well.
    """
    named = _with_names(files)
    counts = Counter(problem for file in named for problem in file.problems)
    joined = [file for file in named if any(counts[problem] > 1 for problem in file.problems)]
    if not joined:
        return list(files)
    for problem in (problem for problem, n in counts.items() if n > 1):
        for one, other in pairwise([file for file in joined if problem in file.problems]):
            _check(problem, one, other)
    for one, other in pairwise(joined):
        if one.objective != other.objective:
            raise _not_comparable(one, other, "objective", one.objective, other.objective)
    whole = _joined(joined)
    return [whole if file is joined[0] else file for file in named if file is joined[0] or file not in joined]


def _with_names(files: Sequence[FileResults]) -> list[FileResults]:
    """Files of different databases may have one name; they are numbered then, and so are their studies."""
    n_of, n_seen, found = Counter(file.name for file in files), Counter[str](), []
    for file in files:
        n_seen[file.name] += 1
        name = file.name if n_of[file.name] == 1 else f"{file.name} #{n_seen[file.name]}"
        studies = [
            _renamed(study, study=f"{name}{study.record.study.removeprefix(file.name)}") for study in file.studies
        ]
        found.append(replace(file, name=name, studies=tuple(studies)))
    return found


def _renamed(study: StudyResults, /, **names: Any) -> StudyResults:
    return replace(study, record=replace(study.record, **names))


def _check(problem: str, one: FileResults, other: FileResults) -> None:
    mine, theirs = (_measured(file.of_problem(problem)[0]) for file in (one, other))
    for key, value in mine.items():
        if value != theirs[key]:
            raise _not_comparable(one, other, key, value, theirs[key], problem=problem)


def _measured(study: StudyResults) -> Mapping[str, Any]:
    """What decides what a loss of a study is."""
    record = study.record
    identity = record.identity
    found = {key: identity.get(key) for key in _DECIDE}
    found |= {"training examples": record.n_train, "objective": objective_of(record)}
    if objective_of(record) == "train_loss":
        found["evaluation.train_examples"] = (identity.get("evaluation") or {}).get("train_examples")
    if (identity.get("budget") or {}).get("seconds") is not None:
        found["threads"] = identity.get("threads")
    return found


def _not_comparable(
    one: FileResults, other: FileResults, key: str, mine: Any, theirs: Any, *, problem: str | None = None
) -> UsageError:
    where = "" if problem is None else f" on {problem}"
    values = " in one and ".join(
        "not known" if value is None else json.dumps(value, ensure_ascii=False) for value in (mine, theirs)
    )
    return UsageError(
        f"{one.name} and {other.name} cannot be compared{where}: {key} is {values} in the other; compare each by itself"
    )


def _joined(files: Sequence[FileResults]) -> FileResults:
    problems = list(dict.fromkeys(problem for file in files for problem in file.problems))
    studies = []
    for problem in problems:
        of_problem = [(file, study) for file in files for study in file.of_problem(problem)]
        n_of = Counter(study.record.optimizer for _, study in of_problem)
        for file, study in of_problem:
            label = study.record.optimizer
            studies.append(study if n_of[label] == 1 else _renamed(study, optimizer=f"{label} ({file.name})"))
    *names, last = [file.name for file in files]
    return FileResults(
        name=f"{', '.join(names)} and {last}",
        studies=tuple(studies),
        sessions=tuple(session for file in files for session in file.sessions),
        untrained={key: value for file in reversed(files) for key, value in file.untrained.items()},
    )
