"""What registering studies means for those that are stored already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from kftune.errors import StudyChangedError
from kftune.storage._differences import differences
from kftune.storage.records import StudyRecord

__all__ = ["check_same", "left_out"]

_OWN = ("problem", "optimizer", "space")
"""Keys of a study's identity that are not those of the whole study file."""


def check_same(stored: StudyRecord | None, record: StudyRecord) -> None:
    """See that a study is the stored one of its name, if there is one.

    Raises:
        StudyChangedError: it has another identity.
    """
    changed = differences(stored.identity, record.identity) if stored is not None else []
    if changed:
        raise StudyChangedError(record.study, changed)


def left_out(stored: Iterable[StudyRecord], records: Sequence[StudyRecord]) -> list[StudyRecord]:
    """The stored studies that a study file no longer has, with its new ``config``; only those of the same settings.

    Args:
        stored: all studies.
        records: those of the study file.
    """
    registered = {record.study for record in records}
    return [
        replace(other, config=records[0].config)
        for other in stored
        if other.study not in registered
        and other.file_name == records[0].file_name
        and not differences(_shared(other), _shared(records[0]))
    ]


def _shared(record: StudyRecord) -> dict[str, Any]:
    """What the studies of a file have in common, of what must not change."""
    return {key: value for key, value in record.identity.items() if key not in _OWN}
