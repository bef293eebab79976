"""Values that options give as text: hyperparameters, and whatever YAML knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kftune.errors import UsageError, suggestion

if TYPE_CHECKING:
    from kftune.optim import OptimizerEntry

__all__ = ["hyperparameter", "parsed"]


def hyperparameter(entry: OptimizerEntry, key: str, text: str, source: str) -> Any:
    """The value of one hyperparameter, checked as in a study file.

    Args:
        entry: whose hyperparameter it is.
        key: its name.
        text: its value, as YAML.
        source: the option, for messages.

    Raises:
        UsageError: there is no such hyperparameter, or the value is not allowed.
    """
    from kftune.study.config import hyperparameters

    known = {name: p for name, p in hyperparameters(entry).items() if not name.endswith("batch_size")}
    if key not in known:
        raise UsageError(f"{source}: {entry.name} has no hyperparameter {key!r}{suggestion(key, known)}")
    try:
        return known[key].check(parsed(text, source))
    except ValueError as error:
        raise UsageError(f"{source}: {entry.name}.{key}: {error}") from None


def parsed(text: str, source: str) -> Any:
    """A value as YAML reads it.

    Raises:
        UsageError: it cannot; the message begins with ``source``, the option.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"{source}: {text!r} is not a value that YAML knows") from None
