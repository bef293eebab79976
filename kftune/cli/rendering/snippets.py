"""A configuration as text to paste: into a study file, or into a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

import yaml

from kftune._targets import is_target
from kftune.results import LOOP_PARAMETERS

if TYPE_CHECKING:
    from kftune.analysis.ranking.chosen import ChosenConfiguration

__all__ = ["as_python", "as_yaml"]


def as_yaml(configurations: Sequence[ChosenConfiguration]) -> str:
    """``optimizers:`` of a study file, each with its ``fixed:`` block; one document per study file and problem."""
    documents: dict[tuple[str, str], list[str]] = {}
    for configuration in configurations:
        key = (configuration.study.partition("/")[0], configuration.problem)
        documents.setdefault(key, []).append(_item(configuration))
    return "---\n".join(f"optimizers:\n{''.join(items)}" for items in documents.values())


def _item(configuration: ChosenConfiguration) -> str:
    name, label = configuration.optimizer_name, configuration.optimizer
    item: dict[str, Any] = {"target": name, "name": label} if is_target(name) else {"name": name}
    if not is_target(name) and label != name:
        item["label"] = label
    item["fixed"] = dict(configuration.params)
    text = yaml.safe_dump([item], sort_keys=False, allow_unicode=True, default_flow_style=False, width=1000)
    return f"  # {_line(configuration.described)}\n" + "".join(f"  {line}\n" for line in text.splitlines())


def as_python(configuration: ChosenConfiguration) -> str:
    """A program that makes the problem's model and the optimizer, and does one update."""
    params, loop = _by_owner(configuration)
    imported, made = _construction(configuration, params)
    args = "".join(f", {_argument(name, value)}" for name, value in configuration.problem_args.items())
    comment = "  # of the first update; batches grow" if loop.get("full_batch_at") else ""
    sizes = "".join(f"{name} = {value!r}\n" for name, value in loop.items())
    return f"""\
# {_line(configuration.described)}
import torch

from kftune.optim import {imported}
from kftune.problems import PROBLEMS, default_data_dir

problem = PROBLEMS.get({configuration.problem_name!r}).load(
    device=torch.device("cpu"), dtype=torch.float32, data_dir=default_data_dir(){args}
)
model = problem.make_model()
{sizes}optimizer = {made}

n_examples = {_examples(loop)}{comment}
inputs, targets = problem.train.inputs[:n_examples], problem.train.targets[:n_examples]


def closure():  # forward only; the optimizer does the rest
    output = model(inputs)
    return problem.loss(output, targets), output


loss = optimizer.step(closure)
"""


def _by_owner(configuration: ChosenConfiguration) -> tuple[dict[str, Any], dict[str, Any]]:
    """The optimizer's hyperparameters, and the training loop's (by name, for a target that cannot be imported here)."""
    loop = set(LOOP_PARAMETERS)
    if not is_target(configuration.optimizer_name):
        from kftune.optim import OPTIMIZERS
        from kftune.training.loop.hyperparameters import loop_parameters

        loop = set(loop_parameters(OPTIMIZERS.get(configuration.optimizer_name)))
    own = {name: value for name, value in configuration.params.items() if name not in loop}
    return own, {name: value for name, value in configuration.params.items() if name in loop}


def _examples(loop: Mapping[str, Any]) -> str:
    """The number of examples behind an update, in terms of the variables of the program."""
    if loop.get("effective_batch_size"):
        return "effective_batch_size"
    if not loop.get("batch_size"):
        return "len(problem.train)"
    return "batch_size * accumulation" if loop.get("accumulation") else "batch_size"


def _construction(configuration: ChosenConfiguration, params: Mapping[str, Any]) -> tuple[str, str]:
    """What to import from ``kftune.optim``, and the call that makes the optimizer."""
    import kftune.optim

    entry = (
        None if is_target(configuration.optimizer_name) else kftune.optim.OPTIMIZERS.get(configuration.optimizer_name)
    )
    class_name = getattr(entry.cls, "__name__", "") if entry is not None else ""
    if class_name in kftune.optim.__all__ and entry is not None and getattr(kftune.optim, class_name) is entry.cls:
        lines = "".join(f"    {_argument(name, value)},\n" for name, value in params.items())
        return class_name, f"{class_name}(\n    model,\n    likelihood=problem.likelihood,\n{lines})"
    call = f"OPTIMIZERS.get({configuration.optimizer_name!r}).build("
    return "OPTIMIZERS", f"{call}model, likelihood=problem.likelihood, params={dict(params)!r})"


def _argument(name: str, value: Any) -> str:
    """A keyword argument; what cannot be one goes through ``**``, so that a stored name is never read as code."""
    return f"{name}={value!r}" if name.isidentifier() and not iskeyword(name) else f"**{ {name: value}!r}"


def _line(text: str) -> str:
    """One line, whatever a name holds: it stands in a comment."""
    return " ".join(text.split())
