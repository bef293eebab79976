"""Targets: ``package.module:attribute``, an object of anyone's that a study file names.

Its module is one that is installed, or one that lies in a directory of the user's (the study file's own, as a rule).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType

from kftune.errors import UsageError, UserCodeError, suggestion

__all__ = ["check_target", "code_version", "importable_from", "is_target", "load_target", "target_name", "user_error"]

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_TARGET = re.compile(rf"{_NAME}:{_NAME}")
_MOST_LISTED = 20
_HERE = Path(__file__).parent

_directories: list[str] = []
"""Where modules are looked for first, besides ``sys.path``; the innermost :func:`importable_from` comes last."""

_homes: dict[str, str] = {}
"""Module found in a user's directory → that directory."""


def is_target(name: str) -> bool:
    """Whether ``name`` is meant as a target; names of plug-ins have no colon."""
    return ":" in name


def target_name(target: str) -> str:
    """The name of what has none of its own: the attribute's in lower case."""
    return re.split(r"[:.]", target)[-1].lower()


def check_target(target: str) -> None:
    """Refuse what does not read ``package.module:attribute``.

    Raises:
        ValueError: it says what to write.
    """
    if _TARGET.fullmatch(target):
        return
    near = target.removeprefix("./").replace("/", ".").replace(".py:", ":")
    if ":" not in near:
        near = ":".join(near.rpartition(".")[::2])
    hint = f"; did you mean {near!r}?" if _TARGET.fullmatch(near) else ""
    raise ValueError(f"must look like package.module:Class, got {target!r}{hint}")


@contextlib.contextmanager
def importable_from(directory: str | Path | None) -> Iterator[None]:
    """Find modules in ``directory`` too, and there first, as Python does for a script's own; None changes nothing.

    Modules that came from another such directory are forgotten: their names may mean something else in this one.
    """
    if not directory:
        yield
        return
    place = str(Path(directory).resolve())
    for name, home in list(_homes.items()):
        if home != place:
            sys.modules.pop(name, None)
            del _homes[name]
    known = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, place)
    _directories.append(place)
    try:
        yield
    finally:
        _directories.pop()
        with contextlib.suppress(ValueError):  # the user's own code may have changed the path
            sys.path.remove(place)
        for name in sys.modules.keys() - known:
            # A package that could not be imported leaves modules of its behind.
            top = name.partition(".")[0]
            if top not in known and top in sys.modules and _home(sys.modules[top]) == place:
                _homes[name] = place


def _home(module: ModuleType) -> str | None:
    """The directory that must be on the path for a top-level module or package to be found."""
    package = next(iter(getattr(module, "__path__", ())), None)
    found = package if package is not None else getattr(module, "__file__", None)
    return None if found is None else str(Path(found).resolve().parent)


def load_target(target: str) -> object:
    """Import the module and get the attribute.

    Raises:
        UsageError: there is no such module or attribute; it names the nearest.
        UserCodeError: the module itself cannot be imported.
    """
    try:
        check_target(target)
    except ValueError as error:
        raise UsageError(f"target {error}") from None
    name, _, path = target.partition(":")
    module = _import(name)
    found: object = module
    for i, part in enumerate(path.split(".")):
        if not hasattr(found, part):
            owner = ".".join([name, *path.split(".")[:i]])
            raise UsageError(f"{owner!r} has no attribute {part!r}{_near_attribute(part, found)}")
        found = getattr(found, part)
    return found


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise user_error(f"the module {name!r} cannot be imported", error) from error
        where = f"in {_directories[-1]} or among" if _directories else "among"
        raise UsageError(f"there is no module {name!r} {where} the installed ones{_near_module(name)}") from None
    except (Exception, SystemExit) as error:
        raise user_error(f"the module {name!r} cannot be imported", error) from error


def user_error(what: str, error: BaseException) -> UserCodeError:
    """``error``, which the user's own code raised, with its traceback from where their code begins."""
    lines = traceback.format_exception(type(error), error, _without_our_frames(error.__traceback__))
    return UserCodeError("".join([*lines, what]))


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not (file.startswith("<frozen importlib") or file == importlib.__file__ or _HERE in Path(file).parents):
            break
        trace = trace.tb_next
    return trace


def _near_module(name: str) -> str:
    found = [path.stem for place in _directories for path in Path(place).glob("*.py")]
    return suggestion(name, found).partition(" (available")[0]


def _near_attribute(name: str, owner: object) -> str:
    usable = [key for key in dir(owner) if key[0] != "_" and not inspect.ismodule(getattr(owner, key, None))]
    hint = suggestion(name, usable)
    return hint if len(usable) <= _MOST_LISTED else hint.partition(" (available")[0]


def code_version(target: str, directory: str | None) -> str | None:
    """``"sha256:…"`` of a target's module and of what it uses of others, where these are the user's in ``directory``.

    None for a module that is installed, or not imported yet.
    """
    module = sys.modules.get(target.partition(":")[0])
    if directory is None or module is None:
        return None
    root = Path(directory).resolve()
    files = sorted(_own_files(module, root), key=lambda file: str(file.relative_to(root)))
    contents = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    if not contents:
        return None
    if len(contents) == 1:
        return f"sha256:{contents[0].hex()[:16]}"
    return f"sha256:{hashlib.sha256(b''.join(contents)).hexdigest()[:16]}"


def _own_files(module: ModuleType, root: Path) -> set[Path]:
    """Files below ``root``, no installed ones, of a module and of those that its names come from."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        one = waiting.pop()
        file = getattr(one, "__file__", None)
        path = Path(file).resolve() if file else None
        if path is None or path in found or root not in path.parents or "site-packages" in path.parts:
            continue
        found.add(path)
        for value in list(vars(one).values()):
            name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            other = sys.modules.get(name) if isinstance(name, str) else None
            if other is not None:
                waiting.append(other)
    return found
