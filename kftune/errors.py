"""Every exception kftune raises on purpose.

::

    KftuneError
    ├── UsageError                 what the user wrote cannot be done; one line, exit code 2
    │   ├── ConfigError            a study file: names the file, the key's path, the value, what is allowed
    │   ├── UnknownNameError       an unknown optimizer, problem, sampler, …; carries the nearest name
    │   ├── DataMissingError       a dataset's files are not there; says where they belong and how to get them
    │   ├── StorageError           a database that cannot be opened, written or understood
    │   │   └── NewerDatabaseError it was written by a later kftune
    │   ├── StudyChangedError      same name, different configuration; carries the differences
    │   └── StudyLockedError       another process is running this study now
    ├── UserCodeError              code that a study file names failed; holds its traceback, exit code 1
    ├── DivergenceError            a loss or gradient is not finite (the parameters are untouched)
    └── CurvatureError             a factor cannot be inverted or decomposed; names the layer
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "CurvatureError",
    "DataMissingError",
    "DivergenceError",
    "KftuneError",
    "NewerDatabaseError",
    "StorageError",
    "StudyChangedError",
    "StudyLockedError",
    "UnknownNameError",
    "UsageError",
    "UserCodeError",
]


class KftuneError(Exception):
    """Base of every error raised by kftune on purpose."""


class UsageError(KftuneError):
    """What the user asked for cannot be done. The message is one clear line; the CLI exits with 2."""


class ConfigError(UsageError):
    """A study file is wrong at one place.

    Args:
        message: what is wrong and what is allowed.
        source: the file's name, or ``"--set"``; shown first.
        path: the key's path, e.g. ``optimizers[1].space.damping.low``.
    """

    def __init__(self, message: str, *, source: str | None = None, path: str | None = None) -> None:
        self.message = message
        self.source = source
        self.path = path
        super().__init__(": ".join(part for part in (source, path, message) if part))


class UnknownNameError(UsageError):
    """A name that no registry entry has.

    Args:
        kind: what was looked for, singular, e.g. ``"optimizer"``.
        name: the unknown name.
        available: the names there are.
    """

    def __init__(self, kind: str, name: str, available: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.available = tuple(sorted(available))
        super().__init__(f"unknown {kind} {name!r}{suggestion(name, self.available)}")


class DataMissingError(UsageError):
    """A dataset's files are not in the data directory."""


class StorageError(UsageError):
    """The database cannot be opened, written or understood."""


class NewerDatabaseError(StorageError):
    """The database was written by a later version of kftune."""


class StudyChangedError(UsageError):
    """A study of this name is stored with another configuration.

    Args:
        study: the study's name.
        differences: one ``"key: stored → now"`` per difference.
    """

    def __init__(self, study: str, differences: Iterable[str]) -> None:
        self.study = study
        self.differences = tuple(differences)
        only_boxes = all(difference.startswith("space.") for difference in self.differences)
        wider = "; of a wider box, `kftune run STUDY.yaml --widen NEW` begins NEW with the stored trials"
        super().__init__(
            f"study {study!r} is stored with another configuration ({'; '.join(self.differences)}); "
            f"use another name or storage, or restore the stored values{wider if only_boxes else ''}"
        )


class StudyLockedError(UsageError):
    """Another process is running studies in this database now."""


class UserCodeError(KftuneError):
    """Code of the user's own, which a study file names, raised something. The message begins with their traceback."""


class DivergenceError(KftuneError):
    """A loss or a gradient is not finite. The parameters have not been touched."""


class CurvatureError(KftuneError):
    """A curvature factor could not be inverted or decomposed, in float64 either. Names the layer."""


def suggestion(name: str, available: Iterable[str]) -> str:
    """``"; did you mean 'kfac'? (available: …)"`` for an unknown name; the first part only if one is near."""
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (available: {', '.join(names)})" if names else hint
