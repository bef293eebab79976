"""``kftune validate``."""

from __future__ import annotations

from kftune.cli._options import AsJson, Devices, Overrides, StudyFile
from kftune.cli.rendering.summary import print_summary, summary
from kftune.progress.output import print_json, say

__all__ = ["validate"]


def validate(study: StudyFile, *, set_: Overrides = None, devices: Devices = None, as_json: AsJson = False) -> None:
    """Check a study file against this machine, and show what it amounts to."""
    from kftune.study.config import load_config, make_plans, resolve_devices

    config = load_config(study, set_ or ())
    resolve_devices(config, devices, file=str(study))
    plans = make_plans(config)
    if as_json:
        print_json(summary(config, plans))
        return
    print_summary(config, plans)
    say(f"{study} is fine", whole=True)
