"""Where a study is stored: the URL of its database."""

from __future__ import annotations

import re
from typing import Any

from kftune.study.config._flaws import show

__all__ = ["storage_url", "without_password"]

_SCHEMES = ("sqlite", "postgresql")


def storage_url(value: Any) -> str:
    """The database's URL; a file name stands for a SQLite database.

    Raises:
        ValueError: it is neither, or no database that outlives the process.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"must be a file name or a database URL such as sqlite:///study.db, got {show(value)}")
    url = value if "://" in value else f"sqlite:///{value}"
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] not in _SCHEMES:
        raise ValueError(f"must be a sqlite:/// or postgresql:// URL or a file name, got {show(value)}")
    if scheme.startswith("sqlite") and rest.strip("/") in {"", ":memory:"}:
        raise ValueError(f"must name a file, so that the study outlives the process, got {show(value)}")
    return url


def without_password(url: str) -> str:
    """The URL with ``***`` for its password."""
    return re.sub(r"(://[^:/@]+):[^@]+@", r"\1:***@", url)
