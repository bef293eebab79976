"""Two runs never share a GPU or a core: leases by lock files, over all processes of a host.

A lease is an exclusive lock of a file for each GPU or physical core. The operating system drops it when the process
that holds it dies, however it dies. Leases are for single runs, so that studies that run at the same time take turns:
who waits for a GPU, or for cores, holds a second lock, the turnstile, that everyone has to pass before taking anything.
Whoever has just ended a run finds it closed and queues behind.

A run on a CPU with t threads leases t cores, all of them at once or none. A run on a GPU leases the GPU alone: its
threads on the host mostly wait for it.

The lock files are in a directory of the user's under the system's temporary one (not in the user's runtime directory,
which some systems remove at the end of a login, with studies still running). ``KFTUNE_LEASE_DIR`` names another, which
several users, or containers, may share.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from kftune.errors import UsageError
from kftune.study.executors.affinity import Core, cores_here, pin
from kftune.study.executors.protocol import Holder

__all__ = ["Leases", "Request", "lease_directory", "leased"]

_VARIABLE = "KFTUNE_LEASE_DIR"
_POLL_SECONDS = 0.1


def lease_directory() -> Path:
    """Where the lock files are; made if necessary.

    Raises:
        UsageError: it cannot be made or does not belong to this user.
    """
    if named := os.environ.get(_VARIABLE):
        path = Path(named)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{_VARIABLE}: {path}: {error.strerror}") from error
        return path
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    path = Path(tempfile.gettempdir()) / f"kftune-leases-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; set {_VARIABLE} to a directory for lock files") from error
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != user):
        raise UsageError(f"{path} is not a directory of yours; set {_VARIABLE} to a directory for lock files")
    return path


class _Lock:
    """One lock file, and beside it a note of who holds it."""

    def __init__(self, directory: Path, key: str) -> None:
        # Directories that several users share need files that all of them may open.
        mode = 0o666 if os.environ.get(_VARIABLE) else 0o600
        self._file = FileLock(directory / f"{key}.lock", mode=mode)
        self._note = directory / f"{key}.holder"

    def acquire(self, holder: Holder) -> bool:
        """Take the lock if it is free; whether that was so.

        Raises:
            UsageError: the lock file cannot be opened.
        """
        try:
            self._file.acquire(timeout=0)
        except Timeout:
            return False
        except OSError as error:
            raise UsageError(f"{self._file.lock_file}: {error.strerror}; see {_VARIABLE}") from error
        self._write(json.dumps({"pid": holder.pid, "name": holder.name}))
        return True

    def release(self) -> None:
        self._write("")
        self._file.release()

    def _write(self, text: str) -> None:
        # The note is for messages only: a full disk, or another user's file, shall not end a study.
        with contextlib.suppress(OSError):
            self._note.write_text(text)

    def holder(self) -> Holder | None:
        """Who holds it, as far as the note says."""
        try:
            note = json.loads(self._note.read_text())
            return Holder(int(note["pid"]), str(note["name"]))
        except (OSError, ValueError, KeyError, TypeError):  # not written yet, just emptied, or by someone else
            return None


@dataclass
class _Held:
    lock: _Lock
    n_users: int = 1


class Leases:
    """The leases of one runner, for slots that are given runs one after another.

    Slots on the same GPU share its lease: naming it twice is how a user asks for that. So do slots on the CPU whose
    threads together are more than the machine has.

    Args:
        devices: one entry per slot, ``"cpu"`` or ``"cuda:i"``.
        threads: CPU threads per worker.
        name: of the study file, for those who wait.
        cores: that may be used; by default those of this process.

    Raises:
        UsageError: see :func:`lease_directory`.
    """

    def __init__(
        self, devices: Sequence[str], *, threads: int, name: str = "", cores: Sequence[Core] | None = None
    ) -> None:
        self._directory = lease_directory()
        self._me = Holder(os.getpid(), name)
        self._cores = tuple(cores_here() if cores is None else cores)
        self._held: dict[str, _Held] = {}
        self._gpu_keys = {device: _gpu_key(device) for device in set(devices) - {"cpu"}}
        self._n_slots, self._threads = list(devices).count("cpu"), threads
        slots = max(1, self._n_slots)
        per_core = min(len(core.cpus) for core in self._cores)
        # Two threads on a core's two logical CPUs, rather than two runs on one core.
        wanted = max(len(self._cores) // slots, math.ceil(threads / per_core))
        self._n_wanted = min(threads, len(self._cores), wanted)
        self._max_users = math.ceil(slots * self._n_wanted / len(self._cores))

    def notice(self) -> str | None:
        """What a person should know of how the slots share the cores; None if there is nothing."""
        n_cpus = sum(len(core.cpus) for core in self._cores)
        if self._n_slots * self._threads <= n_cpus:
            return None
        workers = f"{self._n_slots} workers with " if self._n_slots > 1 else ""
        threads = f"{self._threads} thread{'s' * (self._threads > 1)}"
        return f"{workers}{threads}{' each' * (self._n_slots > 1)} share {n_cpus} CPU core{'s' * (n_cpus > 1)}"

    def request(self, device: str) -> Request:
        """Ask for a device, for one run. The answer is :meth:`Request.is_granted`."""
        key = self._gpu_keys.get(device)
        turnstile = _Lock(self._directory, f"{key or 'cores'}.turnstile")
        return Request(self, device, turnstile)

    # -- for requests ------------------------------------------------------------------------------------------------

    @property
    def me(self) -> Holder:
        """This process, to others."""
        return self._me

    def take(self, device: str) -> dict[str, frozenset[int]] | None:
        """Lock → its logical CPUs, for all that a run on ``device`` needs; None if any of it is not free."""
        if device == "cpu":
            return self._take_cores()
        key = self._gpu_keys[device]
        if key in self._held:
            self._held[key].n_users += 1
        elif not self._lock(key):
            return None
        return {key: frozenset()}

    def _take_cores(self) -> dict[str, frozenset[int]] | None:
        new: list[Core] = []
        for core in self._cores:
            if len(new) < self._n_wanted and core.key not in self._held and self._lock(core.key):
                new.append(core)
        shared = self._shareable()[: self._n_wanted - len(new)]
        if len(new) + len(shared) < self._n_wanted:
            self.give_back(core.key for core in new)
            return None
        for core in shared:
            self._held[core.key].n_users += 1
        return {core.key: core.cpus for core in (*new, *shared)}

    def _shareable(self) -> list[Core]:
        """Cores of this process' runs that another may use too, those with the fewest users first."""
        own = [core for core in self._cores if core.key in self._held]
        free = [core for core in own if self._held[core.key].n_users < self._max_users]
        return sorted(free, key=lambda core: self._held[core.key].n_users)

    def _lock(self, key: str) -> bool:
        lock = _Lock(self._directory, key)
        if lock.acquire(self._me):
            self._held[key] = _Held(lock)
            return True
        return False

    def give_back(self, keys: Iterable[str]) -> None:
        """End a use of each."""
        for key in list(keys):
            held = self._held[key]
            held.n_users -= 1
            if held.n_users == 0:
                held.lock.release()
                del self._held[key]

    def holders(self, device: str) -> tuple[Holder, ...]:
        """The other processes that use the GPU, or any of the cores, now."""
        keys = [core.key for core in self._cores] if device == "cpu" else [self._gpu_keys[device]]
        found = (_Lock(self._directory, key).holder() for key in keys if key not in self._held)
        return tuple(dict.fromkeys(holder for holder in found if holder is not None and _is_alive(holder.pid)))


class Request:
    """A run's wish for a device; see :meth:`Leases.request`.

    Attributes:
        device: that it wants.
        cpus: once it is granted, logical CPUs of its cores; none for a GPU.
    """

    def __init__(self, leases: Leases, device: str, turnstile: _Lock) -> None:
        self.device = device
        self.cpus: frozenset[int] = frozenset()
        self._leases = leases
        self._turnstile = turnstile
        self._is_next = False
        self._keys: tuple[str, ...] | None = None

    def is_granted(self) -> bool:
        """Whether the run may begin; to be asked again and again until it may."""
        if self._keys is not None:
            return True
        self._is_next = self._is_next or self._turnstile.acquire(self._leases.me)
        taken = self._leases.take(self.device) if self._is_next else None
        if taken is None:
            return False
        self._keys = tuple(taken)
        self.cpus = frozenset().union(*taken.values())
        self._leave_turnstile()
        return True

    def holders(self) -> tuple[Holder, ...]:
        """The other processes it waits for."""
        return self._leases.holders(self.device)

    def release(self) -> None:
        """The run has ended, or will not be made."""
        self._leave_turnstile()
        if self._keys is not None:
            self._leases.give_back(self._keys)
            self._keys = None

    def _leave_turnstile(self) -> None:
        if self._is_next:
            self._turnstile.release()
            self._is_next = False


@contextlib.contextmanager
def leased(device: str, *, threads: int, name: str, on_wait: Callable[[tuple[Holder, ...]], None]) -> Iterator[None]:
    """Inside the block this process has a device, or as many cores as it has threads, to itself.

    It is kept on these cores, and afterwards allowed on those it was allowed on before.

    Args:
        device: ``"cpu"`` or ``"cuda:i"``.
        threads: CPU threads.
        name: what it does, for those who wait.
        on_wait: told once, if it has to wait, who has what it waits for.

    Raises:
        UsageError: see :func:`lease_directory`.
    """
    request = Leases([device], threads=threads, name=name).request(device)
    me = psutil.Process()
    before = me.cpu_affinity() if hasattr(me, "cpu_affinity") else None
    try:
        if not request.is_granted():
            on_wait(request.holders())
            while not request.is_granted():
                time.sleep(_POLL_SECONDS)
        if request.cpus:
            pin(me.pid, request.cpus)
        yield
    finally:
        if before and request.cpus:
            pin(me.pid, before)
        request.release()


def _is_alive(pid: int) -> bool:
    """Whether there is such a process; the note of one that was killed stays behind."""
    return psutil.pid_exists(pid)


def _gpu_key(device: str) -> str:
    """The same for every process on this host: indices depend on ``CUDA_VISIBLE_DEVICES``."""
    import torch

    return f"gpu-{torch.cuda.get_device_properties(device).uuid}"
