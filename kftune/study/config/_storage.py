"""Where a study is stored: the URL of its database."""

from __future__ import annotations

from typing import Any

from kftune.study.config._flaws import show
from kftune.wording import without_password

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
    is_misspelt = "://" not in value and value.replace("//", ":").partition(":")[0] in _SCHEMES
    if is_misspelt or scheme.partition("+")[0] not in _SCHEMES:
        raise ValueError(f"must be a sqlite:/// or postgresql:// URL or a file name, got {show(value)}")
    if scheme.startswith("sqlite") and rest.strip("/") in {"", ":memory:"}:
        raise ValueError(f"must name a file, so that the study outlives the process, got {show(value)}")
    if scheme.startswith("postgresql") and rest.partition("?")[0].count("@") > 1:
        raise ValueError(f"has an @ too many, got {show(value)} (within a user name or a password it is written %40)")
    return url
