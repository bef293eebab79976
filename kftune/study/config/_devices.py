"""Which devices a study runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kftune.errors import ConfigError

if TYPE_CHECKING:
    from kftune.study.config._models import StudyConfig

__all__ = ["resolve_devices"]


def resolve_devices(
    config: StudyConfig, override: str | None = None, *, workers: int | None = None, file: str | None = None
) -> list[str]:
    """The device of every slot, e.g. ``["cpu"]`` or ``["cuda:0", "cuda:1"]``; a name may stand twice.

    Args:
        config: whose ``devices`` count.
        override: what stands in their place, e.g. ``"cuda:0,cuda:1"``.
        workers: so many slots on the CPU.
        file: where ``config`` comes from, for messages.

    Raises:
        ConfigError: a device that is unknown or not in this machine.
    """
    import torch
    from pydantic import TypeAdapter, ValidationError

    from kftune.study.config._fields import Devices

    source, path = (file, "devices") if override is None else ("--devices", None)
    try:
        wanted = config.devices if override is None else TypeAdapter(Devices).validate_python(override)
    except ValidationError as error:
        raise ConfigError(str(error.errors()[0]["ctx"]["error"]), source=source) from None
    n_cuda = torch.cuda.device_count()
    cuda = [f"cuda:{i}" for i in range(n_cuda)]
    if wanted == "auto":
        return ["cpu"] * workers if workers is not None else cuda or ["cpu"]
    devices = [device for name in wanted for device in (cuda or [name] if name == "cuda" else [name])]
    for name in devices:
        if name != "cpu" and name not in cuda:
            there = ", ".join(["cpu", *cuda])
            message = f"there is no device {name!r} in this machine (available: {there})"
            raise ConfigError(message, source=source, path=path)
    if workers is not None:
        if set(devices) != {"cpu"}:
            raise ConfigError(f"is for the CPU; the devices are {', '.join(devices)}", source="--workers")
        return ["cpu"] * workers
    return devices
