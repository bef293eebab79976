"""``kftune init``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from kftune.cli._files import write_text
from kftune.errors import UsageError
from kftune.progress.output import say

__all__ = ["init"]

_TEMPLATE = """\
# yaml-language-server: $schema={schema}
# A kftune study file. `kftune validate {file}` checks it, `kftune run {file}` runs it.

name: {name}

# What is trained. `kftune list problems`, `kftune describe {problem}`.
problems:
  - {problem}

# What trains it; every optimizer meets every problem, each tuned with the same number of trials.
# `kftune list optimizers`, `kftune describe {optimizer}`. An entry may change the optimizer's own search space:
#   - name: {optimizer}
#     label: my {optimizer}                       # its name in tables; lets one optimizer stand twice
#     space: {{lr: {{low: 1e-3, high: 1.0, log: true}}}}
#     fixed: {{batch_size: 128}}                # takes one dimension out of the search
optimizers:
{optimizers}

# What each run gets: seconds of training (set-up and evaluation are outside the clock), or {{updates: 200}}.
budget: {{seconds: 1.0}}

trials: 24            # configurations per study, in all: running again after an interrupt does not add to them
repeats: 2            # runs per configuration, each from another seed; a trial's value is their mean
startup_trials: 8     # random ones before the sampler learns from what it has seen
sampler: gpyopt       # `kftune list samplers`; with options: {{name: gpyopt, ...}}
objective: test_loss  # or train_loss, or test_error where there is an accuracy
seed: 0
storage: sqlite:///{name}.db
devices: auto         # all CUDA devices if there are any, else the CPU; or a list such as [cuda:0, cuda:1]

# Less often needed, with their defaults:
# threads: auto       # CPU threads of a run
# dtype: float32
# evaluation: {{points: 20, train_examples: 2000}}
# run_timeout: null   # wall seconds after which a run is stopped
# limit: {{hours: 8}}   # of the whole file, sessions before a resume included; or {{trials: 150}}
# racing: false       # true: a trial whose first run is hopeless is not repeated
# pruner: null        # median, successive_halving or hyperband: stops runs that fall behind
# warm_start: []      # earlier studies, here or in other.db#name, whose best configurations are tried first
# micro_batch: null   # auto: batches that do not fit in memory are accumulated
"""


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The study file to write.")] = Path("study.yaml"),
    *,
    problem: Annotated[str, typer.Option("--problem", help="What is trained.")] = "digits_autoencoder",
    optimizers: Annotated[str, typer.Option("--optimizers", metavar="NAME,...", help="What trains it.")] = "sgd,kfac",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it is there.")] = False,
) -> None:
    """Write a study file with comments to start from, and the schema by which editors check it."""
    from kftune.study.config import parse_config
    from kftune.study.config.schema import SCHEMA_FILE, schema_text

    if file.exists() and not force:
        raise UsageError(f"{file} is there already; --force overwrites it")
    names = [name.strip() for name in optimizers.split(",")]
    text = _TEMPLATE.format(
        schema=SCHEMA_FILE,
        file=file,
        name=re.sub(r"[^\w.\- ]", "-", file.stem).strip(" .-_") or "study",
        problem=problem,
        optimizer=names[-1],
        optimizers="\n".join(f"  - {name}" for name in names),
    )
    parse_config(text, str(file))
    write_text(file, text)
    write_text(file.with_name(SCHEMA_FILE), schema_text())
    say(f"wrote {file}\nNext: edit it, then kftune validate {file} and kftune run {file}", whole=True)
