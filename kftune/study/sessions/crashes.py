"""Whether runs crash in the same way again and again: the code is at fault then, and the session ends."""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["Crashes"]

_MAX_IDENTICAL = 3
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?")


class Crashes:
    """Counts a session's crashes by study and by what was said at last."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, study: str, message: str) -> str | None:
        """A run crashed.

        Args:
            study: its study.
            message: the traceback, or what there is.

        Returns:
            Why there should be no more runs, for people; None while there may be.
        """
        message = message.strip()
        last_line = message.splitlines()[-1] if message else ""
        # Sizes and addresses differ from one configuration to the next.
        signature = (study, _NUMBER.sub("#", last_line))
        self._counts[signature] += 1
        if self._counts[signature] < _MAX_IDENTICAL:
            return None
        return f"{study} crashed {_MAX_IDENTICAL} times in the same way; the last:\n{message}"
