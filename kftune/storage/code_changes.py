"""Runs of one study file that were made by different code of the user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kftune.storage.records import RunRecord, SessionRecord

__all__ = ["CodeChange", "code_changes", "notice_of_change"]

_HASH = "sha256:"  # what versions of a user's modules begin with, see kftune._targets.code_version


@dataclass(frozen=True, kw_only=True)
class CodeChange:
    """A target whose module was edited between sessions that have runs.

    Attributes:
        target: ``package.module:attribute``.
        n_runs: version of the code → runs that it made, in the order of the sessions.
    """

    target: str
    n_runs: Mapping[str, int]

    def __str__(self) -> str:
        """One line for people."""
        made = " and ".join(f"{n} runs by {version}" for version, n in self.n_runs.items())
        return f"the code of {self.target} was changed between sessions: {made}; their losses stand side by side here"


def code_changes(sessions: Sequence[SessionRecord], runs: Iterable[RunRecord]) -> list[CodeChange]:
    """The targets with runs of more than one version of their code.

    Args:
        sessions: of a study file, in the order they began.
        runs: of its studies; what other files' sessions made is left out.
    """
    return [
        CodeChange(target=target, n_runs=versions)
        for target, versions in _versions(sessions, runs).items()
        if len(versions) > 1
    ]


def notice_of_change(
    current: Mapping[str, str], sessions: Sequence[SessionRecord], runs: Iterable[RunRecord]
) -> str | None:
    """What to say where a session begins whose code is not that of the runs before; None if it is.

    Args:
        current: target → version now.
        sessions: those before, in the order they began.
        runs: of the studies.
    """
    made = _versions(sessions, runs)
    changed = [t for t, version in current.items() if any(known != version for known in made.get(t, {}))]
    if not changed:
        return None
    n = max(sum(count for known, count in made[t].items() if known != current[t]) for t in changed)
    return (
        f"the code of {' and '.join(changed)} has changed since {n} of the stored runs {'was' if n == 1 else 'were'} "
        "made: if it changes what is trained or measured, old and new losses cannot be compared; another name for the "
        "study file begins anew, kftune drop takes trials out"
    )


def _versions(sessions: Sequence[SessionRecord], runs: Iterable[RunRecord]) -> dict[str, dict[str, int]]:
    """Target → version → number of runs, none without one."""
    of_session = Counter(run.session_id for run in runs)
    found: dict[str, dict[str, int]] = {}
    for session in sessions:
        n = of_session[session.id] if session.id is not None else 0
        for target, version in session.versions.items() if n else ():
            if version.startswith(_HASH):
                counts = found.setdefault(target, {})
                counts[version] = counts.get(version, 0) + n
    return found
