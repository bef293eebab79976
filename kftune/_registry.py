"""Registries of plug-ins: modules of a package that carry ``ENTRIES``, and other packages' entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from kftune._targets import is_target, load_target
from kftune.errors import UnknownNameError


class Named(Protocol):
    """A plug-in has a name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Plug-ins of one kind, found on first use.

    Every module of ``package`` whose name has no leading underscore may hold ``ENTRIES``, a tuple of plug-ins.
    Entry points of ``group`` name further single plug-ins of other packages. :meth:`get` also takes a target
    (``package.module:attribute``), which belongs to no registry.

    Args:
        kind: singular noun for messages, e.g. ``"optimizer"``.
        package: dotted name of the package to scan.
        group: entry-point group.
        from_target: (target, the object it names) → a plug-in; None for a kind without targets.
    """

    def __init__(
        self, kind: str, package: str, group: str, *, from_target: Callable[[str, object], T] | None = None
    ) -> None:
        self._kind = kind
        self._package = package
        self._group = group
        self._from_target = from_target
        self._entries: dict[str, T] | None = None

    def _load(self) -> dict[str, T]:
        if self._entries is None:
            entries: dict[str, T] = {}
            for entry in (*self._built_in(), *self._from_other_packages()):
                if entry.name in entries:
                    raise ValueError(f"two {self._kind}s are called {entry.name!r}")
                entries[entry.name] = entry
            self._entries = entries
        return self._entries

    def _built_in(self) -> Iterator[T]:
        package = importlib.import_module(self._package)
        for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
            if not info.name.startswith("_"):
                module = importlib.import_module(f"{self._package}.{info.name}")
                yield from getattr(module, "ENTRIES", ())

    def _from_other_packages(self) -> Iterator[T]:
        for point in importlib.metadata.entry_points(group=self._group):
            yield point.load()

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._load()))

    def get(self, name: str) -> T:
        """The plug-in called ``name``, or made from a target.

        Raises:
            UnknownNameError: if there is none; it names the nearest.
            UsageError: the target is not there, or cannot be used.
            UserCodeError: the target's module cannot be imported.
        """
        if self._from_target is not None and is_target(name):
            return self._from_target(name, load_target(name))
        entries = self._load()
        if name not in entries:
            raise UnknownNameError(self._kind, name, entries)
        return entries[name]

    def __iter__(self) -> Iterator[T]:
        entries = self._load()
        return iter([entries[name] for name in self.names()])

    def __contains__(self, name: object) -> bool:
        return name in self._load()
