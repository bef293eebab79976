"""kftune: hyperparameter tuning and fair comparison of second-order optimizers under a fixed wall-clock budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kftune._version import __version__

if TYPE_CHECKING:
    from kftune.api import Results, Study, run_study

__all__ = ["Results", "Study", "__version__", "run_study"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: whoever wants kftune.optim alone should not wait for pandas.
    if name in ("Results", "Study", "run_study"):
        from kftune import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
